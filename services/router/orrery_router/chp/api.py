"""The REST API of configurable-http-proxy 5.x, on a listener of its own."""

from __future__ import annotations

import hmac
import re
import time
from collections import Counter
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from orrery_events.errors import EventTooLarge, LogUnavailable
from orrery_router.domain import BadPath

from .domain import key_of
from .routes import Routes, moment_of

BODY_BYTES_MAX: Final = 48 * 1024
"""A route's JSON; it becomes part of an event, which is bounded."""
AUTHORIZATION: Final = re.compile(r"token\s+(\S+)")

_log = structlog.get_logger("orrery.proxy.api")


class Api:
    """Answers every request to the API's listener."""

    def __init__(self, routes: Routes, token: str) -> None:
        """`token`: empty, and anybody may do everything."""
        self._routes, self._token = routes, token.encode()
        self.answered: Counter[int] = Counter()
        """By status."""
        self.calls: Counter[str] = Counter()
        """`get` (of all routes), `add`, `delete`."""

    def application(self) -> web.Application:
        @web.middleware
        async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:  # noqa: ARG001
            # aiohttp's own routing would read paths in its own way; here is the only one.
            return await self._counted(request)

        return web.Application(middlewares=[answer], client_max_size=BODY_BYTES_MAX)

    async def _counted(self, request: web.Request) -> web.Response:
        began = time.perf_counter()
        try:
            response = await self._answer(request)
        except BadPath as error:
            response = _text(400, f"Bad path: {error}")
        except web.HTTPRequestEntityTooLarge:
            response = _text(413, f"A route's data may have {BODY_BYTES_MAX} bytes")
        except EventTooLarge as error:
            response = _text(413, str(error))
        except LogUnavailable as error:
            response = _text(503, str(error))
            response.headers["Retry-After"] = "1"
        response.headers["Server"] = "orrery"
        self.answered[response.status] += 1
        path = request.raw_path.partition("?")[0]
        level = _log.info if response.status < 400 else _log.warning
        level(
            "api_request", method=request.method, path=path, status=response.status,
            duration_ms=round((time.perf_counter() - began) * 1000, 2),
        )  # fmt: skip
        return response

    async def _answer(self, request: web.Request) -> web.Response:
        key = key_of(_origin_form(request.raw_path))
        if key is None:
            return _text(404, "Not Found")
        handler = {"GET": self._get, "POST": self._post, "DELETE": self._delete}.get(request.method)
        if handler is None:
            return _text(405, "Method not supported")
        if not self._authorized(request):
            return web.Response(status=403)
        return await handler(request, key)

    def _authorized(self, request: web.Request) -> bool:
        if not self._token:
            return True
        found = AUTHORIZATION.search(request.headers.get("Authorization", ""))
        given = found[1].encode("utf-8", "surrogateescape") if found else b""
        return hmac.compare_digest(given, self._token)

    async def _get(self, request: web.Request, key: str) -> web.Response:
        if key != "/":
            route = await self._routes.get(key)
            return web.Response(status=404) if route is None else _json(route)
        query = dict(reversed(parse_qsl(request.raw_path.partition("?")[2])))
        since = query.get("inactiveSince") or query.get("inactive_since")
        moment = moment_of(since) if since else None
        if since and moment is None:
            return _text(400, f"Invalid datestamp '{since}' must be ISO8601.")
        routes = await self._routes.all(inactive_since=moment)
        self.calls["get"] += 1
        return _json(routes)

    async def _post(self, request: web.Request, key: str) -> web.Response:
        try:
            data = msgspec.json.decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _text(400, f"Body not valid JSON: {error}")
        if not isinstance(data, dict) or not isinstance(data.get("target"), str):
            return _text(400, "Must specify 'target' as string")
        await self._routes.set(key, data)
        self.calls["add"] += 1
        return web.Response(status=201)

    async def _delete(self, _request: web.Request, key: str) -> web.Response:
        removed = await self._routes.remove(key)
        self.calls["delete"] += 1
        return web.Response(status=204 if removed else 404)


def _origin_form(target: str) -> str:
    """`http://host/path` → `/path`."""
    if target.lower().startswith(("http://", "https://")):
        return "/" + target.partition("://")[2].partition("/")[2]
    return target


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
