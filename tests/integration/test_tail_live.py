"""The tail on real Postgres and NATS while all is well: it applies everything, once, in order, at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from orrery_events.catalog.route import RouteRemoved, RouteSet, route_id_of
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_events.tail import Tail
from orrery_events.tail.consumer import PushConsumer
from tests.support.backbone import NatsServer
from tests.support.bus import Applied, Backbone, backbone
from tests.support.wait import eventually


@pytest.fixture
async def bb(database_url: str, nats_server: NatsServer) -> AsyncIterator[Backbone]:
    async with backbone(database_url, nats_server.relay_url) as it:
        assert await it.bus.wait_connected(10)
        yield it


async def fed_by_jetstream(tail: Tail[Applied]) -> None:
    await eventually(lambda: tail.mode == "jetstream" and tail._consumer is not None)


async def same_as_log(bb: Backbone, tail: Tail[Applied]) -> bool:
    expected = await bb.expected()
    assert tail.state.digest() == expected.digest()
    return True


def metric(name: str, tail: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"tail": tail, **labels}) or 0.0


async def test_a_write_is_read_back_through_jetstream(bb: Backbone) -> None:
    await bb.relay()
    tail = await bb.tail("rw")
    await fed_by_jetstream(tail)
    for _ in range(20):
        done = await bb.set_route()
        assert await tail.wait_for(done.last_position, 5.0)
        assert tail.position >= done.last_position
    assert tail._machine.gaps == 0
    assert len(tail.state.routes) == 20
    assert not await tail.wait_for(tail.position + 1, 0.01)


@pytest.mark.invariant(3)
async def test_a_rebuild_ends_in_the_state_that_the_whole_history_ends_in(bb: Backbone) -> None:
    for number in range(30):
        await bb.set_route(f"http://127.0.0.1:{number}", number % 7)
        if number % 3 == 0:
            await bb.revoke(f"s{number % 5}")
    prefix = "/user/u3/"
    await bb.log.append("route-3", [RouteRemoved(route_id=route_id_of(prefix), prefix=prefix)])
    tail = await bb.tail("rebuild")
    expected = await bb.expected()
    assert tail.state.digest() == expected.digest()
    assert len(tail.state.positions) < len(expected.positions), "only the last of each key was read"
    assert tail.position == (await bb.log.head()).position


@pytest.mark.invariant(3)
async def test_n1_a_storm_loses_and_repeats_nothing(bb: Backbone) -> None:
    """Thousands of messages at once, more than one read of the socket can hand over."""
    await bb.relay()
    tail = await bb.tail("storm")
    await fed_by_jetstream(tail)
    await asyncio.gather(*(bb.set_route() for _ in range(4000)), *(bb.revoke(f"s{n}") for n in range(1000)))
    head = await bb.log.head()
    assert await tail.wait_for(head.position, 30.0)
    expected = await bb.expected()
    assert tail.state.positions == expected.positions
    assert tail.state.digest() == expected.digest()


async def test_events_of_other_categories_move_the_position_only(bb: Backbone) -> None:
    await bb.relay()
    tail = await bb.tail("auth-only", categories=("auth",))
    await fed_by_jetstream(tail)
    done = await bb.set_route()
    await eventually(lambda: tail.position == done.last_position)
    assert tail.state.positions == []
    assert tail.lag == 0


async def test_catch_up_proves_the_head_before_any_message_arrives(bb: Backbone) -> None:
    """No relay runs: only Postgres can tell."""
    tail = await bb.tail("catch-up")
    done = await bb.set_route()
    assert tail.position < done.last_position
    assert await tail.catch_up(5.0)
    assert tail.position >= done.last_position
    assert tail.state.routes


async def test_catch_ups_at_the_same_time_share_a_look_at_the_head(
    bb: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = await bb.tail("shared")
    looks: list[int] = []
    look = bb.log.look

    async def counted(**given: int) -> object:
        looks.append(1)
        return await look(**given)

    monkeypatch.setattr(bb.log, "look", counted)
    assert all(await asyncio.gather(*(tail.catch_up(5.0) for _ in range(200))))
    assert len(looks) <= 3


async def test_what_is_read_at_once_is_applied_once_and_in_order(bb: Backbone) -> None:
    """Two ways lead to the state, Postgres and NATS, and whoever has just appended takes the quick one."""
    await bb.relay()
    tail = await bb.tail("both-ways")
    await fed_by_jetstream(tail)
    began = len(tail.state.positions)

    async def one() -> None:
        done = await bb.set_route()
        assert await tail.wait_for(done.last_position, 5.0, patience_s=0)
        assert done.last_position in tail.state.positions

    for _ in range(20):
        await asyncio.gather(*(one() for _ in range(10)))
    await bb.relayed((await bb.log.head()).position)
    applied = tail.state.positions[began:]
    assert applied == sorted(set(applied))
    assert len(applied) == 200
    assert metric("orrery_tail_gap_repaired_total", "both-ways") == 0


async def test_a_catch_up_does_not_count_a_look_that_began_before_it(
    bb: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = await bb.tail("fresh-look")
    look, gate, looks = bb.log.look, asyncio.Event(), []

    async def slow(**given: int) -> object:
        seen = await look(**given)
        looks.append(seen.position)
        await gate.wait()
        return seen

    monkeypatch.setattr(bb.log, "look", slow)
    first = asyncio.create_task(tail.catch_up(10.0))
    await eventually(lambda: looks)
    done = await bb.set_route()
    second = asyncio.create_task(tail.catch_up(10.0))
    gate.set()
    assert await first
    assert await second
    assert tail.position >= done.last_position


async def test_watchers_hear_of_live_events_after_they_are_applied(bb: Backbone) -> None:
    await bb.set_route()
    await bb.relay()
    tail = await bb.tail("watched")
    heard: list[tuple[int, bool]] = []

    def watch(recorded: Recorded, event: Event) -> None:
        assert isinstance(event, RouteSet)
        heard.append((recorded.position, event.route_id in tail.state.routes))

    def broken(recorded: Recorded, event: Event) -> None:
        raise RuntimeError("a watcher's own fault")

    tail.subscribe(broken)
    stop = tail.subscribe(watch)
    done = await bb.set_route()
    assert await tail.wait_for(done.last_position, 5.0)
    assert heard == [(done.last_position, True)]
    stop()
    done = await bb.set_route()
    assert await tail.wait_for(done.last_position, 5.0)
    assert len(heard) == 1


async def test_what_this_release_does_not_know_is_skipped_and_counted(bb: Backbone) -> None:
    await bb.relay()
    tail = await bb.tail("newer")
    await fed_by_jetstream(tail)
    sql = """SELECT * FROM es.append(ARRAY[gen_random_uuid()], ARRAY[$1::text], ARRAY[NULL::bigint], ARRAY[1],
        ARRAY[1], ARRAY[gen_random_uuid()], ARRAY['route'], ARRAY[$2::text], ARRAY[$3::smallint], ARRAY[NULL::text],
        ARRAY[false], ARRAY[$4::bytea], ARRAY['{}'::jsonb])"""
    await bb.pool.execute(sql, "route-a", "route.teleported", 1, b"{}")
    await bb.pool.execute(sql, "route-b", "route.set", 99, b"{}")
    await bb.pool.execute(sql, "route-c", "route.set", 1, json.dumps({"prefix": 7}).encode())
    done = await bb.set_route()
    assert await tail.wait_for(done.last_position, 5.0)
    assert tail.state.positions == [done.last_position]
    assert metric("orrery_tail_events_skipped_total", "newer", reason="unknown type") == 3


async def test_a_projection_that_fails_on_one_event_goes_on_with_the_next(
    bb: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bb.relay()
    tail = await bb.tail("fragile")
    await fed_by_jetstream(tail)
    apply = tail.state.apply

    def fails_once(recorded: Recorded, event: Event) -> None:
        monkeypatch.setattr(tail.state, "apply", apply)
        raise ValueError("no such planet")

    monkeypatch.setattr(tail.state, "apply", fails_once)
    await bb.set_route()
    done = await bb.set_route()
    assert await tail.wait_for(done.last_position, 5.0)
    assert metric("orrery_tail_events_skipped_total", "fragile", reason="apply failed") == 1


async def test_metrics_say_where_the_tail_stands(bb: Backbone) -> None:
    await bb.set_route()
    await bb.relay()
    tail = await bb.tail("measured")
    done = await bb.set_route()
    assert await tail.wait_for(done.last_position, 5.0)
    await eventually(lambda: metric("orrery_tail_position", "measured") == done.last_position)
    await eventually(lambda: metric("orrery_tail_mode", "measured", mode="jetstream") == 1)
    assert metric("orrery_tail_lag_events", "measured") == 0
    assert metric("orrery_replay_events_total", "measured") == 1
    assert metric("orrery_replay_duration_seconds", "measured") > 0
    await eventually(lambda: 0 < metric("orrery_tail_staleness_seconds", "measured") < 1.5)


async def test_stopping_ends_everything_and_keeps_the_state(bb: Backbone) -> None:
    await bb.relay()
    tail = await bb.tail("stopped")
    done = await bb.set_route()
    assert await tail.wait_for(done.last_position, 5.0)
    waiting = asyncio.create_task(tail.wait_for(done.last_position + 1, 60.0))
    await eventually(lambda: tail._waiting._waiters)
    await tail.stop()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(tail.state.routes) == 1
    assert not await tail.catch_up(0.1)


async def test_the_consumer_alone_delivers_a_long_backlog(bb: Backbone) -> None:
    """Flow control is answered: otherwise NATS would stop after the first few messages."""
    await bb.relay()
    await asyncio.gather(*(bb.set_route("x" * 50_000) for _ in range(300)))
    await bb.relayed(300)
    assert bb.bus.client is not None
    subjects: list[str] = []
    consumer = PushConsumer(bb.bus.client, "alone", lambda m: subjects.append(m.subject), lambda: None)
    await consumer.start(("route",), 1, log_id=(await bb.log.head()).system_id)
    await eventually(lambda: len(subjects) == 300)
    await consumer.stop()
