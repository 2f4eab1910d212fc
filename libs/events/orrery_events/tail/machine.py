"""The arithmetic of a tail, without I/O and without a clock.

The machine stands at `position`: every event up to there has been handed out to be applied, in the order of the log,
and none after it. Only category sequences decide. A message fits when the sequences it was written at (its own, and
those of the other followed categories) are exactly one step from ours; otherwise something before it is missing, it
waits, and the log is read from `position` on. Rows of the log are gapless by position and therefore prove themselves.

All times are monotonic seconds given by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from ..heartbeat import Heartbeat
from ..recorded import Recorded

Mode = Literal["jetstream", "pg_poll", "stale"]

HEARTBEAT_LOST_S = 3.0
"""Without a heartbeat for so long, Postgres is polled."""
CONSUMER_LOST_S = 3.0
"""Without a message or an idle heartbeat of JetStream for so long, the consumer is made anew."""
BEHIND_GRACE_S = 0.3
"""A heartbeat may overtake the messages it speaks of; after this they count as lost."""
POLL_S = 0.5
CHECK_S = 30.0
"""Even when all looks fine, the heads are compared with Postgres this often."""
BUFFER_MAX = 10_000
"""Messages that wait for a gap to be filled; more are dropped and read from the log later."""
REBUILD_BEHIND = 100_000
"""Further behind than this, a rebuild from `es.latest` is cheaper than reading on."""
FUTILE_READS_MAX = 3
READ_LIMIT = 1000
"""Rows that the shell reads at once; fewer means that the log's end was reached."""


class Step(msgspec.Struct):
    """What the shell must do now, in this order."""

    apply: list[Recorded] = msgspec.field(default_factory=list)
    rebuild: str = ""
    """Why the state must be built anew."""
    read: bool = False
    """Read the log from `position` on and hand the rows to `on_rows`."""
    poll: bool = False
    """Read the head and what follows `position` from Postgres and hand it to `on_log` (or call `on_poll_failed`)."""
    consume: bool = False
    """Make the JetStream consumer anew, from `position + 1`."""


class Target(msgspec.Struct, frozen=True):
    """A head that was seen and must be reached."""

    position: int
    seqs: Mapping[str, int]
    at: float
    repair_at: float


class TailMachine:
    """State of one tail between two rebuilds."""

    def __init__(
        self,
        categories: Iterable[str],
        *,
        epoch: int,
        position: int,
        seqs: Mapping[str, int],
        now: float,
        jitter: Callable[[], float],
    ) -> None:
        """`seqs`: category sequences at `position`. `jitter`: numbers in [0, 1)."""
        self.categories = frozenset(categories)
        self.epoch = epoch
        self.position = position
        self.seqs = {category: seqs.get(category, 0) for category in self.categories}
        self.proof_at = now
        """When it was last proven that nothing was missing."""
        self.gaps = 0
        """How often something was missing from what JetStream brought."""
        self.known_position = position
        """The highest head that anybody told us of."""
        self._jitter = jitter
        self._created = ""
        self._heartbeat_at = now
        self._poll_ok_at = now
        self._consumer_at = now
        self._next_poll_at = now + self._spread(CHECK_S)
        self._was_fed = True
        self._reading = False
        self._read_not_before = now
        self._polling = False
        self._futile = 0
        self._target: Target | None = None
        self._buffer: dict[int, tuple[Recorded, Mapping[str, int]]] = {}

    def distrust(self, age_s: float, now: float) -> None:
        """Where it stands was the head `age_s` ago, and nothing was heard of since: Postgres is asked first."""
        self.proof_at = now - age_s
        self._heartbeat_at = self._poll_ok_at = now - HEARTBEAT_LOST_S - BEHIND_GRACE_S
        self._next_poll_at = now
        self._was_fed = False

    def mode(self, now: float) -> Mode:
        """`jetstream`: fed by it and told of the head. `pg_poll`: reads Postgres. `stale`: neither answers."""
        if now - self._heartbeat_at <= HEARTBEAT_LOST_S:
            return "jetstream"
        return "pg_poll" if now - self._poll_ok_at <= HEARTBEAT_LOST_S else "stale"

    @property
    def lag(self) -> int:
        return max(0, self.known_position - self.position)

    def on_message(self, recorded: Recorded, heads: Mapping[str, int], now: float) -> Step:
        """A relayed event. `heads`: category sequences of all categories as of its position."""
        self._consumer_at = now
        if recorded.epoch != self.epoch:
            # A message of an older epoch comes from a stream that is about to be replaced.
            return Step(rebuild="the log's epoch changed") if recorded.epoch > self.epoch else Step()
        if recorded.position <= self.position:
            return Step()
        self.known_position = max(self.known_position, recorded.position)
        if not self._buffer and self._fits(recorded, heads):
            step = Step(apply=self._take(recorded))
            self._prove()
            return step
        if not self._buffer:
            self.gaps += 1
        if len(self._buffer) < BUFFER_MAX:
            self._buffer[recorded.position] = (recorded, heads)
        step = Step(apply=self._drain())
        self._prove()
        if self._buffer:
            self._want_read(step, now)
        return step

    def on_malformed(self, now: float) -> Step:
        """A message that the relay did not write: whatever it means, Postgres knows."""
        self._consumer_at = now
        return self._want_poll(Step())

    def on_consumer_alive(self, now: float) -> None:
        """JetStream's idle heartbeat, or a consumer that was just made."""
        self._consumer_at = now

    def on_bus_lost(self, now: float) -> None:
        """There is no connection to NATS: no need to wait for heartbeats that cannot come."""
        self._heartbeat_at = min(self._heartbeat_at, now - HEARTBEAT_LOST_S - BEHIND_GRACE_S)

    def on_heartbeat(self, heartbeat: Heartbeat, now: float) -> Step:
        if heartbeat.epoch < self.epoch:
            return Step()
        if heartbeat.epoch > self.epoch:
            return Step(rebuild="the log's epoch changed")
        self._heartbeat_at = now
        step = Step(consume=bool(self._created) and heartbeat.created != self._created)
        self._created = heartbeat.created
        self._see(Target(heartbeat.position, heartbeat.categories, now, now + BEHIND_GRACE_S))
        return step

    def on_log(self, epoch: int, position: int, rows: Sequence[Recorded], *, asked_at: float, now: float) -> Step:
        """The head and, of the same moment, the rows after `self.position` as it was then; at most READ_LIMIT of them,
        gapless, all categories."""
        self._polling = False
        self._poll_ok_at = now
        if epoch != self.epoch:
            return Step(rebuild="the log's epoch changed")
        if position - self.position > REBUILD_BEHIND:
            return Step(rebuild=f"{position - self.position} events behind")
        self.known_position = max(self.known_position, position)
        step = self._advance(rows)
        if step.rebuild:
            return step
        if self.position >= position:
            self.proof_at = max(self.proof_at, asked_at)
        if self._buffer or self.position < position:
            self._want_read(step, now)
        return step

    def on_poll_failed(self) -> None:
        self._polling = False

    def on_rows(self, rows: Sequence[Recorded], now: float) -> Step:
        """The log's rows after some position at or before ours, gapless, all categories."""
        self._reading = False
        before = self.position
        step = self._advance(rows)
        if step.rebuild:
            return step
        self._poll_ok_at = now
        self._futile = 0 if self.position > before else self._futile + 1
        if self._futile >= FUTILE_READS_MAX:
            # The waiting messages speak of positions that Postgres does not have. They are not ours.
            self._buffer.clear()
            self._futile = 0
        if self._buffer or len(rows) >= READ_LIMIT:
            self._want_read(step, now)
        return step

    def _advance(self, rows: Sequence[Recorded]) -> Step:
        step = Step()
        for recorded in rows:
            if recorded.position <= self.position:
                continue
            if recorded.epoch != self.epoch:
                step.rebuild = "the log's epoch changed"
                return step
            followed = recorded.category in self.categories
            if recorded.position != self.position + 1 or (
                followed and recorded.category_seq != self.seqs[recorded.category] + 1
            ):
                step.rebuild = f"the log does not go on from position {self.position}"
                return step
            step.apply += self._take(recorded)
        step.apply += self._drain()
        self._prove()
        return step

    def on_read_failed(self, now: float) -> None:
        self._reading = False
        self._read_not_before = now + self._spread(POLL_S)

    def on_tick(self, now: float) -> Step:
        """To be called several times a second."""
        step = self._repair(now)
        fed = now - self._heartbeat_at <= HEARTBEAT_LOST_S
        if step.read and fed and not self._buffer:
            self.gaps += 1
        if self._was_fed and not fed:
            # Everybody loses the heartbeat at the same moment; not everybody should ask Postgres at once.
            self._next_poll_at = min(self._next_poll_at, now + POLL_S * self._jitter())
        self._was_fed = fed
        if now >= self._next_poll_at:
            self._next_poll_at = now + self._spread(CHECK_S if fed else POLL_S)
            self._want_poll(step)
        if now - self._consumer_at > CONSUMER_LOST_S:
            self._consumer_at = now
            step.consume = True
        return step

    def _spread(self, seconds: float) -> float:
        return seconds * (0.75 + 0.5 * self._jitter())

    def _fits(self, recorded: Recorded, heads: Mapping[str, int]) -> bool:
        """Everything before it that we follow has been applied."""
        if heads.get(recorded.category) != recorded.category_seq:
            return False
        seqs = self.seqs
        for category in self.categories:
            expected = seqs[category] + 1 if category == recorded.category else seqs[category]
            if heads.get(category, 0) != expected:
                return False
        return True

    def _take(self, recorded: Recorded) -> list[Recorded]:
        self.position = recorded.position
        if recorded.category not in self.categories:
            return []
        self.seqs[recorded.category] = recorded.category_seq
        return [recorded]

    def _drain(self) -> list[Recorded]:
        """Takes what fits from the waiting messages, in order."""
        taken: list[Recorded] = []
        for position in sorted(self._buffer):
            recorded, heads = self._buffer[position]
            if position > self.position:
                if not self._fits(recorded, heads):
                    break
                taken += self._take(recorded)
            del self._buffer[position]
        return taken

    def _see(self, target: Target) -> None:
        self.known_position = max(self.known_position, target.position)
        old = self._target
        if old is not None:
            if target.position < old.position:
                return
            # What was missing then is missing still: the clock of the repair goes on.
            target = Target(target.position, target.seqs, target.at, min(target.repair_at, old.repair_at))
        self._target = target
        self._prove()

    def _prove(self) -> None:
        target = self._target
        if target is None:
            return
        if all(self.seqs[category] >= target.seqs.get(category, 0) for category in self.categories):
            self.position = max(self.position, target.position)
            self.proof_at = max(self.proof_at, target.at)
            self._target = None

    def _repair(self, now: float) -> Step:
        target = self._target
        if self._buffer or (target is not None and now >= target.repair_at):
            return self._want_read(Step(), now)
        return Step()

    def _want_read(self, step: Step, now: float) -> Step:
        if not self._reading and now >= self._read_not_before:
            self._reading = True
            step.read = True
        return step

    def _want_poll(self, step: Step) -> Step:
        if not self._polling:
            self._polling = True
            step.poll = True
        return step
