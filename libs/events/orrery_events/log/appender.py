"""Group commit: one flusher per process turns whatever is queued into one `es.append` call.

There is no linger: while one call is under way the next batch gathers by itself, so a lone append costs one round trip
and a storm costs few. The row lock that orders the log is taken and released inside that one statement.

A connection that breaks leaves the outcome unknown. The flusher then asks again with the same command ids, for at most
`RETRY_S`: what was written answers `duplicate` with its original positions, what was not is written now.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import asyncpg
import msgspec
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Histogram

from ..errors import AppendQueueFull, Conflict, LogUnavailable
from ..ids import uuid7
from ..recorded import Meta
from ..registry import Event, encode
from .pool import GONE

COMMANDS_PER_BATCH_MAX = 200
EVENTS_PER_BATCH_MAX = 1_000
BYTES_PER_BATCH_MAX = 2**20
QUEUE_MAX = 5_000
"""Commands waiting in this process; one more is refused with AppendQueueFull."""
RETRY_S = 5.0
"""How long a batch is retried while Postgres does not answer."""
RETRY_PAUSE_S = 0.1
ATTEMPT_TIMEOUT_S = 6.0

APPEND_SQL = """
SELECT cmd_no, status, stream_version, first_position, last_position FROM es.append(
  $1::uuid[], $2::text[], $3::bigint[], $4::int[],
  $5::int[], $6::uuid[], $7::text[], $8::text[], $9::smallint[], $10::text[], $11::boolean[],
  $12::bytea[], $13::jsonb[])
"""

_duration = Histogram(
    "orrery_event_append_duration_seconds",
    "From the call of append to its answer.",
    ["category"],
    buckets=(0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
_appended = Counter("orrery_events_appended", "Events appended by this process.", ["type"])
_conflicts = Counter("orrery_event_conflicts", "Appends refused because the stream had moved on.", ["category"])
_tracer = trace.get_tracer("orrery.log")
_meta_encoder = msgspec.json.Encoder()


class Appended(msgspec.Struct, frozen=True, kw_only=True):
    """Where a command's events stand in the log."""

    first_position: int
    last_position: int
    stream_version: int
    duplicate: bool = False
    """An earlier append with the same command id had already written them."""


class _Command(msgspec.Struct, kw_only=True):
    command_id: uuid.UUID
    stream_id: str
    expected_version: int | None
    events: list[tuple[Event, bytes]]
    meta: str
    done: asyncio.Future[Appended]
    size: int


class Appender:
    """The queue and its flusher."""

    def __init__(
        self, pool: asyncpg.Pool, *, producer: str, nudge: Callable[[int], Awaitable[None]] | None = None
    ) -> None:
        self._pool = pool
        self._producer = producer
        self._nudge = nudge
        self._queue: deque[_Command] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="appender")

    async def close(self) -> None:
        """Writes what is queued, then ends. Whatever cannot be written by then is answered with LogUnavailable."""
        self._closing = True
        self._wake.set()
        task, self._task = self._task, None
        if task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._fail(self._queue, LogUnavailable("this process is stopping: retry on another replica"))
        self._queue.clear()

    async def append(
        self,
        stream_id: str,
        events: Sequence[Event],
        *,
        expected_version: int | None,
        command_id: uuid.UUID | None,
        meta: Meta,
    ) -> Appended:
        """See `EventLog.append`."""
        if not events:
            raise ValueError("an append needs at least one event")
        if len(events) > EVENTS_PER_BATCH_MAX:
            raise ValueError(f"an append takes at most {EVENTS_PER_BATCH_MAX} events: split it")
        if self._closing or self._task is None:
            raise LogUnavailable("this process is stopping: retry on another replica")
        if len(self._queue) >= QUEUE_MAX:
            raise AppendQueueFull
        first = events[0]
        began = time.perf_counter()
        with _tracer.start_as_current_span(f"append {first.TYPE}", kind=SpanKind.PRODUCER) as span:
            context = span.get_span_context()
            traceparent = ""
            if context.is_valid:
                traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
            encoded = [(event, encode(event)) for event in events]
            meta = msgspec.structs.replace(meta, producer=self._producer, traceparent=traceparent)
            command = _Command(
                command_id=command_id or uuid7(),
                stream_id=stream_id,
                expected_version=expected_version,
                events=encoded,
                meta=_meta_encoder.encode(meta).decode(),
                done=asyncio.get_running_loop().create_future(),
                size=sum(len(data) for _, data in encoded),
            )
            self._queue.append(command)
            self._wake.set()
            try:
                appended = await command.done
            except Conflict:
                _conflicts.labels(first.CATEGORY).inc()
                raise
            span.set_attribute("orrery.event.sequence", appended.last_position)
        _duration.labels(first.CATEGORY).observe(time.perf_counter() - began)
        if not appended.duplicate:
            for event in events:
                _appended.labels(event.TYPE).inc()
        return appended

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = self._take()
                try:
                    await self._write(batch)
                except BaseException as error:
                    lost = LogUnavailable(f"the append was interrupted ({type(error).__name__}): retry it")
                    self._fail(batch, lost)
                    if not isinstance(error, Exception):
                        raise
            if self._closing:
                return

    def _take(self) -> list[_Command]:
        """The next batch, in order; a second command of one stream or one id waits for the next."""
        batch: list[_Command] = []
        seen: set[object] = set()
        deferred: list[_Command] = []
        events = size = 0
        while self._queue and len(batch) < COMMANDS_PER_BATCH_MAX:
            command = self._queue[0]
            if command.done.done():
                self._queue.popleft()
                continue
            if batch and (
                events + len(command.events) > EVENTS_PER_BATCH_MAX or size + command.size > BYTES_PER_BATCH_MAX
            ):
                break
            self._queue.popleft()
            if command.stream_id in seen or command.command_id in seen:
                deferred.append(command)
            else:
                batch.append(command)
                events += len(command.events)
                size += command.size
            seen |= {command.stream_id, command.command_id}
        self._queue.extendleft(reversed(deferred))
        return batch

    async def _write(self, batch: list[_Command]) -> None:
        if not batch:
            return
        give_up_at = time.monotonic() + RETRY_S
        attempts = 0
        while True:
            attempts += 1
            try:
                rows = await self._call(batch)
                break
            except GONE as error:
                if time.monotonic() >= give_up_at or self._pool.is_closing():
                    reason = f"did not answer for {RETRY_S:.0f} s ({type(error).__name__})"
                    unavailable = LogUnavailable(f"the event log (Postgres) {reason}: retry soon")
                    unavailable.__cause__ = error
                    self._fail(batch, unavailable)
                    return
                await asyncio.sleep(RETRY_PAUSE_S)
            except asyncpg.PostgresError as error:
                await self._isolate(batch, error)
                return
        self._answer(batch, rows, first_attempt=attempts == 1)
        await self._tell(rows)

    async def _isolate(self, batch: list[_Command], error: asyncpg.PostgresError) -> None:
        """Postgres refused the batch. One command is at fault: each is tried alone, so that the others are not lost."""
        if len(batch) == 1:
            self._fail(batch, error)
            return
        for command in batch:
            await self._write([command])

    async def _call(self, batch: list[_Command]) -> list[asyncpg.Record]:
        flat = [
            (number, uuid.uuid5(command.command_id, str(index)), event, data, command.meta)
            for number, command in enumerate(batch, 1)
            for index, (event, data) in enumerate(command.events)
        ]
        async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
            rows: list[asyncpg.Record] = await self._pool.fetch(
                APPEND_SQL,
                [c.command_id for c in batch],
                [c.stream_id for c in batch],
                [c.expected_version for c in batch],
                [len(c.events) for c in batch],
                [number for number, *_ in flat],
                [event_id for _, event_id, *_ in flat],
                [event.CATEGORY for _, _, event, _, _ in flat],
                [event.TYPE for _, _, event, _, _ in flat],
                [event.VERSION for _, _, event, _, _ in flat],
                [event.compaction_key() for _, _, event, _, _ in flat],
                [event.TOMBSTONE for _, _, event, _, _ in flat],
                [data for _, _, _, data, _ in flat],
                [meta for *_, meta in flat],
            )
        return rows

    def _answer(self, batch: list[_Command], rows: list[asyncpg.Record], *, first_attempt: bool) -> None:
        for command, row in zip(batch, rows, strict=True):
            if command.done.done():
                continue
            if row["status"] == "conflict":
                command.done.set_exception(Conflict(command.stream_id, command.expected_version, row["stream_version"]))
                continue
            command.done.set_result(
                Appended(
                    first_position=row["first_position"],
                    last_position=row["last_position"],
                    stream_version=row["stream_version"],
                    # On a second attempt "duplicate" is most likely our own first one, whose answer was lost.
                    duplicate=row["status"] == "duplicate" and first_attempt,
                )
            )

    async def _tell(self, rows: list[asyncpg.Record]) -> None:
        written = [row["last_position"] for row in rows if row["status"] == "ok"]
        if self._nudge is not None and written:
            # Only a hint: the relay looks by itself twenty times a second.
            with contextlib.suppress(Exception):
                await self._nudge(max(written))

    @staticmethod
    def _fail(commands: Sequence[_Command] | deque[_Command], error: Exception) -> None:
        for command in commands:
            if not command.done.done():
                command.done.set_exception(error)
