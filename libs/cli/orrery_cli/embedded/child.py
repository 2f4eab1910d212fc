"""Starting a foreign program that must not outlive us, and dealing with one that did."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from .osuser import Account

PR_SET_PDEATHSIG = 1
POLL_S = 0.01


def start(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    account: Account | None = None,
    output: int | IO[bytes] = subprocess.DEVNULL,
    death_signal: signal.Signals,
) -> subprocess.Popen[bytes]:
    """Starts `argv` in its own session as `account` (None: ourselves), stdout and stderr to `output`.

    On Linux the kernel sends `death_signal` when the thread that called this ends, so call it from one that lives as
    long as the process. Elsewhere the next start finds and stops what was left behind.
    """
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent(death_signal),  # noqa: PLW1509 (calls prctl and nothing else)
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def _die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return in_child


def running(test: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """All processes that pass `test`; those that vanish or may not be looked at do not."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if test(process):
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process], steps: Sequence[tuple[signal.Signals | None, float]]) -> bool:
    """Signals, waits, signals harder. `steps`: signal (or none) and seconds to wait after it. True when all are gone.

    psutil compares the start time before it signals, so a reused pid is never hit.
    """
    alive = list(processes)
    for number, wait_s in steps:
        if number is not None:
            _signal_all(alive, number)
        deadline = time.monotonic() + wait_s
        while alive and time.monotonic() < deadline:
            alive = [p for p in alive if is_alive(p)]
            if alive:
                time.sleep(POLL_S)
        if not alive:
            return True
    return not alive


def _signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_alive(process: psutil.Process) -> bool:
    """False for a zombie, too: it holds nothing any more."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
