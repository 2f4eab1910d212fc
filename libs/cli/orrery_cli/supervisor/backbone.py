"""The slots of Postgres and NATS when they are embedded."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from orrery_cli.datadir import DataDir
from orrery_cli.embedded.nats import Nats
from orrery_cli.embedded.postgres import Postgres
from orrery_cli.errors import EmbeddedError
from orrery_events.ids import new_id

from .children import Child, PopenChild
from .logs import Logs
from .slot import Slot

STOP_TIMEOUT_S = 20.0


class Embedded(Protocol):
    """A program of somebody else's that we run."""

    def prepare(self) -> object: ...
    def launch(self, output: int) -> subprocess.Popen[bytes]: ...
    async def wait_ready(self, process: subprocess.Popen[bytes]) -> None: ...


class Backbone:
    """Postgres and NATS, each in a slot of its own."""

    def __init__(
        self, data_dir: DataDir, logs: Logs, *, note: Callable[[str], None], moved: Callable[[], None]
    ) -> None:
        self.postgres = Postgres(data_dir.postgres)
        self.nats = Nats(data_dir.nats)
        self._data_dir = data_dir
        self._logs = logs
        self._note = note
        self._moved = moved

    def postgres_slot(self) -> Slot:
        # SIGINT is Postgres's "fast": it ends its sessions and writes everything.
        return self._slot("postgres", self.postgres, signal.SIGINT)

    def nats_slot(self) -> Slot:
        return self._slot("nats", self.nats, signal.SIGTERM)

    def _slot(self, name: str, program: Embedded, stop_signal: signal.Signals) -> Slot:
        return Slot(
            name,
            name,
            self._starter(name, program),
            note=self._note,
            stop_signal=stop_signal,
            stop_timeout_s=STOP_TIMEOUT_S,
            moved=self._moved,
        )

    def _starter(self, name: str, program: Embedded) -> Callable[[], Awaitable[Child]]:
        async def start() -> Child:
            await asyncio.to_thread(program.prepare)
            output = self._logs.open(name)
            try:
                # Not in a thread: the kernel ends it when the thread that started it ends.
                popen = program.launch(output)
            finally:
                os.close(output)
            child = PopenChild(popen)
            try:
                await program.wait_ready(popen)
            except EmbeddedError as error:
                child.send_signal(signal.SIGKILL)
                said = " / ".join(self._logs.last_lines(name, 3))
                raise EmbeddedError(f"{error}; it said: {said}" if said else str(error)) from None
            self._data_dir.write_run_file(name, self._describe(name, popen.pid))
            return child

        return start

    def _describe(self, name: str, pid: int) -> dict[str, Any]:
        url = str(self.postgres.socket_dir) if name == "postgres" else f"nats://127.0.0.1:{self.nats.port}"
        return {
            "service": name,
            "slot": name,
            "instance_id": new_id(),
            "pid": pid,
            "url": url,
            "ops_url": "",
            "version": self.postgres.version() if name == "postgres" else self.nats.version,
            "started_at": time.time(),
        }
