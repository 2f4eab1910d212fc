"""A log that is known, and a tail's machine that follows it by hand."""

from __future__ import annotations

from orrery_events.heartbeat import Heartbeat
from orrery_events.recorded import Meta, Recorded
from orrery_events.tail import machine as module
from orrery_events.tail.machine import Step, TailMachine

FOLLOWED = ("auth", "route")
CATEGORIES = ("auth", "route", "server")


class Log:
    """The truth: events by position, with gapless category sequences."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.rows: list[Recorded] = []
        self.heads: list[dict[str, int]] = [{}]

    @property
    def position(self) -> int:
        return len(self.rows)

    def append(self, category: str, mark: str = "") -> Recorded:
        heads = dict(self.heads[-1])
        heads[category] = heads.get(category, 0) + 1
        row = Recorded(
            position=self.position + 1,
            category=category,
            category_seq=heads[category],
            stream_id=f"{category}-1",
            stream_version=1,
            event_id=f"{self.epoch}.{self.position + 1}{mark}",
            type=f"{category}.happened",
            schema_version=1,
            data=b"{}",
            meta=Meta(),
            recorded_at=0.0,
            epoch=self.epoch,
        )
        self.rows.append(row)
        self.heads.append(heads)
        return row

    def after(self, position: int, limit: int) -> list[Recorded]:
        return self.rows[position : position + limit]

    def truncated(self, position: int) -> Log:
        """Postgres restored to an earlier state, with the epoch raised."""
        other = Log(self.epoch + 1)
        for row in self.rows[:position]:
            other.append(row.category)
        return other

    def heartbeat(self, position: int | None = None, created: str = "c1") -> Heartbeat:
        at = self.position if position is None else position
        return Heartbeat(
            log_id="log",
            epoch=self.epoch,
            position=at,
            categories=self.heads[at],
            created=created,
            relayed=at,
            relay="r",
        )


class Tailed:
    """A machine, what it applied, and what it asked for."""

    def __init__(self, log: Log, *, now: float = 0.0, position: int = 0) -> None:
        self.log = log
        self.now = now
        self.start = position
        self.applied: list[Recorded] = []
        self.reading = self.polling = False
        self.rebuild = ""
        self.machine = TailMachine(
            FOLLOWED, epoch=log.epoch, position=position, seqs=log.heads[position], now=now, jitter=lambda: 0.5
        )

    def do(self, step: Step) -> Step:
        self.applied += step.apply
        self.reading |= step.read
        self.polling |= step.poll
        self.rebuild = self.rebuild or step.rebuild
        return step

    def deliver(self, row: Recorded, heads: dict[str, int] | None = None) -> Step:
        known = self.log.heads[row.position] if heads is None else heads
        return self.do(self.machine.on_message(row, known, self.now))

    def beat(self, position: int | None = None, created: str = "c1") -> Step:
        return self.do(self.machine.on_heartbeat(self.log.heartbeat(position, created), self.now))

    def tick(self, seconds: float = 0.0) -> Step:
        self.now += seconds
        return self.do(self.machine.on_tick(self.now))

    def read(self) -> Step:
        self.reading = False
        return self.do(self.machine.on_rows(self.log.after(self.machine.position, module.READ_LIMIT), self.now))

    def poll(self) -> Step:
        self.polling = False
        log = self.log
        rows = log.after(self.machine.position, module.READ_LIMIT)
        return self.do(self.machine.on_log(log.epoch, log.position, rows, asked_at=self.now, now=self.now))

    def wants_read(self) -> bool:
        return self.reading

    def expected(self) -> list[Recorded]:
        rows = self.log.rows[self.start : self.machine.position]
        return [row for row in rows if row.category in FOLLOWED]

    def settle(self, *, ticks: int = 200) -> None:
        """Postgres answers from here on; nothing else does."""
        for _ in range(ticks):
            self.tick(0.25)
            while self.polling or self.reading:
                if self.polling:
                    self.poll()
                if self.reading:
                    self.read()
