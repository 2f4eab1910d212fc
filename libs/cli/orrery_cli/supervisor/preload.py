"""Starts services by forking a process that has imported them already.

Six services that each import the same second's worth of modules would need six seconds of processor time at every
start. Here one process imports them once; each service is a fork of it: a real process with a pid, a session, an
environment and a log of its own, that shares the memory of code with its siblings. Only the forking process is special,
and nothing but speed depends on it: should it die, what it started lives on and the next start makes a new one.

    supervisor ──{"id", spec} + [output, death pipe]──► preloader ──fork──► service
               ◄──{"id", "pid"} … {"pid", "status"}────

Linux only (the ends of processes that are not our children are told by pidfds); elsewhere, and with `--no-preload`,
each service is a new interpreter.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any, Final

import msgspec

from orrery_cli.errors import CliError

from .children import Child, Spec, clean_environment, run_program

MESSAGE_BYTES_MAX: Final = 262_144
START_TIMEOUT_S: Final = 30.0
STATUS_GRACE_S: Final = 0.2
"""How long to wait for the preloader to say with which code a process ended."""
MODULES: Final = (
    "orrery_cli.supervisor.work",
    "orrery_runtime.relay_main",
    "orrery_auth.app",
    "orrery_api.app",
    "orrery_spawner.app",
    "orrery_router.app",
)
"""What the processes of `orrery up` have in common."""
FORKING: Final = "orrery_cli.supervisor.forking"
TITLE_ROOM: Final = "-" * 160
"""An argument that forks overwrite with their own title, so that `ps` tells them apart."""


class ForkedChild:
    """A process that the preloader forked. We are not its parent, so its end is told by a pidfd."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self.told = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1
            self._ended.set()
        else:
            self._loop.add_reader(self._pidfd, self._on_end)

    async def wait(self) -> int | None:
        await self._ended.wait()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.told.wait(), STATUS_GRACE_S)
        return self.code

    def send_signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def tell(self, code: int) -> None:
        self.code = code
        self.told.set()
        self._on_end()

    def _on_end(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._ended.set()


class Preloader:
    """Our side of the forking process."""

    def __init__(self, *, wanted: bool = True, modules: tuple[str, ...] = MODULES) -> None:
        self._modules = modules
        self.forks = wanted and sys.platform.startswith("linux") and hasattr(os, "pidfd_open")
        self._popen: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._next_id = 0
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._children: dict[int, ForkedChild] = {}

    def warm(self) -> None:
        """Starts the forking process, if it does not run; it imports in the background."""
        if not self.forks or (self._popen is not None and self._popen.poll() is None):
            return
        self._forget()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            self._popen = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "orrery_cli.supervisor.forking",
                    str(theirs.fileno()),
                    ",".join(self._modules),
                    TITLE_ROOM,
                ],
                env=clean_environment({}),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours, self._on_message, ours)

    async def start(self, spec: Spec, *, output: int, death_fd: int) -> Child:
        """Starts a process; `output` is its stdout and stderr. Raises CliError when that takes too long."""
        if self.forks:
            self.warm()
            with suppress(OSError, ConnectionError):
                return await self._fork(spec, output, death_fd)
        return run_program(spec, output=output, death_fd=death_fd)

    def close(self) -> None:
        """Ends the forking process; what it started lives on."""
        popen, self._popen = self._popen, None
        self._forget()
        if popen is not None:
            popen.terminate()
            popen.wait()

    async def _fork(self, spec: Spec, output: int, death_fd: int) -> Child:
        assert self._socket is not None  # noqa: S101 (warm made it)
        self._next_id += 1
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[self._next_id] = answer
        body = msgspec.json.encode({"id": self._next_id, "spec": spec})
        socket.send_fds(self._socket, [body], [output, death_fd])
        try:
            pid = await asyncio.wait_for(answer, START_TIMEOUT_S)
        except TimeoutError:
            raise CliError(f"{' '.join(spec.title)} did not start within {START_TIMEOUT_S:.0f} s: try again") from None
        return self._children[pid]

    def _on_message(self, source: socket.socket) -> None:
        try:
            body = source.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            body = b""
        if not body:
            if source is self._socket:
                self._forget()
            return
        message: dict[str, Any] = msgspec.json.decode(body)
        if "id" in message:
            pid = int(message["pid"])
            self._children[pid] = ForkedChild(pid)
            waiting = self._waiting.pop(message["id"], None)
            if waiting is not None and not waiting.done():
                waiting.set_result(pid)
        else:
            child = self._children.pop(int(message["pid"]), None)
            if child is not None:
                child.tell(os.waitstatus_to_exitcode(int(message["status"])))

    def _forget(self) -> None:
        """The forking process is gone: nobody will answer, and nobody knows exit codes any more."""
        gone, self._socket = self._socket, None
        if gone is not None:
            asyncio.get_running_loop().remove_reader(gone)
            gone.close()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the forking process ended"))
        self._children.clear()
