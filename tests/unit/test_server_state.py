"""A server's life as the api and any number of spawners decide it, each from what it last read: every history that the
log accepts keeps the promises."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery_api import domain as api
from orrery_events.catalog.profile import Profile
from orrery_events.catalog.route import RouteRemoved, RouteSet
from orrery_events.catalog.server import Ready, Removed, ServerEvent, StartRequested
from orrery_events.registry import Event
from orrery_events.server_state import ENDED, PHASES, Phase, Server, evolve
from orrery_spawner import domain as spawner

PROFILE = Profile(name="p", command=["x"], start_timeout_s=10)
ASK = api.Ask(server_id="s", user_id="u", user_name="ada", name="lab")
SPAWNERS = ("one", "two", "three")

Decision = Callable[[Server, float], list[Event]]


def start(server: Server, now: float) -> list[Event]:
    try:
        return api.decide_start(server, ASK, PROFILE, now=now)
    except api.NotNow:
        return []


def stop(server: Server, now: float, *, remove: bool = False) -> list[Event]:
    try:
        return api.decide_stop(server, requested_by="u", remove=remove)
    except api.NotNow:
        return []


def decisions(me: str, dead: str, generation: int) -> dict[str, Decision]:
    failure = spawner.Failure(reason="exited", message="it ended")
    return {
        "start": start,
        "stop": stop,
        "remove": lambda server, now: stop(server, now, remove=True),
        "claim_start": lambda server, now: spawner.claim_start(server, me, dead=dead, now=now),
        "progress": lambda server, _: spawner.progress(server, me, generation, step="x", percent=1, message="x"),
        "ready": lambda server, now: spawner.ready(server, me, generation, target="t", profile=PROFILE, now=now),
        "fail": lambda server, _: spawner.fail(server, me, generation, failure),
        "expire": lambda server, now: spawner.expire(server, now=now),
        "claim_stop": lambda server, _: spawner.claim_stop(server, me, dead=dead),
        "stopped": lambda server, _: spawner.stopped(server, me, exit_code=0, log_tail=[]),
        "vanished": lambda server, _: spawner.vanished(
            server, generation, reason="exited", exit_code=1, message="x", log_tail=[]
        ),
    }


STEP = st.tuples(
    st.sampled_from(sorted(decisions("", "", 0))),
    st.sampled_from(SPAWNERS),
    st.sampled_from(SPAWNERS),
    st.integers(-1, 0),  # the generation that it believes in, from the current one
    st.integers(0, 3),  # how many events ago it last read the stream
    st.sampled_from([0.0, 0.0, 0.0, 1.0, 400.0]),  # time that passes
)


def fold(events: list[Event]) -> Server:
    server = Server(server_id="s")
    for version, event in enumerate(events, 1):
        server = evolve(server, event, version)
    return server


@pytest.mark.invariant(6)
@settings(max_examples=400, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_every_history_keeps_the_promises(steps: list[tuple[str, str, str, int, int, float]]) -> None:
    log: list[Event] = []
    now = 0.0
    for what, me, dead, offset, stale, passed in steps:
        now += passed
        seen = fold(log[: max(0, len(log) - stale)])
        generation = max(0, seen.generation + offset)
        events = decisions(me, dead, generation)[what](seen, now)
        if not events or seen.version != len(log):
            continue  # Nothing to say, or the log refuses: the version has moved on.
        before = fold(log)
        log += events
        keeps_the_promises(before, events, fold(log), log)


def keeps_the_promises(before: Server, appended: list[Event], after: Server, log: list[Event]) -> None:
    facts = [event for event in appended if type(event) in PHASES]
    for event in facts:
        if isinstance(event, StartRequested):
            assert before.phase in ENDED or before.phase is Phase.NONE, "one generation at a time"
            assert event.generation == before.generation + 1
        else:
            assert isinstance(event, ServerEvent)
            assert event.generation == before.generation, "nobody speaks of another generation"
    if before.phase in ENDED:
        assert {type(event) for event in facts} <= {StartRequested, Removed}, "what has ended stays ended"
    this = [e for e in log if isinstance(e, ServerEvent) and type(e) in PHASES and e.generation == after.generation]
    assert sum(isinstance(e, Ready) for e in this) <= 1
    assert sum(PHASES[type(e)] in ENDED and not isinstance(e, Removed) for e in this) <= 1
    route: RouteSet | None = None
    for event in log:
        if isinstance(event, RouteSet):
            route = event
        elif isinstance(event, RouteRemoved):
            route = None
    live = after.phase in (Phase.READY, Phase.STOP_REQUESTED)
    assert (route is not None) == live, "it is routed while it is ready, and not a moment longer"
    assert route is None or route.generation == after.generation


@pytest.mark.invariant(6)
def test_a_start_always_comes_to_an_end() -> None:
    """Whatever happens to spawners, time alone ends it."""
    requested = fold(list(start(Server(server_id="s"), 0.0)))
    assert requested.deadline > 0
    (expired,) = spawner.expire(requested, now=requested.deadline)
    assert PHASES[type(expired)] is Phase.EXPIRED  # type: ignore[index]
    events: list[Event] = [requested.last] if requested.last else []
    claimed = fold([*events, *spawner.claim_start(requested, "one", now=1.0)])
    assert spawner.expire(claimed, now=claimed.deadline) == [], "its claimer has the first word"
    late = claimed.deadline + spawner.OVERDUE_GRACE_S
    (failed,) = spawner.expire(claimed, now=late)
    assert PHASES[type(failed)] is Phase.FAILED  # type: ignore[index]


def test_only_the_dead_are_inherited_from() -> None:
    requested = start(Server(server_id="s"), 0.0)
    claimed = fold([*requested, *spawner.claim_start(fold(requested), "one", now=1.0)])
    assert spawner.claim_start(claimed, "two", now=2.0) == []
    assert spawner.claim_start(claimed, "two", dead="three", now=2.0) == []
    (taken,) = spawner.claim_start(claimed, "two", dead="one", now=2.0)
    assert fold([*requested, *spawner.claim_start(fold(requested), "one", now=1.0), taken]).claimed_by == "two"
    assert spawner.claim_start(claimed, "two", dead="one", now=claimed.deadline) == [], "too late to begin"


def test_a_route_gets_what_its_profile_says() -> None:
    profile = msgspec.structs.replace(
        PROFILE, strip_prefix=True, identity_headers=True, rewrite_location=True, response_timeout_s=7.0
    )
    server = Server(server_id="s")
    for event in start(server, 0.0):
        server = evolve(server, event, server.version + 1)
    for event in spawner.claim_start(server, "one", now=1.0):
        server = evolve(server, event, server.version + 1)
    route, _ = spawner.ready(server, "one", server.generation, target="http://127.0.0.1:1", profile=profile, now=2.0)
    assert isinstance(route, RouteSet)
    assert (route.strip_prefix, route.identity_headers, route.rewrite_location) == (True, True, True)
    assert route.response_timeout_s == 7.0


@pytest.mark.parametrize("timeout_s", [-1.0, 86_401.0, float("nan"), float("inf")])
def test_a_profiles_patience_has_bounds(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="response_timeout_s must be between"):
        api.decide_profile(msgspec.structs.replace(PROFILE, response_timeout_s=timeout_s))
