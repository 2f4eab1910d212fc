"""The router's part of docs/performance.md, from benchmarks/results/router.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.router.goals import BUSY_MAX, CHP, LOADS, Outcome, at

Figures = Mapping[str, Any]
Column = tuple[str, str, str]
"""Heading, place of the figure, and how it is written."""

SHORT = {CHP: "CHP", "traefik-redis": "Traefik with Redis", "traefik": "Traefik"}
INTRODUCTION = """
## The router beside its peers

`make bench-router`: every proxy on one core of its own, load and upstreams on another, 1,000 routes, heads of the size
that a browser sends, rounds that alternate, medians; one round of those that are there for orientation only (HAProxy,
tuned Traefik, aiohttp). The router verifies a session at every request; its peers check nothing. CHP is
configurable-http-proxy; Traefik is configured as jupyterhub-traefik-proxy does it, and tuned (nothing observed, larger
pools, fewer garbage collections); nginx streams, with buffers of 64 KiB; aiohttp is a plain proxy of some eighty
lines (`benchmarks/aiohttp_proxy.py`). "Busy" is how much of its core the proxy used: below 0.9 or so the load was the
limit, and the CPU for the same work tells more than the rate.
"""


def section(router: Figures) -> Iterator[str]:
    """Lines."""
    yield INTRODUCTION
    yield f"Versions: {', '.join(f'{name} {said}' for name, said in router['versions'].items())}.\n"
    yield "### Goals\n"
    noisy = [row for row, found in router["rows"].items() if found["busy_before"] > BUSY_MAX]
    if noisy:
        yield f"**Measured while the machine had other things to do, and to be measured again: {', '.join(noisy)}.**\n"
    yield from goals(msgspec.convert(router["goals"], list[Outcome]))
    for row, write in TABLES.items():
        if row in router["rows"]:
            found = router["rows"][row]
            yield from write(found["peers"])
            yield f"\n{measured(found)}\n"


def measured(row: Figures) -> str:
    """When and how, and whether it was quiet."""
    how = f"Measured {row['measured']}: loads of {row['seconds']} s, rounds: {row['rounds']}."
    return f"{how} Before it began, the machine was {row['busy_before']:.0%} busy with other things."


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"
    for line in lines:
        yield f"| {' | '.join(line)} |"


def goals(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Our figure divided by the peer's, beside what it should be."""
    yield from table(
        ["what", "Orrery", "peer", "ratio", "goal", "", "by CPU"],
        (
            [
                one.goal.what,
                f"{one.ours:,g}",
                " ".join(filter(None, [SHORT.get(one.goal.peer, one.goal.peer), one.goal.called, f"{one.theirs:,g}"])),
                f"{one.measured:g}",
                f"{one.goal.bound} {one.goal.ratio:g}",
                "met" if one.met else f"missed by {one.missed_by:.0%}",
                "" if one.by_cpu is None else f"{one.by_cpu:g}",
            ]
            for one in outcomes
        ),
    )
    yield '\n"By CPU" is the peer\'s CPU for the same work divided by ours.\n'


def by_peer(columns: Sequence[Column], peers: Figures) -> Iterator[str]:
    """A table with a line for each peer; what was not measured for it is left empty."""
    yield from table(
        ["proxy", *(heading for heading, _, _ in columns)],
        ([peer, *(written(figures, place, form) for _, place, form in columns)] for peer, figures in peers.items()),
    )


def written(figures: Figures, place: str, form: str) -> str:
    found = at(figures, place)
    return "" if found is None else form.format(found)


def requests(peers: Figures) -> Iterator[str]:
    for load in LOADS:
        heads, _, connections = load.split("_")
        again = "the same head again and again" if heads == "same" else "another route, path and header each time"
        yield f"### Requests, {connections} connections, {again}\n"
        columns = [
            ("requests/s", f"{load}.per_s", "{:,.0f}"),
            ("p99, ms", f"{load}.p99_ms", "{:.2f}"),
            ("CPU s for 10,000", f"{load}.cpu_s_per_10000", "{:.3f}"),
            ("busy", f"{load}.busy", "{:.2f}"),
        ]
        yield from by_peer(columns, peers)
        yield ""


def latency(peers: Figures) -> Iterator[str]:
    rate = at(next(iter(peers.values())), "rate_per_s") or 0
    yield f"### Latency at {rate:,.0f} requests/s\n"
    yield "Half of what CHP can do at most; every request counts from when it was due.\n"
    columns = [
        (heading, place, "{:.2f}")
        for heading, place in (
            ("p50, ms", "p50_ms"), ("p99, ms", "p99_ms"), ("p99.9, ms", "p999_ms"), ("longest, ms", "max_ms"),
        )
    ]  # fmt: skip
    yield from by_peer(columns, peers)


def transfers(peers: Figures) -> Iterator[str]:
    yield "### Downloads and uploads of 1 MiB, four at a time\n"
    columns = [
        (f"{way} {heading}", f"{way}.{place}", "{:.2f}")
        for way in ("download", "upload")
        for heading, place in (("GB/s", "gb_per_s"), ("CPU s per GB", "cpu_s_per_gb"), ("busy", "busy"))
    ]
    yield from by_peer(columns, peers)


def websockets(peers: Figures) -> Iterator[str]:
    yield "### WebSocket messages and their echoes\n"
    columns = [
        (f"{connections:,}: {heading}", f"connections_{connections}.{place}", form)
        for connections in (64, 1000)
        for heading, place, form in (
            ("messages/s", "per_s", "{:,.0f}"),
            ("CPU s for 10,000", "cpu_s_per_10000", "{:.3f}"),
            ("busy", "busy", "{:.2f}"),
        )
    ]
    yield from by_peer(columns, peers)


def connects(peers: Figures) -> Iterator[str]:
    yield "### New connections, one request each, 32 at a time\n"
    columns = [
        ("connections/s", "per_s", "{:,.0f}"),
        ("p99, ms", "p99_ms", "{:.1f}"),
        ("CPU s for 10,000", "cpu_s_per_10000", "{:.2f}"),
        ("busy", "busy", "{:.2f}"),
    ]
    yield from by_peer(columns, peers)


def memory(peers: Figures) -> Iterator[str]:
    count = at(next(iter(peers.values())), "websockets") or 0
    yield "### Memory of one worker, resident\n"
    columns = [
        ("1,000 routes, MB", "routes_1000_mb", "{:.0f}"),
        ("100,000 routes, MB", "routes_100000_mb", "{:.0f}"),
        (f"{count:,.0f} idle WebSockets, MB", "with_websockets_mb", "{:.0f}"),
        ("for each, kB", "kb_per_websocket", "{:.1f}"),
    ]
    yield from by_peer(columns, peers)


def adding(peers: Figures) -> Iterator[str]:
    yield "### Adding a route, with 1,000 there already\n"
    yield "Ours is appended to the log and served by both of two replicas; the others have one. Milliseconds.\n"
    columns = [
        (f"{at_once} at once: {heading}", f"at_once_{at_once}.{place}", "{:.1f}")
        for at_once in (1, 10, 50)
        for heading, place in (
            ("acknowledged", "acknowledged_p50_ms"), ("served", "served_p50_ms"), ("p99", "served_p99_ms"),
        )
    ]  # fmt: skip
    yield from by_peer(columns, peers)


def rebuild(peers: Figures) -> Iterator[str]:
    yield "### All 10,000 routes back after `kill -9`\n"
    yield "Each is restarted at once. Ours replays; CHP is fed anew, ten requests at a time.\n"
    yield from by_peer([("seconds", "all_back_s", "{:.2f}")], peers)


TABLES: dict[str, Callable[[Figures], Iterator[str]]] = {
    "requests": requests,
    "latency": latency,
    "transfers": transfers,
    "websockets": websockets,
    "connects": connects,
    "memory": memory,
    "adding": adding,
    "rebuild": rebuild,
}
