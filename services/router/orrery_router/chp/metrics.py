"""`--metrics-port`: the original's metrics by their own names, then the process's own.

Counted in plain integers, and only when somebody wants to know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Final

from aiohttp import web

from orrery_router.dataplane.server import DataPlane
from orrery_runtime import metrics

from .activity import ProxyActivity
from .api import Api
from .projections import Entry

if TYPE_CHECKING:
    from orrery_router.dataplane.exchange import Exchange

Found = tuple[Entry | None, bool]
Find = Callable[[str, tuple[str, ...]], Found]
HELP: Final = {
    "api_route_get": "Count of API route get requests",
    "api_route_add": "Count of API route add requests",
    "api_route_delete": "Count of API route delete requests",
    "find_target_for_req": "Summary of find target requests",
    "last_activity_updating": "Summary of last activity updating requests",
    "requests_ws": "Count of websocket requests",
    "requests_web": "Count of web requests",
    "requests_proxy": "Count of proxy requests",
    "requests_api": "Count of API requests",
}


class Stopwatch:
    """How often something was done, and how long all of it took."""

    def __init__(self) -> None:
        self.count, self.sum_s = 0, 0.0

    def add(self, began: float) -> None:
        """`began`: of `perf_counter`."""
        self.count += 1
        self.sum_s += perf_counter() - began


class Statistics:
    """What is counted of requests."""

    def __init__(self) -> None:
        self.found, self.touched = Stopwatch(), Stopwatch()
        self.web = self.ws = 0
        self.proxied: Counter[int] = Counter()
        """By status."""

    def finding(self, find: Find) -> Find:
        """The same, timed."""

        def timed(host: str, segments: tuple[str, ...]) -> Found:
            began = perf_counter()
            found = find(host, segments)
            self.found.add(began)
            return found

        return timed


class TimedActivity:
    """`ProxyActivity` as the data plane sees it, timed."""

    def __init__(self, activity: ProxyActivity, stopwatch: Stopwatch) -> None:
        self._activity, self._stopwatch = activity, stopwatch

    def touch(self, server_id: str) -> None:
        began = perf_counter()
        self._activity.touch(server_id)
        self._stopwatch.add(began)


class CountingPlane(DataPlane):
    """A data plane that counts every exchange, if it is given something to count with."""

    statistics: Statistics | None = None

    def observe(self, exchange: Exchange, status: int) -> None:
        super().observe(exchange, status)
        statistics = self.statistics
        if statistics is None:
            return
        if exchange.head.upgrade:
            statistics.ws += 1
        else:
            statistics.web += 1
        if status != 101:
            statistics.proxied[status] += 1


def application(statistics: Statistics, api: Api) -> web.Application:
    """The metrics' own server."""

    async def answer(_request: web.Request) -> web.Response:
        body = ("\n".join(lines(statistics, api)) + "\n").encode() + metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": metrics.CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    return app


def lines(statistics: Statistics, api: Api) -> Iterator[str]:
    """In Prometheus's text format."""
    for what in ("get", "add", "delete"):
        yield from _counter(f"api_route_{what}", {"": api.calls[what]})
    for name, stopwatch in (
        ("find_target_for_req", statistics.found),
        ("last_activity_updating", statistics.touched),
    ):
        yield f"# HELP {name} {HELP[name]}"
        yield f"# TYPE {name} summary"
        yield f"{name}_sum {stopwatch.sum_s}"
        yield f"{name}_count {stopwatch.count}"
    yield from _counter("requests_ws", {"": statistics.ws})
    yield from _counter("requests_web", {"": statistics.web})
    yield from _counter("requests_proxy", _by_status(statistics.proxied))
    yield from _counter("requests_api", _by_status(api.answered))


def _counter(name: str, values: dict[str, int]) -> Iterator[str]:
    yield f"# HELP {name} {HELP[name]}"
    yield f"# TYPE {name} counter"
    for labels, value in values.items():
        yield f"{name}{labels} {value}"


def _by_status(counts: Counter[int]) -> dict[str, int]:
    return {f'{{status="{status}"}}': count for status, count in sorted(counts.items())}
