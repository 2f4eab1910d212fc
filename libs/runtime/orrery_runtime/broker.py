"""Commands and notifications: typed handlers on the process's one supervised NATS connection.

    commands = Commands(process, durable="spawner-starts", filters=[fact_filter("server.start_requested")], handler=h)
    process.task("commands", commands.run)

A command is an event that one instance of a service must act upon, delivered at least once by a durable JetStream
consumer. A notification is core NATS: at most once, for what is worth nothing later. Both begin to work whenever NATS
comes up, and begin anew on every connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

import asyncpg
import msgspec
import nats.errors
import structlog
from faststream.nats import JStream, PullSub
from faststream.nats.annotations import NatsMessage
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig
from nats.js.errors import NotFoundError
from prometheus_client import Counter, Histogram

from orrery_events import subjects
from orrery_events.bus import Bus
from orrery_events.errors import LogUnavailable, UnknownEventType
from orrery_events.log import EventLog, record_dead_letter
from orrery_events.recorded import Recorded, from_message
from orrery_events.registry import Event
from orrery_events.stream import MAX_DELIVER, durable_config, ensure_consumer

from .metrics import DURATION_BUCKETS_S
from .shared_broker import SharedBroker
from .telemetry import processing

BATCH: Final = 16
"""Commands that one instance handles at the same time. They are independent; the log's versions order them."""
FETCH_TIMEOUT_S: Final = 5.0
REWIND: Final = 1000
"""A consumer made anew (after a wipe) begins this much before the stream's end: handlers recognise what is done."""
LOOK_S: Final = 2.0
INFO_S: Final = 10.0
RETRY_S: Final = 0.5
NACK_MIN_S: Final = 0.25
NACK_MAX_S: Final = 30.0
HOLD_S: Final = 600.0
"""While the log is away a command is held so long (other commands wait behind it) instead of using up deliveries."""
HOLD_RETRY_MAX_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 5.0
MAX_DELIVERIES_ADVISORY: Final = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"

DURATION = Histogram(
    "orrery_messages_process_duration_seconds",
    "Time to handle one message.",
    ["consumer", "outcome"],
    buckets=DURATION_BUCKETS_S,
)
DEAD_LETTERS = Counter("orrery_messages_dead_letters_total", "Messages given up on.", ["consumer"])

T = TypeVar("T")
CommandHandler = Callable[[Recorded, Event], Awaitable[None]]

_log = structlog.get_logger("orrery.broker")


class ProcessLike(Protocol):
    """What is needed of a process."""

    bus: Bus
    pool: asyncpg.Pool
    events: EventLog


class _Session(ABC):
    """A FastStream broker for as long as one connection lives, again and again."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        detach = self._bus.on_connect(lambda _client: self._wake.set())
        try:
            while True:
                client = self._bus.client
                if client is None:
                    await self._wait(LOOK_S)
                    continue
                try:
                    await self._serve(client)
                except (nats.errors.Error, OSError, LogUnavailable) as error:
                    _log.info("broker.retry", reason=str(error) or type(error).__name__)
                    await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.5))  # noqa: S311 (jitter, not a secret)
        finally:
            detach()

    async def _serve(self, client: Client) -> None:
        broker = SharedBroker(client, self._wake.set)
        await self._declare(client, broker)
        self._wake.clear()
        try:
            await broker.start()
            while self._bus.client is client and await self._healthy(client):
                if await self._wait(LOOK_S):
                    return
        finally:
            await broker.stop()

    async def _wait(self, timeout_s: float) -> bool:
        """True: something happened that asks for a look."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    @abstractmethod
    async def _declare(self, client: Client, broker: SharedBroker) -> None:
        """Tells a broker that is about to start what it is to receive."""

    async def _healthy(self, client: Client) -> bool:  # noqa: ARG002
        return True


class Commands(_Session):
    """A durable consumer and its handler.

    The message is acknowledged when the handler returns, so the handler returns as soon as its claim is in the log and
    does the work elsewhere. Raised LogUnavailable: the command is held and tried again. Any other exception: delivered
    again after a growing delay, at most MAX_DELIVER times, then it becomes a dead letter. An event of a type that this
    release does not know becomes one at once.
    """

    def __init__(
        self, process: ProcessLike, *, durable: str, filters: Sequence[str], handler: CommandHandler, batch: int = BATCH
    ) -> None:
        """`durable`: the consumer's name, shared by all instances of the service. `filters`: subjects, see
        `subjects.fact_filter`. `batch`: handled at the same time."""
        super().__init__(process.bus)
        self.durable = durable
        self._pool = process.pool
        self._filters = sorted(filters)
        self._handler = handler
        self._batch = batch
        self._active = 0
        self._seen = self._seen_before = 0
        self._info_at = 0.0

    async def run(self) -> None:
        advisory = f"{MAX_DELIVERIES_ADVISORY}.{subjects.STREAM}.{self.durable}"
        dead_letters = await self._bus.subscribe(advisory, self._on_given_up, queue=f"{self.durable}-dead-letters")
        try:
            await super().run()
        finally:
            await dead_letters.unsubscribe()

    async def _declare(self, client: Client, broker: SharedBroker) -> None:
        js = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        last = (await js.stream_info(subjects.STREAM)).state.last_seq
        await ensure_consumer(js, durable_config(self.durable, self._filters, start=last + 1 - REWIND))
        self._info_at = time.monotonic() + INFO_S
        subscriber = broker.subscriber(
            durable=self.durable,
            config=ConsumerConfig(filter_subjects=self._filters),
            stream=JStream(subjects.STREAM, declare=False),
            pull_sub=PullSub(batch_size=self._batch, timeout=FETCH_TIMEOUT_S),
            decoder=_as_bytes,
            no_reply=True,
        )
        subscriber(self._consume)

    async def _healthy(self, client: Client) -> bool:
        """Whether the consumer is there and moves when there is something to move for."""
        if time.monotonic() < self._info_at:
            return True
        self._info_at = time.monotonic() + INFO_S
        try:
            info = await client.jetstream(timeout=REQUEST_TIMEOUT_S).consumer_info(subjects.STREAM, self.durable)
        except NotFoundError:
            return False
        idle = self._active == 0 and self._seen == self._seen_before
        self._seen_before = self._seen
        return not (idle and info.num_pending)

    async def _consume(self, body: bytes, message: NatsMessage) -> None:
        started = time.monotonic()
        self._active += 1
        self._seen += 1
        try:
            outcome = await self._handle(body, message)
        finally:
            self._active -= 1
        DURATION.labels(self.durable, outcome).observe(time.monotonic() - started)

    async def _handle(self, body: bytes, message: NatsMessage) -> str:
        try:
            recorded = from_message(message.headers, body)
            event = recorded.event()
        except (KeyError, ValueError, UnknownEventType, msgspec.MsgspecError) as error:
            return await self._refuse(message, f"not understood: {error}")
        try:
            await self._held(recorded, event, message)
        except Exception as error:  # noqa: BLE001 (whatever it was, the message must be given back)
            _log.exception("broker.command_failed", consumer=self.durable, type=recorded.type, error=str(error))
            await message.nack(delay=_nack_delay_s(message))
            return "failed"
        await message.ack()
        return "done"

    async def _held(self, recorded: Recorded, event: Event, message: NatsMessage) -> None:
        """Runs the handler; while the log is away, again and again."""
        deadline = time.monotonic() + HOLD_S
        delay_s = NACK_MIN_S
        while True:
            try:
                with processing(
                    f"process {recorded.type}",
                    recorded.meta,
                    age_s=time.time() - recorded.recorded_at,
                    attributes={
                        "messaging.system": "nats",
                        "messaging.operation.name": "process",
                        "messaging.operation.type": "process",
                        "messaging.destination.template": subjects.event_subject(recorded.type, "{id}"),
                        "messaging.consumer.group.name": self.durable,
                        "messaging.message.id": recorded.event_id,
                    },
                ):
                    await self._handler(recorded, event)
            except LogUnavailable:
                if time.monotonic() > deadline:
                    raise
                await message.in_progress()
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311
                delay_s = min(delay_s * 2, HOLD_RETRY_MAX_S)
            else:
                return

    async def _refuse(self, message: NatsMessage, reason: str) -> str:
        """Never again: kept as a dead letter first, so that it is not lost should that fail."""
        _log.error("broker.command_refused", consumer=self.durable, reason=reason)
        position = message.raw_message.metadata.sequence.stream
        try:
            await record_dead_letter(self._pool, consumer=self.durable, position=position, reason=reason)
        except LogUnavailable:
            await message.nack(delay=_nack_delay_s(message))
            return "failed"
        DEAD_LETTERS.labels(self.durable).inc()
        await message.reject()
        return "refused"

    async def _on_given_up(self, advisory: Msg) -> None:
        """NATS tells (once, and without guarantee) that it will not deliver a message again."""
        with contextlib.suppress(ValueError, KeyError):
            position = int(json.loads(advisory.data)["stream_seq"])
            reason = f"failed {MAX_DELIVER} times"
            await record_dead_letter(self._pool, consumer=self.durable, position=position, reason=reason)
            DEAD_LETTERS.labels(self.durable).inc()
            _log.error("broker.command_given_up", consumer=self.durable, position=position)


class Notifications(_Session, Generic[T]):
    """Core NATS messages of one type: at most once."""

    def __init__(
        self,
        bus: Bus,
        *,
        subject: str,
        payload: type[T],
        handler: Callable[[T], Awaitable[None]],
        queue: str = "",
    ) -> None:
        """`payload`: what the JSON body is. `queue`: instances that share it share the messages."""
        super().__init__(bus)
        self.subject = subject
        self._queue = queue
        self._decoder = msgspec.json.Decoder(payload)
        self._handler = handler

    async def _declare(self, _client: Client, broker: SharedBroker) -> None:
        broker.subscriber(self.subject, queue=self._queue, decoder=_as_bytes, no_reply=True)(self._consume)

    async def _consume(self, body: bytes) -> None:
        started = time.monotonic()
        outcome = "done"
        try:
            await self._handler(self._decoder.decode(body))
        except msgspec.MsgspecError as error:
            outcome = "refused"
            _log.warning("broker.notification_refused", subject=self.subject, reason=str(error))
        except Exception:  # noqa: BLE001 (at most once: there is nobody to give it back to)
            outcome = "failed"
            _log.exception("broker.notification_failed", subject=self.subject)
        DURATION.labels(self.subject, outcome).observe(time.monotonic() - started)


async def _as_bytes(message: NatsMessage) -> bytes:
    return bytes(message.body)


def _nack_delay_s(message: NatsMessage) -> float:
    """Grows with the deliveries, with jitter; without a delay NATS would deliver again at once, for ever."""
    deliveries = int(message.raw_message.metadata.num_delivered or 1)
    return float(min(NACK_MAX_S, NACK_MIN_S * 2**deliveries) * random.uniform(0.5, 1.0))  # noqa: S311
