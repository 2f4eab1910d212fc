"""Services that an `orrery up` left behind because it was killed.

They were told by their death pipe and are on their way out; whoever is not is ended here, so that two generations of
one slot never run side by side. User servers are not in this list: they are meant to live on.
"""

from __future__ import annotations

import signal
from typing import Final

import msgspec

from .datadir import DataDir
from .embedded import child
from .errors import CliError
from .supervisor.children import Identity

STEPS: Final = ((None, 3.0), (signal.SIGTERM, 8.0), (signal.SIGKILL, 5.0))
"""First they may end by themselves."""
BACKBONE: Final = ("postgres", "nats")
"""They are dealt with by their own modules, which know better who they are."""


def end(data_dir: DataDir) -> None:
    """Raises CliError when one does not end even so. Only for the holder of the data directory's lock."""
    slots = data_dir.run_files().get("up", {}).get("slots", {})
    found = []
    for slot, body in slots.items():
        if slot in BACKBONE:
            continue
        try:
            process = msgspec.convert(body, Identity, strict=False).process()
        except msgspec.ValidationError:
            continue
        if process is not None:
            found.append(process)
    if not child.end(found, STEPS):
        pids = ", ".join(str(p.pid) for p in found)
        raise CliError(f"processes of an earlier `orrery up` on {data_dir.path} do not end: kill {pids} and try again")
    for file in data_dir.run.glob("*.json"):
        file.unlink(missing_ok=True)
