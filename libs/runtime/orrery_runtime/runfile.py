"""`<run_dir>/<slot>.json`: where `orrery status` finds a process without asking Postgres."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from .startup import require_writable

FIELDS: Final = ("service", "slot", "instance", "pid", "url", "ops_url", "version", "started_at")
"""Of /status. No secret is among them."""


class Described(Protocol):
    """A process that can say what it is."""

    slot: str
    instance_id: str

    def status(self) -> dict[str, Any]: ...


def read_run_file(run_dir: Path, slot: str) -> dict[str, Any]:
    """What the process in a slot wrote; nothing when it has not, or has ended."""
    with suppress(OSError, ValueError):
        body = json.loads((run_dir / f"{slot}.json").read_text())
        if isinstance(body, dict):
            return body
    return {}


class RunFile:
    """The file of one process. Raises StartupError when its folder cannot be written."""

    def __init__(self, run_dir: Path, process: Described) -> None:
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
