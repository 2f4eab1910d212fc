"""Messages lost, repeated and out of order, reads that fail: what was applied always equals the log."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orrery_events.tail import machine as module
from orrery_events.tail.machine import POLL_S
from tests.support.tailed import CATEGORIES, FOLLOWED, Log, Tailed


class LossyDelivery(RuleBasedStateMachine):
    """Messages lost, repeated and out of order; heartbeats late; reads and polls that fail; the epoch raised."""

    @initialize(start=st.integers(0, 3))
    def begin(self, start: int) -> None:
        self.limit, module.READ_LIMIT = module.READ_LIMIT, 3
        self.log = Log()
        for number in range(start):
            self.log.append(CATEGORIES[number % 3])
        self.tailed = Tailed(self.log, position=start)

    def teardown(self) -> None:
        if not hasattr(self, "tailed"):
            return
        try:
            if self.tailed.rebuild:
                self.swap()
            self.tailed.settle()
            assert not self.tailed.rebuild
            assert self.tailed.machine.position == self.log.position
            self.holds()
            assert self.tailed.now - self.tailed.machine.proof_at <= POLL_S * 2
        finally:
            module.READ_LIMIT = self.limit

    def swap(self) -> None:
        self.tailed = Tailed(self.log, now=self.tailed.now, position=self.log.position)

    @rule(categories=st.lists(st.sampled_from(CATEGORIES), min_size=1, max_size=4))
    def append(self, categories: list[str]) -> None:
        for category in categories:
            self.log.append(category)

    @precondition(lambda self: self.log.position > 0)
    @rule(data=st.data())
    def deliver_any(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(1, self.log.position))
        row = self.log.rows[position - 1]
        if row.category in FOLLOWED:
            self.tailed.deliver(row)

    @rule()
    def deliver_next(self) -> None:
        for row in self.log.rows[self.tailed.machine.position :]:
            if row.category in FOLLOWED:
                self.tailed.deliver(row)
                return

    @rule(back=st.integers(0, 5), created=st.sampled_from(["c1", "c2"]))
    def heartbeat(self, back: int, created: str) -> None:
        self.tailed.beat(max(0, self.log.position - back), created)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.4, 3.5]))
    def tick(self, seconds: float) -> None:
        self.tailed.tick(seconds)

    @precondition(lambda self: self.tailed.reading)
    @rule(works=st.booleans())
    def read(self, works: bool) -> None:
        if works:
            self.tailed.read()
        else:
            self.tailed.reading = False
            self.tailed.machine.on_read_failed(self.tailed.now)

    @precondition(lambda self: self.tailed.polling)
    @rule(works=st.booleans())
    def poll(self, works: bool) -> None:
        if works:
            self.tailed.poll()
        else:
            self.tailed.polling = False
            self.tailed.machine.on_poll_failed()

    @rule(ahead=st.integers(1, 5), category=st.sampled_from(FOLLOWED))
    def foreign(self, ahead: int, category: str) -> None:
        """Somebody publishes what is not in the log."""
        position = self.log.position + ahead
        row = Log().append(category)
        bogus = msgspec.structs.replace(row, position=position)
        self.tailed.deliver(bogus, {category: 10_000})

    @rule(keep=st.integers(0, 8))
    def restore(self, keep: int) -> None:
        """Postgres loses its tail; the epoch is raised."""
        old, self.log = self.log, self.log.truncated(min(keep, self.log.position))
        assert self.tailed.log is old
        self.tailed.log = self.log
        self.tailed.beat()
        assert self.tailed.rebuild
        self.swap()

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "tailed"):
            return
        tailed = self.tailed
        assert [r.event_id for r in tailed.applied] == [r.event_id for r in tailed.expected()]
        assert tailed.machine.position <= self.log.position


LossyDelivery.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.invariant(3)
@pytest.mark.invariant(4)
class TestLossyDelivery(LossyDelivery.TestCase):  # type: ignore[valid-type,misc]
    pass
