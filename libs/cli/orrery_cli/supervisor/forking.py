"""The forking process behind `Preloader`. Single-threaded for ever: a fork copies no thread but the one that calls it.

python -m orrery_cli.supervisor.forking <socket fd> <modules, separated by commas> <room for titles>
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from .children import Spec
from .target import resolve

MESSAGE_BYTES_MAX: Final = 262_144
PR_SET_NAME: Final = 15
NAME_BYTES_MAX: Final = 15


class Request(msgspec.Struct, frozen=True):
    id: int
    spec: Spec


def main() -> None:
    supervisor = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(supervisor.fileno(), False)
    for module in sys.argv[2].split(","):
        # What is wrong with a module is told by the service that needs it, in its own log.
        with suppress(Exception):
            importlib.import_module(module)
    if threading.active_count() != 1:
        raise RuntimeError("a module started a thread when it was imported: forks would lack it")
    gc.collect()
    gc.freeze()  # keeps the collector of forks from touching, and thereby copying, shared pages
    serve(supervisor)


def serve(supervisor: socket.socket) -> None:
    """Forks on demand and reaps, until the supervisor is gone."""
    ended, note_end = os.pipe()
    os.set_blocking(note_end, False)
    signal.set_wakeup_fd(note_end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.PollSelector() as selector:
        selector.register(supervisor, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is supervisor:
                    body, fds, _, _ = socket.recv_fds(supervisor, MESSAGE_BYTES_MAX, 2)
                    if not body:
                        return
                    request = msgspec.json.decode(body, type=Request)
                    pid = fork(request.spec, fds, close=[supervisor.fileno(), ended, note_end])
                    tell(supervisor, {"id": request.id, "pid": pid})
                else:
                    os.read(ended, 4096)
                    reap(supervisor)


def reap(supervisor: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        tell(supervisor, {"pid": pid, "status": status})


def tell(supervisor: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # it is gone: the next select tells
        supervisor.send(msgspec.json.encode(message))


def fork(spec: Spec, fds: list[int], *, close: list[int]) -> int:
    """The pid of a new process that runs `spec`; `fds` are its output and its death pipe."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            become(spec, fds, close)
            code = resolve(spec.target)()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 (the last frame of this process)
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    for fd in fds:
        os.close(fd)
    return pid


def become(spec: Spec, fds: list[int], close: list[int]) -> None:
    """Turns a fresh fork into a process of its own."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    output, death = fds
    os.dup2(output, 1)
    os.dup2(output, 2)
    for fd in [*close, output]:
        os.close(fd)
    os.set_inheritable(death, False)
    os.environ.clear()
    os.environ.update({**spec.env, "ORRERY_DEATH_FD": str(death)})
    sys.argv = list(spec.title)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    set_title(spec.name, spec.title)


def set_title(name: str, title: tuple[str, ...]) -> None:
    """What `top` and `ps` show. The argument area of the process is memory like any other."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:NAME_BYTES_MAX], 0, 0, 0)
    # Fields 48 and 49 of proc_pid_stat(5); the name in field 2 may hold spaces, so count from behind it.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    text = "\0".join(title).encode()
    if 0 < begin < end and len(text) < end - begin:
        ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


if __name__ == "__main__":
    main()
