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
from nats.aio.msg import Msg

from .. import subjects
from ..bus import Bus, Subscription
from ..errors import LogUnavailable
from ..heartbeat import HEADS_HEADER, decode_heads, decode_heartbeat
from ..projection import Projection
from ..quick_client import QuickClient
from ..recorded import Recorded, from_message
from ..tasks import end_tasks
from . import metrics
from .consumer import AnotherLog, PushConsumer
from .folding import Folding
from .keeper import Keeper, Place
from .machine import READ_LIMIT, Mode, Step
from .rebuild import Built, from_log, new_machine
from .waiting import Positions
from .watching import Watcher, Watchers

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
_log = structlog.get_logger("orrery.tail")
_READ_ERRORS = (LogUnavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


class Tail(Generic[P]):
    """A projection that follows the log.

    `state` is what readers use; it is replaced as a whole by a rebuild and changed in place by single events, always
    between two awaits. It stays readable when NATS and Postgres are both away.
    """

    def __init__(
        self, log: EventLog, bus: Bus, factory: Callable[[], P], *, categories: Iterable[str], name: str,
        place: Place | None = None,
    ) -> None:  # fmt: skip
        """`place`: where the projection, which must then be `Snapshotted`, is kept on disk."""
        self.state: P = factory()
        self.name = name
        self.categories = tuple(sorted(set(categories)))
        self._events = log
        self._bus = bus
        self._factory = factory
        self._machine = new_machine(self.categories, 0, 0, {})
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
        self._watchers = Watchers(name)
        self._waiting = Positions()
        self._catchers: list[asyncio.Future[int]] = []
        self._detach: Callable[[], None] | None = None
        self._gaps_counted = 0
        self._folding = Folding(name)
        self._keeper = Keeper(place, name, self.categories) if place else None
        self._log_id = ""
        self._confirmed = True
        """False: the state is from disk, and whether it is of Postgres's log is not known yet."""
        self._restored_proof_at: float | None = None

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

    @property
    def restored(self) -> bool:
        """True while `state` is one from disk that neither Postgres nor NATS has confirmed since."""
        return self._restored_proof_at is not None

    async def start(self) -> None:
        """Rebuilds from `es.latest` (again and again while Postgres is away), then follows in the background. Returns
        when `state` is at the head seen at start, or is the one on disk because Postgres is away."""
        self._heartbeats = await self._bus.subscribe(subjects.HEAD, self._on_heartbeat, inline=True)
        self._detach = self._bus.on_connect(self._on_connect)
        self._tasks = [
            asyncio.create_task(self._forever(run), name=f"tail-{self.name}-{run.__name__.strip('_')}")
            for run in (self._work_log, self._work_consumer, self._tick, self._keep)
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
        if self._keeper is not None:
            await self._keeper.end(self._standing)
        self._waiting.cancel()
        for future in self._catchers:
            future.cancel()

    async def wait_for(self, position: int, timeout_s: float = 0.5, *, patience_s: float = WAIT_PATIENCE_S) -> bool:
        """True as soon as every event up to `position` is in `state` (read your own writes). `patience_s`: how long it
        is left to NATS; 0 where the answer is worth a question to Postgres."""
        if self._machine.position >= position:
            return True
        patience_s = min(patience_s, timeout_s)
        if patience_s and await self._waiting.wait(position, patience_s):
            return True
        # NATS is slow or away: do not leave it to the next poll.
        self._want_poll = True
        self._log_work.set()
        return await self._waiting.wait(position, timeout_s - patience_s)

    async def catch_up(self, timeout_s: float = 0.2) -> bool:
        """Reads the log's end from Postgres and applies it. True: everything that was committed before this call is
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
        return self._watchers.subscribe(callback)

    def on_rebuild(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back after `state` was replaced. Returns the way to end that."""
        return self._watchers.on_rebuild(callback)

    # What comes in

    def _on_connect(self, _client: QuickClient) -> None:
        self._consumer_work.set()

    async def _on_heartbeat(self, message: Msg) -> None:
        try:
            heartbeat = decode_heartbeat(message.data)
        except msgspec.MsgspecError:
            self._folding.skip("malformed heartbeat", "")
            return
        if not self._built:
            return
        if heartbeat.log_id == self._log_id:
            self._do(self._machine.on_heartbeat(heartbeat, time.monotonic()))
        else:
            # Whether it is the bus that has changed or Postgres, Postgres knows. Nothing more is taken from the stream.
            self._do(self._machine.on_malformed(time.monotonic()))
            self._consumer_work.set()

    def _on_event(self, message: Msg) -> None:
        if not self._built:
            return
        now = time.monotonic()
        try:
            headers = message.headers or {}
            recorded = from_message(headers, message.data)
            heads = decode_heads(headers[HEADS_HEADER])
        except (KeyError, ValueError):
            self._folding.skip("malformed message", message.subject)
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
        event = self._folding.apply(self.state, recorded)
        if self._keeper is not None:
            self._keeper.note(recorded)
        if event is not None:
            self._watchers.applied(recorded, event)

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
        if self._catchers or self._want_poll or (self._want_read and not self._confirmed):
            await self._poll()
        while self._want_read and self._confirmed and not self._fault:
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
                seen = await self._events.look(after_position=self._machine.position, limit=READ_LIMIT)
        except _READ_ERRORS as error:
            self._machine.on_poll_failed()
            for future in catchers:
                if not future.done():
                    future.set_exception(LogUnavailable(str(error)))
            return
        if seen.system_id != self._log_id:
            self._do(Step(rebuild="Postgres holds another log"))
        else:
            self._confirmed, now = True, time.monotonic()
            self._do(self._machine.on_log(seen.epoch, seen.position, seen.rows, asked_at=asked_at, now=now))
        if self._fault:
            # Positions of two epochs do not compare: whoever waits is answered after the rebuild.
            self._catchers += catchers
            self._log_work.set()
            return
        for future in catchers:
            if not future.done():
                future.set_result(seen.position)

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
                if not self._built and delay_s == REBUILD_RETRY_MIN_S and self._restore():
                    return
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311
                delay_s = min(delay_s * 2, REBUILD_RETRY_MAX_S)
            else:
                return

    async def _rebuild_once(self) -> None:
        def reached(epoch: int) -> int:
            # Meanwhile the old state moves on; readers must never see time run backwards.
            return self._machine.position if self._built and epoch == self.epoch else 0

        state = self._factory()
        built = await from_log(self._events, self.name, self.categories, state, self._folding, reached=reached)
        self._confirmed, self._restored_proof_at = True, None
        self._install(built)

    def _restore(self) -> bool:
        """Begins with what is on disk."""
        built = self._keeper.restore(self._factory, self._folding) if self._keeper is not None else None
        if built is None:
            return False
        self._confirmed, self._restored_proof_at = False, built.machine.proof_at
        self._install(built)
        return True

    def _install(self, built: Built[P]) -> None:
        """Readers see this state from now on."""
        self.state, self._machine, self._log_id = built.state, built.machine, built.log_id
        self._fault, self._built = "", True
        self._gaps_counted = 0
        metrics.RESTORED.labels(self.name).set(self.restored)
        if self._keeper is not None:
            self._keeper.replaced()
        self._ready.set()
        self._consumer_work.set()
        self._waiting.reach(self.position)
        self._watchers.rebuilt()

    async def _keep(self) -> None:
        if self._keeper is None:
            await asyncio.Event().wait()
        else:
            await self._keeper.run(self._standing)

    def _standing(self) -> Built[P]:
        return Built(state=self.state, machine=self._machine, log_id=self._log_id)

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
            await consumer.start(self.categories, self._machine.position + 1, log_id=self._log_id)
        except (AnotherLog, nats.errors.Error, OSError) as error:
            # The stream may be missing, or another's, until the relay has made it; Postgres feeds us meanwhile.
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
        if self._restored_proof_at is not None and machine.proof_at > self._restored_proof_at:
            _log.info("tail.restored_confirmed", tail=self.name, position=machine.position)
            self._restored_proof_at = None
        gaps, self._gaps_counted = machine.gaps - self._gaps_counted, machine.gaps
        metrics.update(self.name, machine, now, gaps=gaps, restored=self.restored)
