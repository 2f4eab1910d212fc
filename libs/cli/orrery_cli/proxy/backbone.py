"""The embedded Postgres and NATS of `orrery proxy`, shared by the replicas on one data directory.

Whoever holds the data directory's lock runs them; the others use them by the addresses in its secrets, which never
change. When the holder ends, however it ends, one of the others takes the lock and starts them again; replicas keep
serving what they know meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from orrery_cli.datadir import DataDir
from orrery_cli.embedded.roles import Roles
from orrery_cli.errors import CliError
from orrery_cli.supervisor.backbone import Backbone
from orrery_cli.supervisor.logs import Logs
from orrery_cli.supervisor.slot import Slot
from orrery_runtime.version import version

RUN_FILE: Final = "up"
"""Where other commands look for who runs the database and the broker."""
POLL_S: Final = 0.2
ADDRESSES_TIMEOUT_S: Final = 60.0


class SharedBackbone:
    """One replica's part in it."""

    def __init__(self, data_dir: DataDir, note: Callable[[str], None]) -> None:
        self._data_dir, self._note = data_dir, note
        self._logs = Logs(data_dir.logs)
        self._backbone = Backbone(data_dir, self._logs, note=note, moved=self._record)
        self._slots: list[Slot] = []
        self.holds = False

    @property
    def roles(self) -> Roles | None:
        """For the holder: what the database must be provided with."""
        return self._backbone.postgres.roles() if self.holds else None

    async def open(self) -> None:
        """Starts database and broker, or waits until somebody else's can be reached. Raises CliError."""
        deadline = time.monotonic() + ADDRESSES_TIMEOUT_S
        while not self._take():
            kind = self._data_dir.run_files().get(RUN_FILE, {}).get("kind")
            if kind not in (None, "proxy"):
                raise CliError(
                    f"a platform (`orrery up`) runs on {self._data_dir.path}: choose another --data-dir for the proxy"
                )
            if all(self._data_dir.secret(name) for name in ("database_url", "nats_url", "relay_nats_url")):
                return
            if time.monotonic() > deadline:
                raise CliError(
                    f"another `orrery proxy` holds {self._data_dir.path} and does not come up: see its messages"
                )
            await asyncio.sleep(POLL_S)
        await self._start()

    async def succeed(self) -> None:
        """Waits, for as long as it takes, until the holder is gone, and takes its place."""
        while not self._take():  # noqa: ASYNC110 (another process's lock has no event)
            await asyncio.sleep(POLL_S)
        self._note("the database and the broker lost their keeper; this replica keeps them from now on")
        await self._start()

    async def keep_logs(self) -> None:
        """Keeps the log files of database and broker small."""
        await self._logs.keep_bounded()

    async def close(self, hurry: asyncio.Event) -> None:
        """NATS first, the database last."""
        for slot in reversed(self._slots):
            await slot.close(hurry=hurry)
        if self.holds:
            for slot in self._slots:
                self._data_dir.remove_run_file(slot.name)
            self._data_dir.remove_run_file(RUN_FILE)

    def _take(self) -> bool:
        if not self.holds and self._data_dir.try_lock():
            self.holds = True
        return self.holds

    async def _start(self) -> None:
        backbone = self._backbone
        self._slots = [backbone.postgres_slot(), backbone.nats_slot()]
        await asyncio.gather(*(slot.open() for slot in self._slots))
        keep = self._data_dir.keep_secret
        keep("relay_nats_url", backbone.nats.url("relay"))
        keep("nats_url", backbone.nats.url("service"))
        keep("database_url", backbone.postgres.url())

    def _record(self) -> None:
        slots = {
            slot.name: {"pid": slot.identity.pid, "create_time": slot.identity.create_time, "service": slot.service}
            for slot in self._slots
            if slot.identity is not None
        }
        body = {"service": "up", "slot": "up", "kind": "proxy", "pid": os.getpid(), "url": "", "version": version()}
        embedded = {"postgres": True, "nats": True}
        self._data_dir.write_run_file(RUN_FILE, {**body, "embedded": embedded, "slots": slots})
