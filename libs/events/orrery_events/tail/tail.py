"""The shell around `TailMachine`: everything that waits for Postgres, NATS or the clock."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

import asyncpg
import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from .. import subjects
from ..bus import Bus, Subscription
from ..errors import LogUnavailable, UnknownEventType
from ..heartbeat import HEADS_HEADER, decode_heads, decode_heartbeat
from ..projection import Projection
from ..recorded import Recorded, from_message
from ..registry import Event
from ..tasks import end_tasks
from . import metrics
from .consumer import PushConsumer
from .machine import READ_LIMIT, Mode, Step, TailMachine
from .waiting import Positions

if TYPE_CHECKING:
    from ..log import EventLog

TICK_S = 0.1
WAIT_PATIENCE_S = 0.03
"""How long somebody who waits for a position leaves it to NATS before Postgres is asked."""
READ_TIMEOUT_S = 5.0
REBUILD_TIMEOUT_S = 300.0
REBUILD_RETRY_MIN_S = 0.2
REBUILD_RETRY_MAX_S = 5.0
REBUILD_SPREAD_S = 2.0
"""An epoch change makes every tail rebuild; they begin within this time of each other."""
CONSUME_RETRY_S = 0.5
RESTART_S = 1.0
CATCHERS_MAX = 10_000

P = TypeVar("P", bound=Projection)
Watcher = Callable[[Recorded, Event], None]

_log = structlog.get_logger("orrery.tail")
_READ_ERRORS = (LogUnavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


class Tail(Generic[P]):
    """A projection that follows the log.

    `state` is what readers use; it is replaced as a whole by a rebuild and changed in place by single events, always
    between two awaits. It stays readable when NATS and Postgres are both away.
    """

    def __init__(
        self, log: EventLog, bus: Bus, factory: Callable[[], P], *, categories: Iterable[str], name: str
    ) -> None:
        self.state: P = factory()
        self.name = name
        self.categories = tuple(sorted(set(categories)))
        self._events = log
        self._bus = bus
        self._factory = factory
        self._machine = self._new_machine(0, 0, {})
        self._built = False
        self._fault = "start"
        """Why a rebuild is due; empty when none is."""
        self._want_read = self._want_poll = False
        self._log_work = asyncio.Event()
        self._consumer_work = asyncio.Event()
        self._consumer: PushConsumer | None = None
        self._heartbeats: Subscription | None = None
        self._ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._watchers: list[Watcher] = []
        self._rebuild_watchers: list[Callable[[], None]] = []
        self._waiting = Positions()
        self._catchers: list[asyncio.Future[int]] = []
        self._detach: Callable[[], None] | None = None
        self._gaps_counted = 0
        self._warned: set[str] = set()

    @property
    def position(self) -> int:
        """Every event up to here is in `state`."""
        return self._machine.position

    @property
    def epoch(self) -> int:
        return self._machine.epoch

    @property
    def lag(self) -> int:
        """Events between the highest head heard of and `position`."""
        return self._machine.lag

    @property
    def mode(self) -> Mode:
        return self._machine.mode(time.monotonic())

    @property
    def staleness_s(self) -> float:
        """Seconds since it was last proven that nothing was missing."""
        return max(0.0, time.monotonic() - self._machine.proof_at)

    async def start(self) -> None:
        """Rebuilds from `es.latest` (again and again while Postgres is away), then follows in the background. Returns
        when `state` is at the head seen at start."""
        self._heartbeats = await self._bus.subscribe(subjects.HEAD, self._on_heartbeat)
        self._detach = self._bus.on_connect(self._on_connect)
        self._tasks = [
            asyncio.create_task(self._forever(run), name=f"tail-{self.name}-{run.__name__.strip('_')}")
            for run in (self._work_log, self._work_consumer, self._tick)
        ]
        self._log_work.set()
        await self._ready.wait()

    async def stop(self) -> None:
        """Ends the background work. `state` stays as it is."""
        tasks, self._tasks = self._tasks, []
        await end_tasks(*tasks)
        if self._detach is not None:
            self._detach()
            self._detach = None
        if self._heartbeats is not None:
            await self._heartbeats.unsubscribe()
            self._heartbeats = None
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None
        self._waiting.cancel()
        for future in self._catchers:
            future.cancel()

    async def wait_for(self, position: int, timeout_s: float = 0.5) -> bool:
        """True as soon as every event up to `position` is in `state` (read your own writes)."""
        if self._machine.position >= position:
            return True
        patience_s = min(WAIT_PATIENCE_S, timeout_s)
        if await self._waiting.wait(position, patience_s):
            return True
        # NATS is slow or away: do not leave it to the next poll.
        self._want_poll = True
        self._log_work.set()
        return await self._waiting.wait(position, timeout_s - patience_s)

    async def catch_up(self, timeout_s: float = 0.2) -> bool:
        """Reads the head from Postgres and applies up to it. True: everything that was committed before this call is
        in `state`. False: that could not be proven in time."""
        if len(self._catchers) >= CATCHERS_MAX or not self._tasks:
            return False
        deadline = time.monotonic() + timeout_s
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._catchers.append(future)
        self._log_work.set()
        try:
            async with asyncio.timeout(timeout_s):
                head = await future
        except (TimeoutError, LogUnavailable):
            return False
        return await self.wait_for(head, max(0.0, deadline - time.monotonic()))

    def subscribe(self, callback: Watcher) -> Callable[[], None]:
        """Calls back after each live event was applied (not in a rebuild). Returns the way to end that."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    def on_rebuild(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back after `state` was replaced. Returns the way to end that."""
        self._rebuild_watchers.append(callback)
        return lambda: self._rebuild_watchers.remove(callback)

    # What comes in

    def _on_connect(self, _client: Client) -> None:
        self._consumer_work.set()

    async def _on_heartbeat(self, message: Msg) -> None:
        try:
            heartbeat = decode_heartbeat(message.data)
        except msgspec.MsgspecError:
            self._skip("malformed heartbeat", "")
            return
        if self._built:
            self._do(self._machine.on_heartbeat(heartbeat, time.monotonic()))

    def _on_event(self, message: Msg) -> None:
        if not self._built:
            return
        now = time.monotonic()
        try:
            headers = message.headers or {}
            recorded = from_message(headers, message.data)
            heads = decode_heads(headers[HEADS_HEADER])
        except (KeyError, ValueError):
            self._skip("malformed message", message.subject)
            self._do(self._machine.on_malformed(now))
            return
        self._do(self._machine.on_message(recorded, heads, now))

    def _on_consumer_alive(self) -> None:
        self._machine.on_consumer_alive(time.monotonic())

    # What follows from it

    def _do(self, step: Step) -> None:
        for recorded in step.apply:
            self._apply(recorded)
        if step.rebuild and not self._fault:
            _log.warning("tail.rebuild", tail=self.name, reason=step.rebuild, position=self._machine.position)
            self._fault = step.rebuild
        self._want_read |= step.read
        self._want_poll |= step.poll
        if step.read or step.poll or step.rebuild:
            self._log_work.set()
        if step.consume:
            self._consumer_work.set()
        self._waiting.reach(self._machine.position)

    def _apply(self, recorded: Recorded) -> None:
        event = self._fold(self.state, recorded)
        if event is None:
            return
        for watcher in self._watchers[:]:
            try:
                watcher(recorded, event)
            except Exception:  # noqa: BLE001 (a watcher's fault must not end the tail)
                _log.exception("tail.watcher_failed", tail=self.name, type=recorded.type)

    def _fold(self, state: P, recorded: Recorded) -> Event | None:
        """Applies one event. One that cannot be understood is counted and skipped: serving goes on."""
        try:
            event = recorded.event()
            state.apply(recorded, event)
        except (UnknownEventType, msgspec.MsgspecError):
            self._skip("unknown type", recorded.type)
            return None
        except Exception:  # noqa: BLE001 (a projection's fault must not end the tail)
            metrics.SKIPPED.labels(self.name, "apply failed").inc()
            _log.exception("tail.apply_failed", tail=self.name, type=recorded.type, position=recorded.position)
            return None
        return event

    def _skip(self, reason: str, what: str) -> None:
        metrics.SKIPPED.labels(self.name, reason).inc()
        if what not in self._warned and len(self._warned) < 100:
            self._warned.add(what)
            _log.warning("tail.skipped", tail=self.name, reason=reason, what=what)

    # Postgres

    async def _forever(self, run: Callable[[], Awaitable[None]]) -> None:
        while self._tasks:  # A request to NATS may swallow the cancellation.
            try:
                await run()
            except Exception:  # noqa: BLE001 (whatever it was, the tail must go on)
                _log.exception("tail.failed", tail=self.name)
                await asyncio.sleep(RESTART_S)

    async def _work_log(self) -> None:
        await self._log_work.wait()
        self._log_work.clear()
        if self._fault:
            await self._rebuild()
        if self._catchers or self._want_poll:
            await self._poll()
        while self._want_read and not self._fault:
            await self._read()

    async def _read(self) -> None:
        machine, self._want_read = self._machine, False
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                rows = await self._events.read_all(after_position=machine.position, limit=READ_LIMIT)
        except _READ_ERRORS as error:
            _log.warning("tail.read_failed", tail=self.name, reason=str(error) or type(error).__name__)
            machine.on_read_failed(time.monotonic())
            return
        self._do(machine.on_rows(rows, time.monotonic()))

    async def _poll(self) -> None:
        self._want_poll = False
        catchers, self._catchers = self._catchers, []
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                head = await self._events.head()
        except _READ_ERRORS as error:
            self._machine.on_poll_failed()
            for future in catchers:
                if not future.done():
                    future.set_exception(LogUnavailable(str(error)))
            return
        seqs = {category: at.seq for category, at in head.categories.items()}
        self._do(self._machine.on_head(head.epoch, head.position, seqs, asked_at=asked_at, now=time.monotonic()))
        if self._fault:
            # Positions of two epochs do not compare: whoever waits is answered after the rebuild.
            self._catchers += catchers
            self._log_work.set()
            return
        for future in catchers:
            if not future.done():
                future.set_result(head.position)

    async def _rebuild(self) -> None:
        """Builds a new state beside the old one and swaps. Tries until it succeeds."""
        if self._built:
            await asyncio.sleep(REBUILD_SPREAD_S * random.random())  # noqa: S311 (spreads load)
        delay_s = REBUILD_RETRY_MIN_S
        while True:
            try:
                async with asyncio.timeout(REBUILD_TIMEOUT_S):
                    await self._rebuild_once()
            except _READ_ERRORS as error:
                reason = str(error) or type(error).__name__
                _log.warning("tail.rebuild_failed", tail=self.name, reason=reason, retry_s=round(delay_s, 1))
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311
                delay_s = min(delay_s * 2, REBUILD_RETRY_MAX_S)
            else:
                return

    async def _rebuild_once(self) -> None:
        started = time.monotonic()
        state, count = self._factory(), 0
        async with self._events.snapshot(self.categories) as snapshot:
            head = snapshot.head
            async for recorded in snapshot.latest():
                self._fold(state, recorded)
                count += 1
        machine = self._new_machine(head.epoch, head.position, {c: at.seq for c, at in head.categories.items()})
        while self._built and machine.epoch == self.epoch and machine.position < self._machine.position:
            # Meanwhile the old state moved on; readers must never see time run backwards.
            rows = await self._events.read_all(after_position=machine.position, limit=READ_LIMIT)
            for recorded in machine.on_rows(rows, time.monotonic()).apply:
                self._fold(state, recorded)
            if not rows:
                break
        self.state, self._machine, self._fault, self._built = state, machine, "", True
        self._gaps_counted = 0
        duration_s = time.monotonic() - started
        metrics.REPLAY_DURATION.labels(self.name).set(duration_s)
        metrics.REPLAY_EVENTS.labels(self.name).inc(count)
        _log.info(
            "tail.rebuilt", tail=self.name, position=machine.position, events=count, duration_s=round(duration_s, 3)
        )
        self._ready.set()
        self._consumer_work.set()
        self._waiting.reach(machine.position)
        for callback in self._rebuild_watchers[:]:
            try:
                callback()
            except Exception:  # noqa: BLE001 (a watcher's fault must not end the tail)
                _log.exception("tail.rebuild_watcher_failed", tail=self.name)

    def _new_machine(self, epoch: int, position: int, seqs: dict[str, int]) -> TailMachine:
        return TailMachine(
            self.categories, epoch=epoch, position=position, seqs=seqs, now=time.monotonic(), jitter=random.random
        )

    # NATS

    async def _work_consumer(self) -> None:
        await self._consumer_work.wait()
        self._consumer_work.clear()
        client = self._bus.client
        if client is None or not self._built:
            return
        old, self._consumer = self._consumer, None
        if old is not None:
            await old.stop()
        consumer = PushConsumer(client, f"tail-{self.name}", self._on_event, self._on_consumer_alive)
        try:
            await consumer.start(self.categories, self._machine.position + 1)
        except (nats.errors.Error, OSError) as error:
            # The stream may be missing until the relay has made it; Postgres feeds us meanwhile.
            _log.debug("tail.consumer_failed", tail=self.name, reason=str(error))
            await consumer.stop()
            await asyncio.sleep(CONSUME_RETRY_S * random.uniform(0.5, 1.5))  # noqa: S311
            self._consumer_work.set()
        else:
            self._consumer = consumer
            self._on_consumer_alive()

    async def _tick(self) -> None:
        await asyncio.sleep(TICK_S)
        if not self._built:
            return
        now, machine = time.monotonic(), self._machine
        if not self._bus.connected:
            machine.on_bus_lost(now)
        self._do(machine.on_tick(now))
        gaps, self._gaps_counted = machine.gaps - self._gaps_counted, machine.gaps
        metrics.update(
            self.name,
            mode=machine.mode(now),
            position=machine.position,
            lag=machine.lag,
            staleness_s=now - machine.proof_at,
            gaps=gaps,
        )
