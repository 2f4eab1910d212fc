"""Servers as processes of this machine. They outlive the spawner and are adopted by the next one.

    reserve   a free port, written down
    start     flock(lock-<attempt>), fork: launcher (inherits the lock) writes state.json, then exec: the server
    adopt     state.json names a live process, or the lock says that one is about to appear

The lock is taken before the fork and inherited by the server, so at no instant can a second process of the same attempt
be started, and none can exist that the next spawner does not find. A server's identity is its pid with its start mark
(`launcher.start_mark`), so a reused pid is never mistaken for it.

All servers run under the platform's own account: this driver keeps people's work in separate folders, but does not
defend them, or the platform, against each other. All spawners that use it run on one machine and share `data_dir`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import structlog

from orrery_spawner.failpoints import hit

from . import launcher, processes
from .base import ABANDONED, DriverUnavailable, LaunchRefused, LaunchSpec, Observed, ServerKey
from .environment import command_line, environment
from .files import Exit, GenerationFolder, Reservation, generations, make_private, prune_logs, remove_server

THREADS_QUICK = 8
THREADS_STOP = 32
"""Ends that are under way at once; each waits up to its grace."""
LAUNCH_TIMEOUT_S = 10.0
"""From the fork to the launcher's record; it takes some 20 ms."""
LAUNCH_POLL_S = 0.005
WATCHED_MAX = 4096
"""Servers whose end is told at once (one file descriptor each); the end of others is found by the next `list`."""
RECENT_PORTS_MAX = 256
PORT_CHOICES_MAX = 64
LAUNCHER = Path(launcher.__file__).resolve()
LAUNCHER_FLAGS = ("-I", "-S") if launcher.LINUX else ("-I",)

T = TypeVar("T")

_log = structlog.get_logger("orrery.spawner.process")


class ProcessDriver:
    """The `process` driver; see the module's text."""

    name = "process"

    def __init__(self, data_dir: Path, *, environ: Mapping[str, str] | None = None) -> None:
        """`environ`: the platform's environment, of which servers get the harmless part."""
        # Servers change their working folder, so nothing relative may reach them.
        self._servers = data_dir.resolve() / "servers"
        self._homes = data_dir.resolve() / "homes"
        self._environ = dict(os.environ if environ is None else environ)
        self._quick = ThreadPoolExecutor(THREADS_QUICK, thread_name_prefix="process-driver")
        self._stops = ThreadPoolExecutor(THREADS_STOP, thread_name_prefix="process-stop")
        self._abandoned = threading.Event()
        self._reaping = threading.Lock()
        self._children: dict[int, tuple[GenerationFolder, int]] = {}
        self._watched: dict[ServerKey, int] = {}
        self._callbacks: list[Callable[[ServerKey], None]] = []
        self._recent_ports: deque[int] = deque(maxlen=RECENT_PORTS_MAX)

    # The protocol

    async def survey(self, server_id: str = "") -> list[Observed]:
        found = await self._in_thread(self._survey, server_id)
        for observed in found:
            self._watch(observed)
        return found

    async def inspect(self, key: ServerKey) -> Observed:
        return await self._in_thread(self._observe, self._folder(key))

    async def prepare(self, spec: LaunchSpec) -> None:
        await self._in_thread(self._prepare, spec)

    async def reserve(self, spec: LaunchSpec, *, attempt: int = 1) -> str:
        return await self._in_thread(self._reserve, spec.key, attempt)

    async def start(self, spec: LaunchSpec) -> Observed:
        observed = await self._in_thread(self._start, spec)
        self._watch(observed)
        return observed

    async def owns_target(self, key: ServerKey) -> bool | None:
        return await self._in_thread(self._owns_target, key)

    async def target_taken(self, key: ServerKey) -> bool:
        reservation = await self._in_thread(self._folder(key).reservation)
        return reservation is not None and processes.port_taken(reservation.port)

    async def logs(self, key: ServerKey, lines: int) -> list[str]:
        return await self._in_thread(self._folder(key).log_tail, lines)

    async def stop(self, key: ServerKey, grace_s: float) -> Observed:
        return await self._submit(self._stops, self._stop, key, grace_s)

    async def remove(self, key: ServerKey) -> None:
        await self._in_thread(self._remove, key)
        self._unwatch(key)

    async def purge(self, server_id: str) -> None:
        await self._in_thread(remove_server, self._servers, server_id)

    async def housekeep(self) -> None:
        await self._in_thread(self._housekeep)

    def on_exit(self, callback: Callable[[ServerKey], None]) -> None:
        self._callbacks.append(callback)

    async def close(self) -> None:
        self._abandoned.set()
        for key in list(self._watched):
            self._unwatch(key)
        self._quick.shutdown(wait=False, cancel_futures=True)
        self._stops.shutdown(wait=False, cancel_futures=True)

    # In threads

    def _folder(self, key: ServerKey) -> GenerationFolder:
        return GenerationFolder(self._servers, key)

    def _survey(self, server_id: str) -> list[Observed]:
        return [self._observe(g) for g in generations(self._servers, server_id or "*")]

    def _observe(self, folder: GenerationFolder) -> Observed:
        key, reservation = folder.key, folder.reservation()
        if reservation is None:
            return Observed(key=key, state="absent", vanished=True)
        target = f"http://{processes.LOOPBACK}:{reservation.port}"
        attempt, at = reservation.attempt, reservation.reserved_at
        record = folder.record(attempt)
        if record is None:
            if folder.locked(attempt):
                return Observed(key=key, state="starting", target=target, created_at=at)
            # The record is written under the lock: what is not there after the lock is free was never started.
            record = folder.record(attempt)
            if record is None:
                return Observed(key=key, state="absent", target=target, created_at=at, vanished=True)
        self._reap(record.pid)
        if record.alive:
            return Observed(key=key, state="running", target=target, created_at=at)
        code = folder.exit_code(attempt)
        return Observed(
            key=key,
            state="exited",
            target=target,
            exit_code=code,
            vanished=code is None and record.of_another_boot,
            launch_error=folder.launch_error(attempt),
            created_at=at,
        )

    def _home(self, user_name: str) -> Path:
        if not user_name or user_name != Path(user_name).name or user_name.startswith("."):
            raise LaunchRefused(f"the user name {user_name!r} cannot name a home folder: rename the user")
        return self._homes / user_name

    def _prepare(self, spec: LaunchSpec) -> None:
        home = self._home(spec.user_name)
        try:
            make_private(home)
        except OSError as error:
            raise LaunchRefused(f"the home folder {home} cannot be made: {error.strerror}") from None
        prune_logs(self._servers, spec.key.server_id, before=spec.key.generation)

    def _reserve(self, key: ServerKey, attempt: int) -> str:
        folder = self._folder(key)
        reservation = folder.reservation()
        if reservation is None or reservation.attempt < attempt:
            folder.make()
            reservation = Reservation(port=self._choose_port(), attempt=attempt, reserved_at=time.time())
            folder.write_reservation(reservation)
        return f"http://{processes.LOOPBACK}:{reservation.port}"

    def _choose_port(self) -> int:
        # Two starts at the same time must not be told the same port before either has opened it.
        for _ in range(PORT_CHOICES_MAX):
            port = processes.free_port()
            if port not in self._recent_ports:
                break
        self._recent_ports.append(port)
        return port

    def _start(self, spec: LaunchSpec) -> Observed:
        folder = self._folder(spec.key)
        reservation = folder.reservation()
        if reservation is None:
            raise DriverUnavailable(f"nothing is reserved for server {spec.key} any more")
        deadline, child = time.monotonic() + LAUNCH_TIMEOUT_S, 0
        while time.monotonic() < deadline:
            observed = self._observe(folder)
            if observed.state in ("running", "exited"):
                return observed
            if observed.state == "absent":
                if child:
                    self._reap(child)
                    raise DriverUnavailable(f"the launcher of server {spec.key} ended before it could do anything")
                child = self._spawn(spec, folder, reservation)
            time.sleep(LAUNCH_POLL_S)
        raise DriverUnavailable(f"server {spec.key} was forked but never said so within {LAUNCH_TIMEOUT_S:.0f} s")

    def _spawn(self, spec: LaunchSpec, folder: GenerationFolder, reservation: Reservation) -> int:
        """Forks the launcher unless somebody else has; returns its pid, or 0."""
        home = self._home(spec.user_name)
        command = command_line(spec, home=home, port=reservation.port)
        env = environment(self._environ, spec, home=home, port=reservation.port)
        argv = [sys.executable, *LAUNCHER_FLAGS, str(LAUNCHER), str(folder.path)]
        argv += [str(reservation.attempt), str(reservation.port), str(home), *command]
        try:
            lock = folder.lock(reservation.attempt)
        except FileNotFoundError:
            raise DriverUnavailable(f"server {spec.key} was removed while it was to be started") from None
        if lock is None:
            return 0
        try:
            if folder.record(reservation.attempt) is not None:
                return 0
            return self._fork(argv, env, folder, reservation.attempt, lock)
        finally:
            os.close(lock)

    def _fork(self, argv: list[str], env: dict[str, str], folder: GenerationFolder, attempt: int, lock: int) -> int:
        log = folder.open_log(anew=attempt == 1)
        try:
            with self._reaping:
                pid = os.posix_spawn(
                    sys.executable,
                    argv,
                    env,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, log, 1),
                        (os.POSIX_SPAWN_DUP2, log, 2),
                        (os.POSIX_SPAWN_DUP2, lock, launcher.LOCK_FD),
                    ],
                    setsigmask=[],
                    setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD],
                )
                self._children[pid] = (folder, attempt)
        except OSError as error:
            raise DriverUnavailable(f"server {folder.key} cannot be forked: {error.strerror}") from None
        finally:
            os.close(log)
        hit("spawner.after_fork")
        return pid

    def _reap(self, pid: int) -> None:
        """Takes the exit code of one of our own children, if it has ended, and writes it down."""
        with self._reaping:
            if pid not in self._children:
                return
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                del self._children[pid]
                return
            if ended:
                folder, attempt = self._children.pop(pid)
                folder.write_exit(Exit(attempt=attempt, exit_code=os.waitstatus_to_exitcode(status)))

    def _owns_target(self, key: ServerKey) -> bool | None:
        folder = self._folder(key)
        reservation = folder.reservation()
        record = folder.record(reservation.attempt) if reservation else None
        if reservation is None or record is None:
            return False
        return processes.listener_is_ours(record, key, reservation.port)

    def _stop(self, key: ServerKey, grace_s: float) -> Observed:
        folder = self._folder(key)
        deadline = time.monotonic() + LAUNCH_TIMEOUT_S
        while self._observe(folder).state == "starting":
            if time.monotonic() >= deadline or self._abandoned.wait(LAUNCH_POLL_S):
                raise DriverUnavailable(f"server {key} is being started and cannot be ended yet")
        reservation = folder.reservation()
        record = folder.record(reservation.attempt) if reservation else None
        processes.end(key, record, grace_s, self._abandoned)
        return self._observe(folder)

    def _remove(self, key: ServerKey) -> None:
        folder = self._folder(key)
        if self._observe(folder).state in ("running", "starting"):
            raise DriverUnavailable(f"server {key} still runs: it is stopped before it is removed")
        folder.forget()

    def _housekeep(self) -> None:
        for folder in generations(self._servers):
            if folder.bound_log():
                _log.info("server_log_cut", server_id=folder.key.server_id, generation=folder.key.generation)

    # In the event loop

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        future = self._submit(self._quick, call, *args)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # A half-done start must not go on behind the back of whoever cleans up after the cancellation.
            await asyncio.wait([future])
            raise

    def _submit(self, pool: ThreadPoolExecutor, call: Callable[..., T], *args: object) -> asyncio.Future[T]:
        if self._abandoned.is_set():
            raise DriverUnavailable(ABANDONED)
        return asyncio.get_running_loop().run_in_executor(pool, call, *args)

    def _watch(self, observed: Observed) -> None:
        """Learns of the end at once, through a descriptor of the process, where the system has such a thing."""
        key = observed.key
        if observed.state != "running" or key in self._watched or len(self._watched) >= WATCHED_MAX:
            return
        folder = self._folder(key)
        reservation = folder.reservation()
        record = folder.record(reservation.attempt) if reservation else None
        if record is None or not hasattr(os, "pidfd_open"):
            return
        try:
            fd = os.pidfd_open(record.pid)
        except OSError:
            return
        if not record.alive:
            os.close(fd)
            return
        self._watched[key] = fd
        asyncio.get_running_loop().add_reader(fd, self._exited, key)

    def _exited(self, key: ServerKey) -> None:
        self._unwatch(key)
        for callback in self._callbacks:
            callback(key)

    def _unwatch(self, key: ServerKey) -> None:
        fd = self._watched.pop(key, None)
        if fd is not None:
            with suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
