"""A process that was started by us or on our behalf: wait for its end, signal it, never a stranger with its pid."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Protocol

import msgspec
import psutil


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run: a function without arguments that returns an exit code, in a process of its own."""

    target: str
    """`package.module:function`."""
    name: str
    """What `top` shows, 15 characters of it."""
    title: tuple[str, ...]
    """What `ps` shows; never a secret."""
    env: dict[str, str]
    """The whole environment."""


class Child(Protocol):
    """A running process."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int | None:
        """The exit code (negative: the signal that ended it), or None when nobody can know it."""
        ...

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing when the process has ended."""
        ...


class PopenChild:
    """A child of ours. A thread waits for it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        threading.Thread(target=self._await_end, name=f"wait-{popen.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def wait(self) -> int | None:
        return await asyncio.shield(self._ended)

    def send_signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def _await_end(self) -> None:
        code = self._popen.wait()
        with suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._settle, code)

    def _settle(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)


def run_program(spec: Spec, *, output: int | IO[bytes], death_fd: int) -> PopenChild:
    """Starts a new interpreter for it: slower than `Preloader.start`, and independent of everything."""
    popen = subprocess.Popen(
        [sys.executable, "-m", "orrery_cli.supervisor.target", spec.target],
        env=spec.env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output != subprocess.PIPE else None,
        pass_fds=[death_fd],
        start_new_session=True,
    )
    return PopenChild(popen)


class Identity(msgspec.Struct, frozen=True):
    """A process for ever: a pid is given to another process later, a pid with its start time is not."""

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """None: it has ended already."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Our environment for children: without what only `orrery up` is told, with `extra`."""
    env = {name: value for name, value in os.environ.items() if name not in ONLY_FOR_UP}
    return {**env, "PYTHONUNBUFFERED": "1", **extra}


ONLY_FOR_UP = frozenset(
    {
        "ORRERY_BOOTSTRAP_PASSWORD",
        "ORRERY_BOOTSTRAP_ADMIN",
        "ORRERY_ROUTERS",
        "ORRERY_PRELOAD",
        "ORRERY_HOST",
        "ORRERY_PORT",
    }
    | {"ORRERY_SLOT", "ORRERY_RUN_DIR", "ORRERY_DATA_DIR", "ORRERY_OPS_PORT", "ORRERY_DEATH_FD"}
)
