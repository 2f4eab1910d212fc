"""Keeps a tail's projection on disk: the state after each rebuild, then every event, then the state again.

Nothing here lets the event loop wait for the disk: states are written by one thread, events by another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from ..recorded import Recorded
from . import metrics
from .folding import Folding
from .rebuild import Built, new_machine
from .snapshot import Header, SnapshotFile, SnapshotRefused, Snapshotted, candidates, read

CHECK_S: Final = 30.0
"""How often the file is brought down to the disk, and a failed write tried again."""
ADD_PAUSE_S: Final = 0.02
"""Between two additions of events; the first after a pause is made at once."""
EVENTS_BYTES_MIN: Final = 4 * 2**20
"""So many bytes of events may follow a state, however small it is; otherwise as many as the state has."""

_log = structlog.get_logger("orrery.tail")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process keeps a projection."""

    path: Path
    """`….snapshot`, of this process alone; its siblings are read should it be missing."""
    key: bytes
    """Seals the file; the same for all processes of the platform."""


class Keeper:
    """Of one tail. A failure is logged and counted, and never disturbs the tail."""

    def __init__(self, place: Place, name: str, categories: tuple[str, ...]) -> None:
        self._place, self._name, self._categories = place, name, categories
        self._file = SnapshotFile(place.path, place.key)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        """The only one that changes the file; what it is given is done in order."""
        self._open = False
        """What is on disk goes on with the next event."""
        self._due = asyncio.Event()
        self._news = asyncio.Event()
        self._queue: list[Recorded] = []
        """Events that are to be added to the file."""
        self._since: list[Recorded] | None = None
        """Events applied while a state is being written."""
        self._synced = 0
        self._reason = ""
        """Of the last failure, said once."""

    def restore(self, factory: Callable[[], Any], folding: Folding) -> Built[Any] | None:
        """The newest state that can be used; None, with the reasons in the log, when there is none."""
        for path in candidates(self._place.path):
            state: Snapshotted = factory()
            try:
                found = read(path, self._place.key, name=self._name, categories=self._categories, state=state)
            except (SnapshotRefused, OSError) as error:
                _log.warning("tail.snapshot_refused", tail=self._name, file=str(path), reason=str(error))
                continue
            for recorded in found.events:
                folding.apply(state, recorded)
            _log.warning(
                "tail.restored", tail=self._name, file=str(path), position=found.position,
                age_s=round(found.age_s, 1), consequence="what happened since is not known until Postgres is back",
            )  # fmt: skip
            header = found.header
            machine = new_machine(self._categories, header.epoch, found.position, found.seqs)
            machine.distrust(found.age_s, time.monotonic())
            return Built(state=state, machine=machine, log_id=header.log_id)
        return None

    def note(self, recorded: Recorded) -> None:
        """An event was applied."""
        if self._since is not None:
            self._since.append(recorded)
        if self._open:
            self._queue.append(recorded)
            self._news.set()

    def replaced(self) -> None:
        """The state is another one: what is on disk does not go on with the next event."""
        self._closed()
        self._since = None
        self._thread.submit(self._file.close)
        self._due.set()

    async def run(self, current: Callable[[], Built[Any]]) -> None:
        """For ever. `current`: what there is to keep."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._add_events())
            group.create_task(self._write_states(current))

    async def end(self, current: Callable[[], Built[Any]]) -> None:
        """Once `run` has ended: the last write."""
        if current().log_id:
            await self._write(current)
        await self._do(self._file.end)
        self._thread.shutdown(wait=False)

    async def _add_events(self) -> None:
        while True:
            await self._news.wait()
            await self._add()
            await asyncio.sleep(ADD_PAUSE_S)

    async def _add(self) -> None:
        self._news.clear()
        queue, self._queue = self._queue, []
        try:
            await self._do(self._file.add_all, queue)
        except OSError as error:
            self._failed(error)
        if self._open and self._outgrown:
            self._due.set()

    async def _write_states(self, current: Callable[[], Built[Any]]) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await self._due.wait()
            self._due.clear()
            if current().log_id:
                await self._write(current)

    async def _write(self, current: Callable[[], Built[Any]]) -> None:
        """Brings the file up to date, down to the disk."""
        file = self._file
        try:
            if self._outgrown or not self._open:
                built = current()
                since: list[Recorded] = []
                self._since = since
                await asyncio.to_thread(file.write_state, self._header(built), built.state.sections())
                if self._since is not since:
                    return
                # What waits to be added is in `since`, too.
                self._since, self._open = None, True
                self._queue.clear()
                await self._do(file.take_over, since)
            await self._add()
            if file.bytes_written != self._synced:
                self._synced = file.bytes_written
                await asyncio.to_thread(file.sync)
            self._reason = ""
            await self._do(file.proven, time.time() - (time.monotonic() - current().machine.proof_at))
        except (OSError, SnapshotRefused) as error:
            self._failed(error)
        finally:
            self._since = None
        metrics.SNAPSHOT_BYTES.labels(self._name).set(file.bytes_written)

    async def _do(self, work: Callable[..., None], *given: Any) -> None:
        """In the file's thread; done even if we are told to end meanwhile."""
        await asyncio.shield(asyncio.wrap_future(self._thread.submit(work, *given)))

    @property
    def _outgrown(self) -> bool:
        file = self._file
        return file.bytes_written > file.state_bytes + max(EVENTS_BYTES_MIN, file.state_bytes)

    def _header(self, built: Built[Any]) -> Header:
        at = built.machine
        return Header(
            name=self._name, categories=self._categories, log_id=built.log_id, epoch=at.epoch, position=at.position,
            seqs=at.seqs.copy(),
        )  # fmt: skip

    def _closed(self) -> None:
        self._open = False
        self._queue.clear()

    def _failed(self, error: Exception) -> None:
        # Without events after it, the old file stays good; the next try is at the next check.
        self._closed()
        self._thread.submit(self._file.close)
        metrics.SNAPSHOT_FAILURES.labels(self._name).inc()
        reason, before = str(error) or type(error).__name__, self._reason
        self._reason = reason
        if reason != before:
            _log.warning("tail.snapshot_failed", tail=self._name, file=str(self._place.path), reason=reason)
