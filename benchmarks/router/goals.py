"""What the router should reach beside its peers, and what it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

CHP = "configurable-http-proxy"
BUSY_MAX = 0.1
"""What else the machine may do meanwhile; with more the figures say little."""
LOADS = ("same_heads_16", "same_heads_128", "differing_heads_16", "differing_heads_128")


class Goal(msgspec.Struct, frozen=True):
    """Our figure divided by a peer's: at least or at most this."""

    row: str
    what: str
    figure: str
    """Where in the row's results, with dots."""
    peer: str
    bound: Literal["≥", "≤"]
    ratio: float
    cpu: str = ""
    """The CPU that the same work took. Where the load was the limit and not the proxy, its ratio tells more."""
    theirs: str = ""
    """If the peer's figure is another than ours."""
    called: str = ""
    """And what that is."""


class Outcome(msgspec.Struct, frozen=True):
    """A goal, measured."""

    goal: Goal
    ours: float
    theirs: float
    measured: float
    """The ratio."""
    by_cpu: float | None
    """How much less CPU the same work took: their CPU divided by ours."""
    met: bool
    missed_by: float
    """0.25: a quarter is missing, or is too much."""


def requests() -> Iterator[Goal]:
    for load in LOADS:
        words = load.split("_")
        what = f"requests/s, {words[0]} heads, {words[2]} connections"
        for peer, ratio in ((CHP, 7.0), ("traefik", 4.0), ("nginx", 0.7)):
            yield Goal("requests", what, f"{load}.per_s", peer, "≥", ratio, cpu=f"{load}.cpu_s_per_10000")
    yield Goal("requests", "CPU per 10,000 requests, s", "same_heads_16.cpu_s_per_10000", CHP, "≤", 0.15)


def transfers() -> Iterator[Goal]:
    for way in ("download", "upload"):
        cpu = f"{way}.cpu_s_per_gb"
        for peer, ratio in ((CHP, 3.0), ("nginx", 0.95)):
            yield Goal("transfers", f"1 MiB {way}s, GB/s", f"{way}.gb_per_s", peer, "≥", ratio, cpu=cpu)
        for peer, ratio in ((CHP, 0.2), ("nginx", 1.1)):
            yield Goal("transfers", f"1 MiB {way}s, CPU s per GB", cpu, peer, "≤", ratio)


def websockets() -> Iterator[Goal]:
    for connections in (64, 1000):
        place = f"connections_{connections}"
        for peer, ratio in ((CHP, 1.7), ("traefik", 1.0), ("nginx", 0.8)):
            what = f"WebSocket messages/s, {connections:,} connections"
            yield Goal("websockets", what, f"{place}.per_s", peer, "≥", ratio, cpu=f"{place}.cpu_s_per_10000")


def adding() -> Iterator[Goal]:
    for at_once in (1, 10, 50):
        place, what = f"at_once_{at_once}", f"a route added until 2 replicas serve it, {at_once} at a time, ms"
        served = f"{place}.served_p50_ms"
        yield Goal(
            "adding", what, served, CHP, "≤", 3.0, theirs=f"{place}.acknowledged_p50_ms", called="its POST alone"
        )
        yield Goal("adding", what, served, "traefik-redis", "≤", 0.05)


GOALS = (
    *requests(),
    Goal("latency", "p99 at half of configurable-http-proxy's top rate, ms", "p99_ms", "traefik", "≤", 1.0),
    Goal("latency", "p99.9 at the same rate, ms", "p999_ms", "traefik", "≤", 1.0),
    *transfers(),
    *websockets(),
    Goal("connects", "new connections/s, 32 at a time", "per_s", CHP, "≥", 8.0, cpu="cpu_s_per_10000"),
    Goal("connects", "new connections/s, 32 at a time", "per_s", "traefik", "≥", 2.5, cpu="cpu_s_per_10000"),
    Goal("memory", "memory with 1,000 routes, MB", "routes_1000_mb", CHP, "≤", 1.0),
    Goal("memory", "memory with 100,000 routes, MB", "routes_100000_mb", CHP, "≤", 1.0),
    Goal("memory", "memory per idle WebSocket, kB", "kb_per_websocket", CHP, "≤", 0.5),
    *adding(),
    Goal("rebuild", "10,000 routes back after `kill -9`, s", "all_back_s", CHP, "≤", 0.1),
)


def at(figures: Mapping[str, Any], place: str) -> float | None:
    found: Any = figures
    for name in place.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def outcomes(rows: Mapping[str, Mapping[str, Any]]) -> list[Outcome]:
    """Of the goals whose row was measured for both."""
    found = []
    for goal in GOALS:
        by_peer = rows.get(goal.row, {})
        mine, peers = by_peer.get("orrery", {}), by_peer.get(goal.peer, {})
        ours, theirs = at(mine, goal.figure), at(peers, goal.theirs or goal.figure)
        if ours is not None and theirs:
            found.append(outcome(goal, ours, theirs, at(mine, goal.cpu), at(peers, goal.cpu)))
    return found


def outcome(goal: Goal, ours: float, theirs: float, our_cpu: float | None, their_cpu: float | None) -> Outcome:
    measured = ours / theirs
    share = measured / goal.ratio
    missed_by = 1 - share if goal.bound == "≥" else share - 1
    return Outcome(
        goal=goal,
        ours=ours,
        theirs=theirs,
        measured=round(measured, 3),
        by_cpu=round(their_cpu / our_cpu, 2) if our_cpu and their_cpu else None,
        met=missed_by <= 0,
        missed_by=round(max(0.0, missed_by), 3),
    )


def told(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """For people at a terminal."""
    for one in outcomes(rows):
        goal = one.goal
        by_cpu = "" if one.by_cpu is None else f"; by CPU {one.by_cpu:g}"
        verdict = "met" if one.met else f"MISSED by {one.missed_by:.0%}"
        yield f"{goal.what}: {one.measured:g} of {goal.peer} ({goal.bound} {goal.ratio:g}{by_cpu}): {verdict}"
