"""A projection from the log: the last event of every key in one snapshot, then what came meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec
import structlog

from ..projection import Projection
from . import metrics
from .folding import Folding
from .machine import READ_LIMIT, TailMachine

if TYPE_CHECKING:
    from ..log import EventLog

P = TypeVar("P", bound=Projection)

_log = structlog.get_logger("orrery.tail")


class Built(msgspec.Struct, Generic[P], frozen=True, kw_only=True):
    """A state, and where it stands."""

    state: P
    machine: TailMachine
    log_id: str


def new_machine(categories: tuple[str, ...], epoch: int, position: int, seqs: dict[str, int]) -> TailMachine:
    return TailMachine(
        categories, epoch=epoch, position=position, seqs=seqs, now=time.monotonic(), jitter=random.random
    )


async def from_log(
    log: EventLog,
    name: str,
    categories: tuple[str, ...],
    state: P,
    folding: Folding,
    *,
    reached: Callable[[int], int],
) -> Built[P]:
    """Folds into a fresh `state`. `reached`: the position that readers have seen in an epoch already; the state
    will not be older. Raises LogUnavailable and what asyncpg raises."""
    started, count = time.monotonic(), 0
    async with log.snapshot(categories) as snapshot:
        head = snapshot.head
        async for recorded in snapshot.latest():
            folding.apply(state, recorded)
            count += 1
    machine = new_machine(categories, head.epoch, head.position, head.seqs())
    while machine.position < reached(machine.epoch):
        rows = await log.read_all(after_position=machine.position, limit=READ_LIMIT)
        for recorded in machine.on_rows(rows, time.monotonic()).apply:
            folding.apply(state, recorded)
        if not rows:
            break
    duration_s = time.monotonic() - started
    metrics.REPLAY_DURATION.labels(name).set(duration_s)
    metrics.REPLAY_EVENTS.labels(name).inc(count)
    _log.info("tail.rebuilt", tail=name, position=machine.position, events=count, duration_s=round(duration_s, 3))
    return Built(state=state, machine=machine, log_id=head.system_id)
