"""Finding and ending the processes of a server. Blocking: called in the driver's threads."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import psutil

from . import launcher
from .base import ABANDONED, DriverUnavailable, ServerKey
from .environment import markers
from .files import ProcessRecord

LOOPBACK = "127.0.0.1"
POLL_S = 0.02
KILL_WAIT_S = 5.0
"""How long a process may take to end after SIGKILL before we say that we do not know."""
EXEC_LOOK_S = 0.001
EXEC_WAIT_S = 0.02
"""The moment of an `exec` takes microseconds, or what the scheduler makes of them; `env -i` looks like it for ever."""
SWEEPS_MAX = 5
"""A process that forks while it is being looked for is found in the next sweep."""


def free_port() -> int:
    """A port on the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def port_taken(port: int) -> bool:
    """True while something listens on the port."""
    with socket.socket() as probe:
        # Connections that just ended do not count; a listener does, in spite of this option.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False


def marked(key: ServerKey) -> Iterator[psutil.Process]:
    """Every running process that carries the server's markers, its kernels and terminals included."""
    wanted = markers(key).items()
    own = os.getpid()
    for process in psutil.process_iter():
        if process.pid == own:
            continue
        with suppress(psutil.Error, OSError):
            if wanted <= settled_environ(process).items() and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def settled_environ(process: psutil.Process) -> dict[str, str]:
    """A process's environment, read again while it is between two programs: in the midst of `exec` Linux shows none,
    and a server's process would not be known for one."""
    env = process.environ()
    deadline = time.monotonic() + EXEC_WAIT_S
    # Threads of the kernel (their parents are 0 and 2) and what has ended show none for ever.
    while not env and process.ppid() not in (0, 2) and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            break
        time.sleep(EXEC_LOOK_S)
        env = process.environ()
    return env


def listener_is_ours(record: ProcessRecord, key: ServerKey, port: int) -> bool | None:
    """Does the server, or something that it started, listen on the port? None: the system does not let us see."""
    try:
        root = psutil.Process(record.pid)
        for process in (root, *root.children(recursive=True)):
            if _listens(process, port):
                return True
    except psutil.NoSuchProcess:
        return False
    except (psutil.AccessDenied, OSError):
        return None
    try:
        holders = [c.pid for c in psutil.net_connections("tcp") if _listens_on(c, port)]
    except (psutil.Error, OSError):
        return None
    if None in holders:
        return None
    ours = {process.pid for process in marked(key)}
    return any(pid in ours for pid in holders)


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        connections = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        # What a child left behind that nobody has waited for shows nothing to ordinary users, and listens to nothing.
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        raise
    return any(_listens_on(c, port) for c in connections)


def _listens_on(connection: Any, port: int) -> bool:
    return bool(connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port)


def signal_group(record: ProcessRecord, number: int) -> None:
    """Signals the server's process group, if the server is still the one we started."""
    # The group's number may be reused once its leader and all members are gone, hence only while the leader lives.
    if launcher.start_mark(record.pid) == record.mark:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(record.pid, number)


def end(key: ServerKey, record: ProcessRecord | None, grace_s: float, abandoned: threading.Event) -> None:
    """Ends the server and everything that carries its markers. Raises DriverUnavailable if something survives, and
    soon after `abandoned` is set."""
    if record is not None and record.alive:
        signal_group(record, signal.SIGTERM)
        if not _gone([record], grace_s, abandoned):
            signal_group(record, signal.SIGKILL)
            if not _gone([record], KILL_WAIT_S, abandoned):
                raise DriverUnavailable(f"process {record.pid} of server {key} does not end, even when killed")
    for _ in range(SWEEPS_MAX):
        rest = [(process, Marked(process.pid, launcher.start_mark(process.pid))) for process in marked(key)]
        if not rest:
            return
        for process, _mark in rest:
            with suppress(psutil.Error):
                process.kill()
        _gone([mark for _process, mark in rest], KILL_WAIT_S, abandoned)
    raise DriverUnavailable(f"server {key} goes on starting processes while it is being ended")


class Marked(NamedTuple):
    """A process that is told apart from a later one with the same pid."""

    pid: int
    mark: str


def _gone(these: Sequence[ProcessRecord | Marked], timeout_s: float, abandoned: threading.Event) -> bool:
    """Waits until none of them runs. Raises DriverUnavailable when the driver is closed meanwhile."""
    deadline = time.monotonic() + timeout_s
    while any(launcher.is_alive(p.pid, p.mark) for p in these):
        if time.monotonic() >= deadline:
            return False
        if abandoned.wait(POLL_S):
            raise DriverUnavailable(ABANDONED)
    return True
