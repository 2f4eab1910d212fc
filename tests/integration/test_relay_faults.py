"""JetStream loses or invents data, Postgres loses data: what the relay makes of it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest
from nats.aio.msg import Msg
from nats.js.api import StreamConfig

from orrery_events.relay import Relay
from orrery_events.relay import relay as relay_module
from orrery_events.subjects import HEAD
from tests.support.backbone import NatsServer, PostgresServer
from tests.support.bus import Backbone, backbone
from tests.support.wait import eventually

STREAM = "ORRERY_EVENTS"


@pytest.fixture
async def bb(database_url: str, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Backbone]:
    monkeypatch.setattr(relay_module, "LOOK_S", 0.2)
    monkeypatch.setattr(relay_module, "DIVERGED_RETRY_S", 0.2)
    monkeypatch.setattr(relay_module, "HEARTBEAT_S", 0.2)
    async with backbone(database_url, nats_server.relay_url) as it:
        assert await it.bus.wait_connected(10)
        yield it


async def append(bb: Backbone, count: int = 5) -> int:
    last = 0
    for _ in range(count):
        last = (await bb.set_route()).last_position
    return last


async def lose_postgres_tail(bb: Backbone, keep: int) -> None:
    """What an asynchronous failover does: the last events never happened."""
    async with bb.pool.acquire() as connection, connection.transaction():
        await connection.execute("ALTER TABLE es.events DISABLE TRIGGER immutable")
        await connection.execute("DELETE FROM es.events WHERE position > $1", keep)
        await connection.execute("ALTER TABLE es.events ENABLE TRIGGER immutable")
        await connection.execute("UPDATE es.log_head SET position = $1", keep)
        await connection.execute("DELETE FROM es.latest WHERE position > $1", keep)
        await connection.execute("DELETE FROM es.stream_head WHERE position > $1", keep)
        await connection.execute("DELETE FROM es.command_dedup WHERE last_position > $1", keep)
        await connection.execute("DELETE FROM es.category_head")
        await connection.execute(
            "INSERT INTO es.category_head SELECT category, max(category_seq), max(position) FROM es.events GROUP BY 1"
        )


async def diverged(relay: Relay) -> str:
    return await eventually(lambda: relay.diverged, timeout_s=10)


@pytest.mark.invariant(2)
async def test_a_wiped_store_is_filled_again_at_the_right_sequence(bb: Backbone, nats_server: NatsServer) -> None:
    await bb.relay()
    await bb.relayed(await append(bb))
    await nats_server.kill()
    shutil.rmtree(nats_server.store_dir)
    last = await append(bb)
    await nats_server.restart()
    await bb.relayed(last)
    assert await bb.assert_stream_equals_log() == last


@pytest.mark.invariant(2)
async def test_a_stream_deleted_under_a_running_relay_is_made_again(bb: Backbone) -> None:
    await bb.relay()
    await bb.relayed(await append(bb))
    assert bb.bus.client is not None
    await bb.bus.client.jetstream().delete_stream(STREAM)
    await bb.relayed(5)
    last = await append(bb)
    await bb.relayed(last)
    assert await bb.assert_stream_equals_log() == last


@pytest.mark.invariant(2)
async def test_a_lost_tail_of_the_stream_is_published_again(bb: Backbone, nats_server: NatsServer) -> None:
    await bb.relay()
    await bb.relayed(await append(bb))
    await nats_server.stop()
    older = nats_server.store_dir.with_name("older")
    shutil.copytree(nats_server.store_dir, older)
    await nats_server.restart()
    await bb.relayed(await append(bb, 20))
    await nats_server.kill()
    shutil.rmtree(nats_server.store_dir)
    older.rename(nats_server.store_dir)
    await nats_server.restart()
    last = await append(bb)
    await bb.relayed(last)
    assert await bb.assert_stream_equals_log() == last == 30


@pytest.mark.invariant(2)
async def test_a_stream_somebody_made_from_sequence_one_is_replaced(bb: Backbone) -> None:
    await bb.relay()
    await bb.relayed(await append(bb))
    assert bb.bus.client is not None
    js = bb.bus.client.jetstream()
    await js.delete_stream(STREAM)
    await js.add_stream(StreamConfig(name=STREAM, subjects=["orrery.v1.evt.>"]))
    await js.publish("orrery.v1.evt.route.x.set", b"not an event")
    last = await append(bb)
    await bb.relayed(last)
    assert await bb.assert_stream_equals_log() == last


@pytest.mark.invariant(2)
@pytest.mark.parametrize("busy", [False, True])
async def test_a_foreign_publish_is_found_and_healed(bb: Backbone, busy: bool) -> None:
    await bb.relay()
    last = await append(bb)
    await bb.relayed(last)
    before = await bb.stream_created()
    assert bb.bus.client is not None
    await bb.bus.client.jetstream().publish("orrery.v1.evt.route.x.set", b"{}", headers={"ce-id": "forged"})
    if busy:
        last = await append(bb)

    async def healed() -> bool:
        return await bb.stream_created() not in ("", before) and (await bb.stream_state())[1] == last

    await eventually(healed)
    assert await bb.assert_stream_equals_log() == last


async def test_the_heartbeat_tells_consumers_that_the_stream_is_another(bb: Backbone) -> None:
    heard: list[bytes] = []

    async def hear(message: Msg) -> None:
        heard.append(message.data)

    await bb.bus.subscribe(HEAD, hear)
    await bb.relay()
    await eventually(lambda: heard)
    first = heard[-1]
    assert bb.bus.client is not None
    await bb.bus.client.jetstream().delete_stream(STREAM)
    await eventually(lambda: heard[-1] != first)


async def test_a_lost_tail_of_postgres_stops_the_relay_until_the_epoch_is_raised(bb: Backbone) -> None:
    relay = await bb.relay()
    await bb.relayed(await append(bb, 10))
    before = await bb.stream_created()
    await lose_postgres_tail(bb, keep=6)
    assert "Postgres lost its tail" in await diverged(relay)
    assert "raising the log's epoch" in relay.diverged
    assert relay._settled is None, "no heartbeat: consumers read Postgres"
    assert await bb.stream_created() == before, "what Postgres lost is kept for whoever has to decide"
    await bb.pool.execute("UPDATE es.log_head SET epoch = epoch + 1")
    last = await append(bb, 2)
    await bb.relayed(last)
    assert last == 8
    assert relay.diverged == ""
    assert await bb.assert_stream_equals_log() == 8


async def test_a_postgres_that_went_another_way_stops_the_relay(bb: Backbone) -> None:
    """A failover behind our back: no connection breaks, and the log is as long as before when we next look."""
    relay = await bb.relay()
    await bb.relayed(await append(bb, 10))
    async with bb.pool.acquire() as connection, connection.transaction():
        await connection.execute("ALTER TABLE es.events DISABLE TRIGGER immutable")
        await connection.execute("UPDATE es.events SET event_id = gen_random_uuid() WHERE position > 6")
        await connection.execute("ALTER TABLE es.events ENABLE TRIGGER immutable")
    assert "different events at position 7:" in await diverged(relay)
    last = await append(bb)
    await bb.pool.execute("UPDATE es.log_head SET epoch = epoch + 1")
    await bb.relayed(last)
    assert await bb.assert_stream_equals_log() == 15


async def test_the_stream_of_another_log_is_left_alone(bb: Backbone, postgres: PostgresServer) -> None:
    await bb.relay()
    await bb.relayed(await append(bb))
    other_url = await postgres.create_database(migrated=True)
    async with backbone(other_url, bb.bus._url, name="other") as other:
        assert await other.bus.wait_connected(10)
        # The tests' databases are copies of one; a log of its own has an id of its own.
        await other.pool.execute("UPDATE es.log_head SET log_id = gen_random_uuid()")
        await append(other, 3)
        relay = await other.relay("other")
        assert "another log" in await diverged(relay)
        assert (await bb.stream_state())[1] == 5
        await other.pool.execute("UPDATE es.log_head SET epoch = epoch + 1")
        await other.relayed(3)
        assert await other.assert_stream_equals_log() == 3


@pytest.mark.invariant(2)
async def test_postgres_killed_and_restarted_and_the_relay_goes_on(
    own_postgres: PostgresServer, nats_server: NatsServer
) -> None:
    url = await own_postgres.create_database(migrated=True)
    async with backbone(url, nats_server.relay_url) as bb:
        assert await bb.bus.wait_connected(10)
        relay = await bb.relay()
        await bb.relayed(await append(bb))
        await own_postgres.kill()
        await eventually(lambda: not relay.leading)
        await own_postgres.restart()
        last = (await bb.set_route()).last_position
        await bb.relayed(last)
        assert await bb.assert_stream_equals_log() == last


@pytest.mark.invariant(2)
async def test_nats_killed_again_and_again_under_load(bb: Backbone, nats_server: NatsServer) -> None:
    await bb.relay()
    last = 0
    for _ in range(3):
        last = await append(bb, 30)
        await nats_server.kill()
        last = await append(bb, 30)
        await nats_server.restart()
    await bb.relayed(last)
    assert await bb.assert_stream_equals_log() == last == 180
