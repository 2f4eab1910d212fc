"""The tail while JetStream loses things, NATS or Postgres die, and the log's epoch is raised."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest

from orrery_events.tail import Tail
from orrery_events.tail import tail as tail_module
from tests.support.backbone import NatsServer, PostgresServer
from tests.support.bus import Applied, Backbone, backbone
from tests.support.wait import eventually

STREAM = "ORRERY_EVENTS"


@pytest.fixture
async def bb(database_url: str, nats_server: NatsServer) -> AsyncIterator[Backbone]:
    async with backbone(database_url, nats_server.relay_url) as it:
        assert await it.bus.wait_connected(10)
        yield it


async def fed_by_jetstream(tail: Tail[Applied]) -> None:
    await eventually(lambda: tail.mode == "jetstream" and tail._consumer is not None, timeout_s=15)


async def reached(tail: Tail[Applied], position: int, timeout_s: float) -> bool:
    """The tail got there by itself: waiting does not make it ask, as `wait_for` would."""
    await eventually(lambda: tail.position >= position, timeout_s=timeout_s)
    return True


async def agrees(bb: Backbone, tail: Tail[Applied]) -> None:
    """The tail reached the head, and its state is the fold of the log."""
    head = (await bb.log.head()).position

    def there() -> bool:
        return tail.position >= head

    await eventually(there, timeout_s=15)
    assert tail.state.digest() == (await bb.expected()).digest()


async def deaf(tail: Tail[Applied]) -> None:
    """Nothing comes from JetStream any more, and the tail does not know."""
    assert tail._consumer is not None
    await tail._consumer.stop()


@pytest.mark.invariant(4)
async def test_a_lost_end_is_repaired_from_postgres_on_the_heartbeats_word(bb: Backbone) -> None:
    await bb.relay()
    tail = await bb.tail("lost-end")
    await fed_by_jetstream(tail)
    await deaf(tail)
    done = await bb.set_route()
    assert await reached(tail, done.last_position, 2.5), "one heartbeat, the grace and a read"
    assert tail._machine.gaps >= 1
    await agrees(bb, tail)


@pytest.mark.invariant(4)
async def test_a_hole_in_the_middle_of_the_stream_is_repaired_from_postgres(bb: Backbone) -> None:
    await bb.relay()
    tail = await bb.tail("hole")
    await fed_by_jetstream(tail)
    await deaf(tail)
    assert tail._heartbeats is not None
    await tail._heartbeats.unsubscribe()
    for _ in range(5):
        last = (await bb.set_route()).last_position
    await bb.relayed(last)
    assert bb.bus.client is not None
    assert await bb.bus.client.jetstream().delete_msg(STREAM, last - 2)
    assert tail.position < last - 2
    tail._consumer_work.set()
    assert await reached(tail, last, 2.5)
    assert tail._machine.gaps == 1
    assert tail.state.positions == (await bb.expected()).positions
    await agrees(bb, tail)


@pytest.mark.invariant(4)
async def test_a_revocation_lost_before_a_route_is_applied_before_it(bb: Backbone) -> None:
    """The loss of one category's event shows at the next message of another one."""
    await bb.relay()
    tail = await bb.tail("order")
    await fed_by_jetstream(tail)
    await deaf(tail)
    assert tail._heartbeats is not None
    await tail._heartbeats.unsubscribe()
    await bb.revoke()
    last = (await bb.set_route()).last_position
    await bb.relayed(last)
    assert bb.bus.client is not None
    assert await bb.bus.client.jetstream().delete_msg(STREAM, last - 1)
    tail._consumer_work.set()
    assert await reached(tail, last, 2.5)
    assert tail.state.positions == [last - 1, last]


async def test_n2_a_deleted_consumer_is_made_anew(bb: Backbone) -> None:
    await bb.relay()
    tail = await bb.tail("consumer")
    await fed_by_jetstream(tail)
    old = tail._consumer
    assert old is not None
    assert bb.bus.client is not None
    await bb.bus.client.jetstream().delete_consumer(STREAM, old._name)
    await eventually(lambda: tail._consumer not in (None, old), timeout_s=6)
    done = await bb.set_route()
    assert await reached(tail, done.last_position, 0.9), "by the new consumer, before any heartbeat could tell"


@pytest.mark.invariant(4)
@pytest.mark.parametrize("by_somebody", [False, True])
async def test_n2_a_stream_deleted_and_made_again_is_followed_on(bb: Backbone, by_somebody: bool) -> None:
    await bb.relay()
    tail = await bb.tail("deleted")
    for _ in range(3):
        await bb.set_route()
    await fed_by_jetstream(tail)
    old = tail._consumer
    assert bb.bus.client is not None
    js = bb.bus.client.jetstream()
    await js.delete_stream(STREAM)
    if by_somebody:
        # From sequence one, where a consumer that resumes by number would silently skip everything.
        await js.add_stream(name=STREAM, subjects=["orrery.v1.evt.>"])
    await bb.set_route()
    await agrees(bb, tail)
    await eventually(lambda: tail._consumer not in (None, old), timeout_s=6)
    await bb.relayed(tail.position)
    done = await bb.set_route()
    assert await reached(tail, done.last_position, 5)
    await agrees(bb, tail)


@pytest.mark.invariant(4)
async def test_a_wiped_jetstream_store_is_survived(bb: Backbone, nats_server: NatsServer) -> None:
    await bb.relay()
    tail = await bb.tail("wiped")
    await bb.set_route()
    await fed_by_jetstream(tail)
    await nats_server.kill()
    shutil.rmtree(nats_server.store_dir)
    await bb.set_route()
    await nats_server.restart()
    await agrees(bb, tail)
    await eventually(lambda: tail.mode == "jetstream", timeout_s=15)
    await bb.set_route()
    await agrees(bb, tail)


async def test_it_starts_before_nats_the_relay_and_the_stream(bb: Backbone, nats_server: NatsServer) -> None:
    await nats_server.kill()
    await bb.set_route()
    tail = await bb.tail("first")
    assert tail.position == 1
    done = await bb.set_route()
    assert await reached(tail, done.last_position, 5)
    assert tail.mode in ("pg_poll", "stale")
    await nats_server.restart()
    await bb.relay()
    await fed_by_jetstream(tail)
    done = await bb.set_route()
    assert await reached(tail, done.last_position, 5)


@pytest.mark.invariant(5)
async def test_without_nats_postgres_is_polled(bb: Backbone, nats_server: NatsServer) -> None:
    await bb.relay()
    tail = await bb.tail("polling")
    await fed_by_jetstream(tail)
    await nats_server.kill()
    for _ in range(3):
        done = await bb.set_route()
        assert await reached(tail, done.last_position, 10)
    await eventually(lambda: tail.mode == "pg_poll")
    await eventually(lambda: tail.staleness_s < 3.0)


@pytest.mark.invariant(5)
async def test_without_nats_and_postgres_it_serves_what_it_has_and_says_how_old_that_is(
    own_postgres: PostgresServer, nats_server: NatsServer
) -> None:
    url = await own_postgres.create_database(migrated=True)
    async with backbone(url, nats_server.relay_url) as bb:
        assert await bb.bus.wait_connected(10)
        await bb.relay()
        tail = await bb.tail("alone")
        done = await bb.set_route()
        assert await reached(tail, done.last_position, 5)
        await nats_server.kill()
        await own_postgres.kill()
        await eventually(lambda: tail.mode == "stale", timeout_s=15)
        assert len(tail.state.routes) == 1
        assert tail.staleness_s > 0
        assert not await tail.catch_up(0.2)
        await own_postgres.restart()
        await eventually(lambda: tail.mode == "pg_poll", timeout_s=15)
        done = await bb.set_route()
        assert await reached(tail, done.last_position, 5)
        await nats_server.restart()
        await eventually(lambda: tail.mode == "jetstream", timeout_s=20)
        await bb.set_route()
        await agrees(bb, tail)


@pytest.mark.invariant(5)
async def test_without_postgres_jetstream_alone_keeps_it_current(
    own_postgres: PostgresServer, nats_server: NatsServer
) -> None:
    """What was relayed is applied even if Postgres dies before the tail gets to it."""
    url = await own_postgres.create_database(migrated=True)
    async with backbone(url, nats_server.relay_url) as bb:
        assert await bb.bus.wait_connected(10)
        await bb.relay()
        tail = await bb.tail("fed")
        await fed_by_jetstream(tail)
        await deaf(tail)
        last = (await bb.set_route()).last_position
        await bb.relayed(last)
        await own_postgres.kill()
        tail._consumer_work.set()
        assert await reached(tail, last, 3)


async def test_a_start_without_postgres_waits_for_it(own_postgres: PostgresServer, nats_server: NatsServer) -> None:
    url = await own_postgres.create_database(migrated=True)
    async with backbone(url, nats_server.relay_url) as bb:
        await bb.set_route()
        await own_postgres.kill()

        async def start() -> None:
            await bb.tail("patient")

        task = await bb.background(start)
        await own_postgres.restart()
        await eventually(task.done, timeout_s=15)
        task.result()


@pytest.mark.invariant(3)
async def test_a_raised_epoch_rebuilds_and_swaps_the_state_as_a_whole(
    bb: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "REBUILD_SPREAD_S", 0.1)
    await bb.relay()
    for number in range(5):
        await bb.set_route(number=number)
    tail = await bb.tail("epoch")
    rebuilt: list[Applied] = []
    tail.on_rebuild(lambda: rebuilt.append(tail.state))
    old = tail.state
    async with bb.pool.acquire() as connection, connection.transaction():
        await connection.execute("ALTER TABLE es.events DISABLE TRIGGER immutable")
        await connection.execute("DELETE FROM es.events WHERE position > 2")
        await connection.execute("ALTER TABLE es.events ENABLE TRIGGER immutable")
        await connection.execute("DELETE FROM es.latest WHERE position > 2")
        await connection.execute("DELETE FROM es.stream_head WHERE position > 2")
        await connection.execute("UPDATE es.category_head SET seq = 2, position = 2")
        await connection.execute("UPDATE es.log_head SET position = 2, epoch = epoch + 1")
    await eventually(lambda: tail.epoch == 2, timeout_s=15)
    assert rebuilt == [tail.state]
    assert tail.state is not old
    assert len(old.routes) == 5, "whoever still holds the old state sees it whole"
    assert len(tail.state.routes) == 2
    await bb.set_route(number=9)
    await agrees(bb, tail)
    assert await tail.catch_up(5.0)


@pytest.mark.invariant(3)
async def test_another_logs_stream_and_heartbeats_are_not_followed(bb: Backbone, postgres: PostgresServer) -> None:
    """Two platforms that were given one NATS by mistake, or a new database beside an old broker: the numbers fit."""
    url = await postgres.create_database(migrated=True)
    async with backbone(url, bb.bus._url, name="other") as other:
        assert await other.bus.wait_connected(10)
        await other.pool.execute("UPDATE es.log_head SET log_id = gen_random_uuid()")
        await other.relay("other")
        await other.set_route()
        await other.relayed(1)
        tail = await bb.tail()
        theirs = (await other.set_route("theirs")).last_position
        await other.relayed(theirs)
        ours = [(await bb.set_route(f"ours-{n}")).last_position for n in range(3)]
        await eventually(lambda: tail.position >= ours[-1])
        await eventually(lambda: tail.mode == "pg_poll")
        assert tail.state.positions == ours
        await agrees(bb, tail)
    await postgres.drop_database(url)


@pytest.mark.invariant(3)
async def test_a_relay_that_copies_our_log_again_is_followed_again(bb: Backbone) -> None:
    """A database that was replaced behind everybody's back, and the log id with it."""
    await bb.relay()
    tail = await bb.tail()
    await bb.set_route()
    await fed_by_jetstream(tail)
    await bb.pool.execute("UPDATE es.log_head SET log_id = gen_random_uuid(), epoch = epoch + 1")
    last = (await bb.set_route("new")).last_position
    await eventually(lambda: tail.position >= last and tail.epoch == 2, timeout_s=30)
    await fed_by_jetstream(tail)
    await agrees(bb, tail)


async def test_far_behind_it_rebuilds_instead_of_reading_everything(
    bb: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orrery_events.tail.machine.REBUILD_BEHIND", 10)
    monkeypatch.setattr(tail_module, "REBUILD_SPREAD_S", 0.1)
    tail = await bb.tail("behind")
    rebuilt: list[int] = []
    tail.on_rebuild(lambda: rebuilt.append(tail.position))
    for _ in range(20):
        await bb.set_route(number=1)
    await tail.catch_up(5.0)
    await eventually(lambda: rebuilt)
    await agrees(bb, tail)
