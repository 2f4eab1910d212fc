"""The relay: the one publisher into the stream.

There is no cursor. The stream's last sequence is the position reached, and every publish demands that it still is.
Whatever goes wrong, the answer is the same: look at the stream again and go on from what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator

import asyncpg
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import StreamInfo

from .. import subjects
from ..bus import Bus
from ..errors import LogUnavailable
from ..heartbeat import Heartbeat, encode_heartbeat
from ..log import EventLog
from ..quick_client import QuickClient
from ..recorded import Recorded
from ..stream import MAX_BYTES, Owner, find_stream
from ..tasks import end_tasks
from . import metrics
from .chores import Chores
from .leader import Leadership
from .publisher import BATCH_MAX, Message, Overloaded, Publisher, WrongLastSequence, message_of
from .settle import Diverged, Settled, Settler

POLL_S = 0.05
BATCH_BYTES_MAX = 4 * 2**20
HEARTBEAT_S = 1.0
LOOK_S = 1.0
"""How often the stream is looked at while all seems well: a wipe or somebody else's publish shows within this."""
REQUEST_TIMEOUT_S = 5.0
RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
DIVERGED_RETRY_S = 2.0

_HEADS_AT = """
SELECT h.category, CASE WHEN h.position <= $1 THEN h.seq ELSE coalesce(
         (SELECT e.category_seq FROM es.events e WHERE e.category = h.category AND e.position <= $1
          ORDER BY e.category_seq DESC LIMIT 1), 0) END AS seq
FROM es.category_head h
"""

_log = structlog.get_logger("orrery.relay")
_LOG_ERRORS = (LogUnavailable, asyncpg.PostgresError, asyncpg.InterfaceError)


class Relay:
    """Run as several replicas; one leads. `run` returns only when cancelled and survives the loss of either side."""

    def __init__(
        self,
        log: EventLog,
        pool: asyncpg.Pool,
        bus: Bus,
        *,
        database_url: str,
        name: str,
        replicas: int = 1,
        max_bytes: int = MAX_BYTES,
        traced: bool = False,
    ) -> None:
        """`database_url`: a direct connection for the leader's lock. `name`: this instance, for the heartbeat.
        `traced`: somebody collects spans."""
        self.name = name
        self.leading = False
        self.diverged = ""
        """Why nothing is relayed until an operator decides; empty normally."""
        self.last_seq = 0
        """The stream's last sequence, as far as this instance knows."""
        self.lag = 0
        """Events in the log that were not on the stream at the last heartbeat."""
        self._events = log
        self._pool = pool
        self._bus = bus
        self._traced = traced
        self._database_url = database_url
        self._settler = Settler(log, replicas=replicas, max_bytes=max_bytes)
        self._chores = Chores(log, pool)
        self._settled: Settled | None = None
        """Set while the stream is known to be right, which is when heartbeats are sent."""
        self._news = asyncio.Event()
        self._complained = ""
        self._last_id = ""

    async def run(self) -> None:
        """Waits to lead, leads, and waits again when the lock is lost."""
        nudges = await self._bus.subscribe(subjects.NUDGE, self._on_nudge, inline=True)
        try:
            while True:
                leadership = Leadership(self._database_url)
                try:
                    await leadership.acquire()
                    _log.info("relay.leading", relay=self.name)
                    await self._lead(leadership)
                except (*_LOG_ERRORS, OSError) as error:
                    self._complain("relay.not_leading", error)
                finally:
                    self.leading, self._settled = False, None
                    metrics.LEADING.set(0)
                    await leadership.release()
                await asyncio.sleep(random.uniform(0.2, 1.0))  # noqa: S311
        finally:
            await nudges.unsubscribe()

    async def _lead(self, leadership: Leadership) -> None:
        """Ends, by an exception, when the lock is lost."""
        self.leading = True
        metrics.LEADING.set(1)
        self._chores.begin()
        tasks = [
            asyncio.create_task(leadership.hold(), name="relay-hold"),
            asyncio.create_task(self._forever(self._copy), name="relay-copy"),
            asyncio.create_task(self._forever(self._beat), name="relay-heartbeat"),
            asyncio.create_task(self._forever(self._chores.run), name="relay-chores"),
        ]
        try:
            await tasks[0]
        finally:
            await end_tasks(*tasks)

    async def _forever(self, run: Callable[[], Awaitable[None]]) -> None:
        """Runs it again and again; after errors with growing delays."""
        delay_s = RETRY_MIN_S
        while True:
            try:
                await run()
                delay_s = RETRY_MIN_S
                continue
            except (WrongLastSequence, Overloaded, nats.errors.Error, *_LOG_ERRORS, OSError) as error:
                self._complain("relay.retry", error)
            except Exception:  # noqa: BLE001 (whatever it was, the relay must go on)
                _log.exception("relay.failed")
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    # The copying

    async def _copy(self) -> None:
        """Settles the stream and publishes what follows. Returns when the stream must be looked at again."""
        client = self._bus.client
        if client is None:
            await self._bus.wait_connected(HEARTBEAT_S)
            return
        js = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        try:
            settled = await self._settler.settle(js)
        except Diverged as error:
            self._diverge(str(error))
            await asyncio.sleep(DIVERGED_RETRY_S)
            return
        self._diverge("")
        try:
            await self._follow(client, js, settled)
        except WrongLastSequence as error:
            _log.info("relay.wrong_last_sequence", answer=str(error), expected=self.last_seq)
            await asyncio.sleep(RETRY_MIN_S * random.random())  # noqa: S311
        finally:
            self._settled = None

    async def _follow(self, client: QuickClient, js: JetStreamContext, settled: Settled) -> None:
        async with Publisher.on(client, traced=self._traced) as publisher:
            await self._publish_all(client, js, settled, publisher)

    async def _publish_all(
        self, client: QuickClient, js: JetStreamContext, settled: Settled, publisher: Publisher
    ) -> None:
        self.last_seq = settled.last_seq
        heads = dict(await self._pool.fetch(_HEADS_AT, settled.last_seq))
        self._settled, self._complained = settled, ""
        loop = asyncio.get_running_loop()
        look_at = loop.time() + LOOK_S
        self._last_id = ""
        while self._bus.client is client and self._settled is settled:
            self._news.clear()
            rows = await self._rows_after(settled.owner.epoch)
            if rows is None:
                return
            if rows:
                if rows[0].position != self.last_seq + 1:
                    reason = f"the log goes on at {rows[0].position}, not at {self.last_seq + 1}"
                    await self._settler.recreate(js, rows[0].position, reason)
                    return
                for messages in _batches(rows, heads):
                    await publisher.publish(messages)
                    self.last_seq = messages[-1].position
                metrics.RELAYED.inc(len(rows))
                metrics.POSITION.set(self.last_seq)
            if loop.time() >= look_at:
                look_at = loop.time() + LOOK_S
                info = await find_stream(js)
                if info is None or info.state.last_seq != self.last_seq or _created(info) != settled.created:
                    return
            if len(rows) < BATCH_MAX:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._news.wait()

    async def _rows_after(self, epoch: int) -> list[Recorded] | None:
        """What follows the last published row. None: this is not the Postgres that it was.

        The row that was published last is read again: should it have become another (a failover behind our back), what
        follows must not be put on top of what preceded.
        """
        rows = await self._events.read_all(after_position=max(0, self.last_seq - 1), limit=BATCH_MAX + 1)
        if rows and rows[0].epoch != epoch:
            return None
        last = rows.pop(0) if rows and rows[0].position == self.last_seq else None
        if self._last_id and (last is None or last.event_id != self._last_id):
            return None
        newest = rows[-1] if rows else last
        self._last_id = newest.event_id if newest else ""
        return rows

    async def _on_nudge(self, message: Msg) -> None:
        with contextlib.suppress(ValueError):
            if int(message.data) > self.last_seq:
                self._news.set()

    # The heartbeat

    async def _beat(self) -> None:
        """One heartbeat, from Postgres. None while nothing is relayed: without it consumers read Postgres."""
        await asyncio.sleep(HEARTBEAT_S)
        settled = self._settled
        if settled is None:
            return
        relayed = self.last_seq
        head = await self._events.head()
        if Owner(head.system_id, head.epoch) != settled.owner or head.position < relayed:
            # Not ours to judge here: the stream is looked at again.
            self._settled = None
            self._news.set()
            return
        self.lag = max(0, head.position - self.last_seq)
        metrics.LAG.set(self.lag)
        heartbeat = Heartbeat(
            log_id=head.system_id,
            epoch=head.epoch,
            position=head.position,
            categories={category: at.seq for category, at in head.categories.items()},
            created=settled.created,
            relayed=relayed,
            relay=self.name,
        )
        await self._bus.publish(subjects.HEAD, encode_heartbeat(heartbeat))

    # What an operator reads

    def _diverge(self, reason: str) -> None:
        if reason and reason != self.diverged:
            _log.error("relay.diverged", reason=reason)
        elif self.diverged and not reason:
            _log.info("relay.healed")
        self.diverged = reason
        metrics.DIVERGED.set(1 if reason else 0)

    def _complain(self, event: str, error: Exception) -> None:
        """Says the same thing once, not twenty times a second."""
        reason = str(error) or type(error).__name__
        metrics.RETRIES.labels(type(error).__name__).inc()
        if reason != self._complained:
            _log.warning(event, reason=reason)
        self._complained = reason


def _batches(rows: list[Recorded], heads: dict[str, int]) -> Iterator[list[Message]]:
    """The rows as messages, in batches of bounded size. Moves `heads` along."""
    batch: list[Message] = []
    size = 0
    for row in rows:
        if batch and size + len(row.data) > BATCH_BYTES_MAX:
            yield batch
            batch, size = [], 0
        heads[row.category] = row.category_seq
        batch.append(message_of(row, heads))
        size += len(row.data)
    if batch:
        yield batch


def _created(info: StreamInfo) -> str:
    return info.created.isoformat() if info.created else ""
