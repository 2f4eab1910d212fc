"""Commands by FastStream on real NATS: none of its traps loses or repeats a command for ever.

The numbers F1 to F16 are those of the design's list of what FastStream 0.7 does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from orrery_events import bus as bus_module
from orrery_events.catalog.server import StartRequested, server_stream
from orrery_events.errors import LogUnavailable
from orrery_events.log import Appended
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_events.stream import durable_config, ensure_consumer
from orrery_events.subjects import fact_filter
from orrery_runtime import broker as module
from orrery_runtime.broker import Commands
from orrery_runtime.shared_broker import PatientPull, SharedBroker
from tests.support.backbone import NatsServer
from tests.support.bus import Backbone, backbone
from tests.support.wait import eventually

STREAM = "ORRERY_EVENTS"
DURABLE = "spawner-starts"
FILTERS = [fact_filter("server.start_requested")]


@pytest.fixture
async def bb(database_url: str, nats_server: NatsServer) -> AsyncIterator[Backbone]:
    async with backbone(database_url, nats_server.relay_url) as it:
        assert await it.bus.wait_connected(10)
        yield it


class Handler:
    """Remembers what it was given; does what a test says."""

    def __init__(self, then: Callable[[Recorded], Awaitable[None]] | None = None) -> None:
        self.given: list[str] = []
        self.at: list[float] = []
        self.active = self.most_active = 0
        self._then = then

    async def __call__(self, recorded: Recorded, event: Event) -> None:
        assert isinstance(event, StartRequested)
        self.given.append(event.server_id)
        self.at.append(time.monotonic())
        self.active += 1
        self.most_active = max(self.active, self.most_active)
        try:
            if self._then is not None:
                await self._then(recorded)
        finally:
            self.active -= 1


async def request(bb: Backbone, server_id: str = "s1") -> Appended:
    event = StartRequested(server_id=server_id, user_id="u", user_name="ada", generation=1)
    return await bb.log.append(server_stream(server_id), [event])


async def serve(bb: Backbone, handler: Handler, *, batch: int = 16) -> asyncio.Task[None]:
    return await bb.background(Commands(bb, durable=DURABLE, filters=FILTERS, handler=handler, batch=batch).run)


async def settled(bb: Backbone) -> bool:
    """Everything that was delivered is acknowledged, and nothing waits."""
    assert bb.bus.client is not None
    try:
        info = await bb.bus.client.jetstream().consumer_info(STREAM, DURABLE)
    except NotFoundError:
        return False
    return (info.num_ack_pending, info.num_pending) == (0, 0)


async def test_commands_are_handled_and_acknowledged_once(bb: Backbone) -> None:
    await bb.relay()
    handler = Handler()
    await serve(bb, handler)
    for number in range(40):
        await request(bb, f"s{number}")
    await bb.set_route()
    await eventually(lambda: len(handler.given) == 40)
    await eventually(lambda: settled(bb))
    assert sorted(handler.given) == sorted({f"s{n}" for n in range(40)})


async def test_a_single_command_does_not_wait_for_a_batch_to_fill(bb: Backbone) -> None:
    await bb.relay()
    handler = Handler()
    await serve(bb, handler)
    await request(bb, "warm-up")
    await eventually(lambda: len(handler.given) == 1)
    for number in range(5):
        began = time.monotonic()
        await request(bb, f"s{number}")
        await eventually(lambda number=number: len(handler.given) == number + 2)  # type: ignore[misc]
        assert time.monotonic() - began < 1.0


async def test_it_begins_without_nats(bb: Backbone, nats_server: NatsServer) -> None:
    await nats_server.kill()
    handler = Handler()
    await serve(bb, handler)
    await request(bb)
    await bb.relay()
    await nats_server.restart()
    await eventually(lambda: handler.given == ["s1"], timeout_s=20)


async def test_f1_an_exception_in_the_handler_does_not_lose_the_command(bb: Backbone) -> None:
    failures = iter([RuntimeError("once"), ValueError("twice")])

    async def fail_twice(recorded: Recorded) -> None:
        for failure in failures:
            raise failure

    await bb.relay()
    handler = Handler(fail_twice)
    await serve(bb, handler)
    await request(bb)
    await eventually(lambda: len(handler.given) == 3)
    await eventually(lambda: settled(bb))


async def test_f1_a_command_that_cannot_be_decoded_becomes_a_dead_letter(bb: Backbone) -> None:
    sql = """SELECT * FROM es.append(ARRAY[gen_random_uuid()], ARRAY['server-x'], ARRAY[NULL::bigint], ARRAY[1],
        ARRAY[1], ARRAY[gen_random_uuid()], ARRAY['server'], ARRAY['server.start_requested'], ARRAY[$1::smallint],
        ARRAY[NULL::text], ARRAY[false], ARRAY[$2::bytea], ARRAY['{}'::jsonb])"""
    await bb.relay()
    handler = Handler()
    await serve(bb, handler)
    await bb.pool.execute(sql, 1, b"0")
    await bb.pool.execute(sql, 99, b"{}")
    await request(bb)

    async def letters() -> bool:
        rows = await bb.pool.fetch("SELECT position, reason FROM es.dead_letters WHERE consumer = $1", DURABLE)
        return {row[0] for row in rows} == {1, 2} and all("not understood" in row[1] for row in rows)

    await eventually(letters)
    await eventually(lambda: handler.given == ["s1"])
    await eventually(lambda: settled(bb))


async def test_f2_a_failing_command_comes_back_after_growing_delays(bb: Backbone) -> None:
    async def fail(recorded: Recorded) -> None:
        raise RuntimeError("always")

    await bb.relay()
    handler = Handler(fail)
    await serve(bb, handler)
    await request(bb)
    await eventually(lambda: len(handler.at) == 4)
    pauses = [b - a for a, b in zip(handler.at, handler.at[1:], strict=False)]
    assert all(pause >= module.NACK_MIN_S for pause in pauses), pauses
    assert pauses[2] > pauses[0]


async def test_a_command_that_always_fails_becomes_a_dead_letter(bb: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NACK_MAX_S", 0.05)

    async def fail(recorded: Recorded) -> None:
        raise RuntimeError("always")

    await bb.relay()
    handler = Handler(fail)
    await serve(bb, handler)
    done = await request(bb)

    async def given_up() -> bool:
        sql = "SELECT position FROM es.dead_letters WHERE consumer = $1 AND reason = 'failed 10 times'"
        return bool(await bb.pool.fetchval(sql, DURABLE) == done.first_position)

    await eventually(given_up)
    assert len(handler.given) == 10


async def test_while_the_log_is_away_a_command_is_held_not_used_up(bb: Backbone) -> None:
    away = 4

    async def log_away(recorded: Recorded) -> None:
        if len(handler.given) <= away:
            raise LogUnavailable

    await bb.relay()
    handler = Handler(log_away)
    await serve(bb, handler)
    await request(bb)
    await eventually(lambda: len(handler.given) == away + 1)
    await eventually(lambda: settled(bb))
    assert bb.bus.client is not None
    info = await bb.bus.client.jetstream().consumer_info(STREAM, DURABLE)
    assert info.delivered is not None
    assert info.delivered.consumer_seq == 1, "delivered once"


@pytest.mark.parametrize("what", ["consumer", "stream"])
async def test_f3_a_consumer_that_is_gone_is_made_anew_without_a_busy_loop(
    bb: Backbone, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    ask = PatientPull._ask

    async def counted(self: PatientPull, *, batch: int, expires_s: float | None) -> None:
        asked.append(time.monotonic())
        await ask(self, batch=batch, expires_s=expires_s)

    monkeypatch.setattr(PatientPull, "_ask", counted)
    await bb.relay()
    handler = Handler()
    await serve(bb, handler)
    await request(bb, "s1")
    await eventually(lambda: handler.given == ["s1"])
    began, before = time.monotonic(), len(asked)
    assert bb.bus.client is not None
    js = bb.bus.client.jetstream()
    if what == "consumer":
        await js.delete_consumer(STREAM, DURABLE)
    else:
        await js.delete_stream(STREAM)
    await request(bb, "s2")
    await eventually(lambda: "s2" in handler.given, timeout_s=20)
    assert len(asked) - before < 10 + 10 * (time.monotonic() - began)


async def test_f6_no_more_is_fetched_than_is_handled(bb: Backbone) -> None:
    gate = asyncio.Event()

    async def wait(recorded: Recorded) -> None:
        await gate.wait()

    await bb.relay()
    handler = Handler(wait)
    await serve(bb, handler, batch=2)
    for number in range(8):
        await request(bb, f"s{number}")
    await bb.relayed(8)
    await eventually(lambda: handler.active >= 1)
    assert bb.bus.client is not None
    info = await bb.bus.client.jetstream().consumer_info(STREAM, DURABLE)
    assert info.num_ack_pending is not None
    assert info.num_ack_pending <= 2
    gate.set()
    await eventually(lambda: len(handler.given) == 8)
    await eventually(lambda: settled(bb))
    assert handler.most_active <= 2


async def test_f7_commands_go_on_after_a_transient_authorization_failure(bb: Backbone, nats_server: NatsServer) -> None:
    await bb.relay()
    handler = Handler()
    await serve(bb, handler)
    await request(bb, "s1")
    await eventually(lambda: handler.given == ["s1"])
    file = nats_server.root / "nats" / "relay.password"
    password = file.read_text()
    await nats_server.kill()
    file.write_text("another")
    await nats_server.restart()
    await eventually(lambda: bb.bus.last_error.startswith("NATS refused"))
    file.write_text(password)
    await nats_server.restart()
    await request(bb, "s2")
    await eventually(lambda: handler.given == ["s1", "s2"], timeout_s=20)


def test_f8_a_half_open_connection_is_noticed_in_seconds_and_nothing_gives_up() -> None:
    assert bus_module.PING_INTERVAL_S * bus_module.PINGS_OUTSTANDING_MAX <= 15
    assert bus_module.CHECK_INTERVAL_S + bus_module.CHECK_TIMEOUT_S <= 10
    assert bus_module.RETRY_MAX_S <= 5
    assert bus_module.PENDING_BYTES_MAX == 16 * 2**20


async def test_f9_stopping_while_nats_is_away_raises_nothing(bb: Backbone, nats_server: NatsServer) -> None:
    await bb.relay()
    task = await serve(bb, Handler())
    await request(bb)
    await eventually(lambda: settled(bb), timeout_s=10)
    client = bb.bus.client
    assert client is not None
    await nats_server.kill()
    broker = SharedBroker(client, lambda: None)
    await broker.connect()
    await broker.stop()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_f10_the_stream_is_left_as_it_is(bb: Backbone) -> None:
    await bb.relay()
    await bb.relayed(0)
    assert bb.bus.client is not None
    js = bb.bus.client.jetstream()
    before = (await js.stream_info(STREAM)).config
    handler = Handler()
    await serve(bb, handler)
    await request(bb)
    await eventually(lambda: handler.given == ["s1"])
    assert (await js.stream_info(STREAM)).config == before


async def test_f11_settings_of_an_existing_consumer_are_put_right_and_its_place_is_kept(bb: Backbone) -> None:
    await bb.relay()
    await request(bb, "old")
    await bb.relayed(1)
    assert bb.bus.client is not None
    js = bb.bus.client.jetstream()
    stale = ConsumerConfig(
        name=DURABLE, durable_name=DURABLE, ack_policy=AckPolicy.EXPLICIT, ack_wait=300.0, max_deliver=3,
        filter_subject="orrery.v1.evt.server.*.stop_requested",
    )  # fmt: skip
    await js.add_consumer(STREAM, stale)
    handler = Handler()
    await serve(bb, handler)

    async def right() -> bool:
        config = (await js.consumer_info(STREAM, DURABLE)).config
        return (config.ack_wait, config.max_deliver) == (30.0, 10) and FILTERS in (
            config.filter_subjects,
            [config.filter_subject],
        )

    await eventually(right)
    await request(bb, "new")
    await eventually(lambda: "new" in handler.given)
    again = await ensure_consumer(js, durable_config(DURABLE, FILTERS, start=1))
    assert again.config.max_ack_pending == 256


async def test_f16_a_command_in_flight_at_the_stop_is_delivered_to_another(
    bb: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "durable_config", partial(durable_config, ack_wait_s=1.0))
    monkeypatch.setattr("orrery_runtime.shared_broker.GRACE_S", 0.1)

    async def never(recorded: Recorded) -> None:
        await asyncio.Event().wait()

    await bb.relay()
    first = Handler(never)
    task = await serve(bb, first)
    await request(bb)
    await eventually(lambda: first.active == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    second = Handler()
    await serve(bb, second)
    await eventually(lambda: second.given == ["s1"])
    await eventually(lambda: settled(bb))


async def both_wait(bb: Backbone) -> bool:
    if not await settled(bb):
        return False
    assert bb.bus.client is not None
    return bool((await bb.bus.client.jetstream().consumer_info(STREAM, DURABLE)).num_waiting == 2)


async def test_instances_share_the_commands(bb: Backbone) -> None:
    await bb.relay()
    handlers = [Handler(), Handler()]
    for handler in handlers:
        await serve(bb, handler, batch=1)
    await eventually(lambda: both_wait(bb))
    await asyncio.gather(*(request(bb, f"s{n}") for n in range(60)))
    await eventually(lambda: sum(len(h.given) for h in handlers) == 60)
    await eventually(lambda: settled(bb))
    assert sorted(handlers[0].given + handlers[1].given) == sorted(f"s{n}" for n in range(60))
    assert all(h.given for h in handlers)


async def test_the_handler_runs_in_the_trace_of_the_append(bb: Backbone) -> None:
    seen: list[int] = []

    async def look(recorded: Recorded) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    await bb.relay()
    await serve(bb, Handler(look))
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    with trace.use_span(NonRecordingSpan(context)):
        await request(bb)
    await eventually(lambda: seen == [0xABC])
