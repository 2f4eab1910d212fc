"""One place that a process fills. When the process dies, another takes its place, until the place is closed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from orrery_cli.errors import CliError

from .children import Child, Identity

BACKOFF_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Wait before each start again; the first is immediate, the last repeats."""
HEALTHY_S: Final = 60.0
"""A process that ran this long starts again immediately."""
KILL_WAIT_S: Final = 5.0

Start = Callable[[], Awaitable[Child]]


class Slot:
    """Keeps one process running. `start` raises CliError when it cannot be started now."""

    def __init__(
        self,
        name: str,
        service: str,
        start: Start,
        *,
        note: Callable[[str], None],
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_timeout_s: float,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.service = service
        self.identity: Identity | None = None
        self.deaths = 0
        self.last_end = ""
        """How the last process ended, as a phrase."""
        self._start = start
        self._note = note
        self._moved = moved
        self._stop_signal = stop_signal
        self.stop_timeout_s = stop_timeout_s
        self._child: Child | None = None
        self._started_at = 0.0
        self._failures = 0
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Starts the first process and from now on every next one. Raises CliError."""
        await self._launch()
        self._task = asyncio.create_task(self._keep(), name=f"slot {self.name}")

    async def close(self, *, hurry: asyncio.Event | None = None) -> None:
        """Ends the process, kindly, and at the latest after the time-out (or at once when `hurry` is set)."""
        self._closing = True
        if self._task is None:
            return
        child = self._child
        if child is not None:
            child.send_signal(self._stop_signal)
            await self._ended_or_killed(child, hurry)
        else:
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self.identity = None
        self._moved()

    def kill(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGKILL)

    async def _ended_or_killed(self, child: Child, hurry: asyncio.Event | None) -> None:
        waiting = [asyncio.ensure_future(child.wait())]
        if hurry is not None:
            waiting.append(asyncio.ensure_future(hurry.wait()))
        await asyncio.wait(waiting, timeout=self.stop_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        ended = waiting[0].done()
        for future in waiting:
            future.cancel()
        if not ended:
            child.send_signal(signal.SIGKILL)

    async def _launch(self) -> Child:
        self._child = child = await self._start()
        self._started_at = time.monotonic()
        self.identity = Identity.of(child.pid)
        self._moved()
        return child

    async def _keep(self) -> None:
        while True:
            if self._child is not None:
                code = await self._child.wait()
                lived_s = time.monotonic() - self._started_at
                pid, self._child, self.identity = self._child.pid, None, None
                self.last_end = phrase(code)
                if self._closing:
                    return
                self.deaths += 1
                self._failures = 0 if lived_s > HEALTHY_S else self._failures
                self._note(f"{self.name} (pid {pid}) {self.last_end}")
                self._moved()
            await asyncio.sleep(BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)])
            self._failures += 1
            try:
                self._note(f"{self.name} started again as pid {(await self._launch()).pid}")
            except CliError as error:
                self._note(f"{self.name} could not be started again: {error}")


def phrase(code: int | None) -> str:
    """`ended with code 1`, `was killed by SIGKILL`."""
    if code is None:
        return "ended"
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with code {code}"
