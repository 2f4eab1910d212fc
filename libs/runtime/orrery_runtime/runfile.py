"""`<run_dir>/<slot>.json`: where `orrery status` finds a process without asking Postgres."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .startup import require_writable

if TYPE_CHECKING:
    from .process import Process

FIELDS: Final = ("service", "slot", "instance", "pid", "url", "ops_url", "version", "started_at")
"""Of /status. No secret is among them."""


class RunFile:
    """The file of one process. Raises StartupError when its folder cannot be written."""

    def __init__(self, run_dir: Path, process: Process) -> None:
        require_writable(run_dir, "run_dir")
        self._process = process
        self._path = run_dir / f"{process.slot}.json"
        self.write()

    def write(self) -> None:
        """Replaces the file as a whole, so that no reader sees half of it."""
        status = self._process.status()
        body = {name: status[name] for name in FIELDS}
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.write_text(json.dumps({**body, "instance_id": self._process.instance_id}) + "\n")
        fresh.replace(self._path)

    def remove(self) -> None:
        """Leaves the file alone when a successor in the slot has written its own."""
        with suppress(OSError, ValueError):
            if json.loads(self._path.read_text())["instance_id"] == self._process.instance_id:
                self._path.unlink()
