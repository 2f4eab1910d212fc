"""The relay against real Postgres and NATS: what is on the stream is what is in the log."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats.errors
import pytest
from nats.js.errors import APIError

from orrery_events import stream as stream_module
from orrery_events.catalog.instance import instance_stream
from orrery_events.catalog.route import RouteSet
from orrery_events.catalog.server import Ready, server_stream
from orrery_events.errors import OrreryError
from orrery_events.heartbeat import Heartbeat, decode_heads, decode_heartbeat
from orrery_events.log import Lease
from orrery_events.relay import chores, leader, publisher, settle
from orrery_events.relay import relay as relay_module
from orrery_events.relay.leader import Leadership
from orrery_events.relay.publisher import Message, Overloaded, Publisher, WrongLastSequence, message_of, subject_of
from orrery_events.subjects import HEAD
from tests.support.backbone import NatsServer
from tests.support.bus import Backbone, backbone
from tests.support.wait import eventually


@pytest.fixture
async def bb(database_url: str, nats_server: NatsServer) -> AsyncIterator[Backbone]:
    async with backbone(database_url, nats_server.relay_url) as it:
        assert await it.bus.wait_connected(10)
        yield it


async def some_events(bb: Backbone, count: int) -> int:
    """Events of several categories, concurrently and in one command; the last position."""
    await asyncio.gather(*(bb.set_route() for _ in range(count - 2)))
    server = Ready(server_id="srv1", user_id="u", user_name="ada", generation=1)
    route = RouteSet(route_id="rt1", prefix="/user/ada/", target="http://127.0.0.1:9")
    done = await bb.log.append(server_stream("srv1"), [server, route])
    return done.last_position


@pytest.mark.invariant(2)
async def test_sequence_is_position_and_bytes_are_the_rows(bb: Backbone) -> None:
    await bb.revoke()
    await bb.relay()
    last = 1 + await some_events(bb, 60) - 1
    await bb.relayed(last)
    assert await bb.assert_stream_equals_log() == last


async def test_the_stream_is_configured_as_designed(bb: Backbone) -> None:
    await bb.relay()
    await bb.relayed(0)
    assert bb.bus.client is not None
    config = (await bb.bus.client.jetstream().stream_info("ORRERY_EVENTS")).config
    assert config.subjects == ["orrery.v1.evt.>"]
    assert config.deny_purge
    assert config.allow_atomic
    assert config.allow_direct
    assert config.max_age == 7 * 86_400
    assert config.max_bytes == stream_module.MAX_BYTES
    assert config.max_msg_size == 128 * 1024
    assert config.duplicate_window == pytest.approx(0.1)
    assert config.storage == "file"
    head = await bb.log.head()
    assert config.metadata is not None
    assert config.metadata["orrery_pg_system_id"] == head.system_id
    assert config.metadata["orrery_epoch"] == "1"


async def test_settings_that_somebody_changed_are_put_right(bb: Backbone) -> None:
    await bb.relay()
    await bb.relayed(0)
    assert bb.bus.client is not None
    js = bb.bus.client.jetstream()
    config = (await js.stream_info("ORRERY_EVENTS")).config
    await js.update_stream(config.evolve(max_age=60.0, max_bytes=1_000_000))

    async def right() -> bool:
        info = await js.stream_info("ORRERY_EVENTS")
        return info.config.max_age == stream_module.MAX_AGE_S and info.config.max_bytes == stream_module.MAX_BYTES

    # A fresh leader looks at all settings when it begins.
    await bb.pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orrery-relay-leader'"
        " AND datname = current_database()"
    )
    await eventually(right)


async def test_headers_carry_the_heads_of_all_categories(bb: Backbone) -> None:
    await bb.relay()
    await bb.set_route()
    await bb.revoke()
    await bb.set_route()
    await bb.relayed(3)
    assert bb.bus.client is not None
    js = bb.bus.client.jetstream()
    heads = []
    for sequence in (1, 2, 3):
        headers = (await js.get_msg("ORRERY_EVENTS", sequence)).headers
        assert headers is not None
        heads.append({c: n for c, n in decode_heads(headers["ce-orreryheads"]).items() if n})
    assert heads == [{"route": 1}, {"route": 1, "auth": 1}, {"route": 2, "auth": 1}]


async def test_a_relay_that_begins_in_the_middle_knows_the_heads(bb: Backbone) -> None:
    relay = await bb.relay()
    await bb.revoke()
    await bb.set_route()
    await bb.relayed(2)
    relay._settled = None
    await bb.set_route()
    await bb.relayed(3)
    assert bb.bus.client is not None
    headers = (await bb.bus.client.jetstream().get_msg("ORRERY_EVENTS", 3)).headers
    assert headers is not None
    assert decode_heads(headers["ce-orreryheads"]) == {"auth": 1, "route": 2}


async def test_the_heartbeat_tells_the_head_as_postgres_has_it(bb: Backbone) -> None:
    heard: list[Heartbeat] = []

    async def hear(message: object) -> None:
        heard.append(decode_heartbeat(message.data))  # type: ignore[attr-defined]

    await bb.bus.subscribe(HEAD, hear)
    await bb.relay("the-relay")
    last = await some_events(bb, 10)
    await eventually(lambda: bool(heard) and heard[-1].position == last)
    head = await bb.log.head()
    assert heard[-1].categories == head.seqs()
    assert heard[-1].relay == "the-relay"
    assert heard[-1].relayed == last
    assert heard[-1].created


async def test_a_new_stream_begins_near_the_logs_end(bb: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "BACKFILL", 5)
    last = await some_events(bb, 20)
    await bb.relay()
    await bb.relayed(last)
    assert (await bb.stream_state())[0] == last - 4
    assert await bb.assert_stream_equals_log() == 5


@pytest.mark.invariant(2)
async def test_two_relays_that_both_believe_to_lead_do_no_harm(bb: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    async def everybody_leads(self: Leadership) -> None:
        return None

    async def for_ever(self: Leadership) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Leadership, "acquire", everybody_leads)
    monkeypatch.setattr(Leadership, "hold", for_ever)
    relays = [await bb.relay("relay-a"), await bb.relay("relay-b"), await bb.relay("relay-c")]
    last = await some_events(bb, 30)
    await bb.relayed(last)
    before = await bb.stream_created()
    for _ in range(10):
        last = await some_events(bb, 30)
    await bb.relayed(last)
    assert await bb.stream_created() == before, "nothing had to be healed: the stream itself let only one of them in"
    assert all(relay.leading for relay in relays)
    assert await bb.assert_stream_equals_log() == last
    await eventually(lambda: all(relay.last_seq == last for relay in relays))


async def test_one_leads_and_another_takes_over(bb: Backbone) -> None:
    first = await bb.relay("relay-a")
    await eventually(lambda: first.leading)
    second = await bb.relay("relay-b")
    last = await some_events(bb, 10)
    await bb.relayed(last)
    assert not second.leading
    await bb.pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orrery-relay-leader'"
        " AND datname = current_database()"
        " AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)"
    )
    await eventually(lambda: second.leading != first.leading)
    last = await some_events(bb, 10)
    await bb.relayed(last)
    assert await bb.assert_stream_equals_log() == last


async def test_postgres_ends_the_session_of_a_leader_that_stands_still(
    bb: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(leader._SETTINGS, "idle_session_timeout", "1s")
    monkeypatch.setattr(leader, "TRY_INTERVAL_S", 0.2)
    frozen, other = Leadership(bb.database_url), Leadership(bb.database_url)
    await frozen.acquire()
    await asyncio.wait_for(other.acquire(), 10)
    monkeypatch.setattr(leader, "CHECK_INTERVAL_S", 0.1)
    holding = asyncio.create_task(other.hold())
    with pytest.raises(Exception, match=r"idle|clos"):
        await frozen._connection.fetchval("SELECT 1")  # type: ignore[union-attr]
    assert not holding.done()
    holding.cancel()
    await frozen.release()
    await other.release()


async def test_runs_without_nats_and_catches_up_when_it_comes(bb: Backbone, nats_server: NatsServer) -> None:
    await nats_server.kill()
    relay = await bb.relay()
    last = await some_events(bb, 700)
    await eventually(lambda: relay.leading)
    await nats_server.restart()
    await bb.relayed(last)
    assert await bb.assert_stream_equals_log() == last


async def test_leases_that_ran_out_with_postgres_away_are_only_lost_if_nobody_refreshes_them(
    bb: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an outage: every lease looks as if its holder were dead, and one of the holders lives."""
    monkeypatch.setattr(Lease, "REFRESH_S", 0.2)
    monkeypatch.setattr(chores, "LEASES_GRACE_S", 1.0)
    monkeypatch.setattr(chores, "LEASES_EVERY_S", 0.1)
    lease = Lease(bb.log, bb.pool, service="auth", slot="auth-1", instance_id="alive")
    await lease.acquire()
    await bb.pool.execute(
        "INSERT INTO es.instances (instance_id, slot, service, expires_at) VALUES ('i1', 'api-1', 'api', now())"
    )
    await bb.pool.execute("UPDATE es.instances SET expires_at = now() - interval '1 minute'")
    await bb.relay()
    refreshing = await bb.background(lease.refresh_forever)

    async def lost() -> list[str]:
        return [row.stream_id for row in await bb.log.read_all(after_position=0) if row.type == "instance.lost"]

    await eventually(lost)
    assert await lost() == [instance_stream("api-1")]
    assert not refreshing.done()


# The publisher


async def messages(bb: Backbone, count: int) -> list[Message]:
    await asyncio.gather(*(bb.set_route() for _ in range(count)))
    rows = await bb.log.read_all(after_position=0)
    return [message_of(row, {"route": row.category_seq}) for row in rows]


@asynccontextmanager
async def publisher_of(bb: Backbone, *, atomic: bool = True) -> AsyncIterator[Publisher]:
    assert bb.bus.client is not None
    js = bb.bus.client.jetstream()
    config = stream_module.stream_config(stream_module.Owner("x", 1), first_seq=1)
    await stream_module.create_stream(js, config.evolve(allow_atomic=atomic))
    async with Publisher.on(bb.bus.client) as put:
        yield put


@pytest.mark.invariant(2)
@pytest.mark.parametrize("atomic", [True, False])
async def test_each_message_is_stored_at_its_position_or_not_at_all(bb: Backbone, *, atomic: bool) -> None:
    batch = await messages(bb, 300)
    async with publisher_of(bb, atomic=atomic) as put:
        await put.publish(batch[:5])
        for too_early in (batch[9:10], batch[9:20], batch[9:200]):
            with pytest.raises(WrongLastSequence, match="5"):
                await put.publish(too_early)
            assert (await bb.stream_state())[1] == 5
        # Two are there already: the answer says so, and whatever else of it is stored is at its place.
        with pytest.raises(WrongLastSequence, match="5"):
            await put.publish(batch[3:10])
        last = (await bb.stream_state())[1]
        await put.publish(batch[last : last + 12])
        await put.publish(batch[last + 12 :])
        assert put.atomic == atomic, "refused once, not tried again"
    assert await bb.assert_stream_equals_log() == 300


@pytest.mark.invariant(2)
@pytest.mark.parametrize("count", [2, 10])
async def test_somebody_elses_message_in_the_midst_is_noticed(bb: Backbone, count: int) -> None:
    """The next ones follow on it as they would on ours: only the answer to the one whose place it took can tell."""
    batch = await messages(bb, 20)
    async with publisher_of(bb) as put:
        await put.publish(batch[:5])
        await put._client.publish(batch[5].subject, b"foreign")
        with pytest.raises(WrongLastSequence, match="6"):
            await put.publish(batch[5 : 5 + count])


async def test_n6_lost_answers_end_in_time_and_free_their_slots(
    bb: Backbone, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "ACK_TIMEOUT_S", 0.3)
    batch = await messages(bb, 40)
    assert bb.bus.client is not None
    subscriptions = len(bb.bus.client._subs)
    async with publisher_of(bb) as put:
        os.kill(nats_server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(nats.errors.TimeoutError):
                await put.publish(batch)
        finally:
            os.kill(nats_server.pid, signal.SIGCONT)
        # What was sent is stored all the same; whoever tries again hears so.
        await bb.relayed(40)
        with pytest.raises(WrongLastSequence, match="40"):
            await put.publish(batch)
    assert len(bb.bus.client._subs) <= subscriptions + 1, "that for all requests, and no other"


async def test_subjects_never_hold_what_nats_would_interpret(bb: Backbone) -> None:
    await bb.log.append("route-x", [RouteSet(route_id="a.b*>", prefix="/x/", target="http://x")])
    await bb.log.append("route-y", [RouteSet(route_id="plain", prefix="/y/", target="http://y")])
    odd, plain = [subject_of(row) for row in await bb.log.read_all(after_position=0)]
    assert plain == "orrery.v1.evt.route.plain.set"
    assert odd.count(".") == plain.count(".")
    assert not set(odd) & set("*>")


def test_what_nats_refuses_for_the_moment_is_told_apart() -> None:
    assert isinstance(publisher._translate(APIError(code=429, err_code=10167)), Overloaded)
    assert isinstance(publisher._translate(APIError(code=503, err_code=10023)), Overloaded)
    assert isinstance(publisher._translate(APIError(code=400, err_code=10071)), WrongLastSequence)
    assert issubclass(settle.Diverged, OrreryError)
    assert relay_module.RETRY_MAX_S <= 5
