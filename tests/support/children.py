"""Functions that tests of the supervisor run as processes: `tests.support.children:<name>`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from uuid_utils import uuid7


def sleeper() -> int:
    """Runs until it is told to end."""
    note()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        time.sleep(60)


def stubborn() -> int:
    """Runs until it is killed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note()
    while True:
        time.sleep(60)


def fails() -> int:
    note()
    sys.stderr.write("orrery tester: the thing is broken: repair it\n")
    return 7


def raises() -> int:
    raise RuntimeError("deliberately")


def mourner() -> int:
    """Ends when its supervisor does."""
    note()
    os.read(int(os.environ["ORRERY_DEATH_FD"]), 1)
    return 0


def note() -> None:
    """Writes down who this is."""
    folder = Path(os.environ["NOTES"])
    body = {
        "pid": os.getpid(),
        "sid": os.getsid(0),
        "threads": threading.active_count(),
        "argv": sys.argv,
        "uuid": str(uuid7()),
        "environment": dict(os.environ),
        "cmdline": Path("/proc/self/cmdline").read_bytes().decode().rstrip("\0").split("\0"),
        "comm": Path("/proc/self/comm").read_text().strip(),
        "open": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),  # noqa: PTH208 (numbers, not paths)
    }
    fresh = folder / f".{os.getpid()}"
    fresh.write_text(json.dumps(body))
    fresh.rename(folder / f"{os.getpid()}.json")
