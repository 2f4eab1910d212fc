"""The folder that the process driver keeps for one start of one server.

    <data_dir>/servers/<server_id>/g<generation>/
        reservation.json     port and attempt; there from `reserve` to `remove`, and what `survey` goes by
        lock-<attempt>       locked (flock) from before the fork until the server has ended
        state.json           pid and start mark, written by the server's own process before it becomes the command
        launch-error.json    why the command could not be executed
        exit.json            exit code, written by the spawner that was its parent
        server.log           what it printed; stays until the next start

All writes are whole files put in place by a rename.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from . import launcher
from .base import ServerKey

RESERVATION_FILE = "reservation.json"
EXIT_FILE = "exit.json"
LOG_FILE = "server.log"
DESCRIPTOR_MIN = 10
LOG_BYTES_MAX = 10 * 2**20
"""A log that has grown beyond this is cut to its last LOG_BYTES_KEPT at the next housekeeping."""
LOG_BYTES_KEPT = 2**20
LOG_TAIL_BYTES_MAX = 65_536
"""No more than this is read to find the last lines."""


class Reservation(msgspec.Struct, frozen=True):
    """Where the server will listen."""

    port: int
    attempt: int
    reserved_at: float


class ProcessRecord(msgspec.Struct, frozen=True):
    """Which process the server is."""

    pid: int
    mark: str
    boot: str
    attempt: int
    port: int
    started_at: float

    @property
    def alive(self) -> bool:
        """True if that very process still runs."""
        return launcher.is_alive(self.pid, self.mark)

    @property
    def of_another_boot(self) -> bool:
        """True if the machine was started anew since."""
        return bool(self.boot) and self.boot != launcher.boot_id()


class LaunchError(msgspec.Struct, frozen=True):
    attempt: int
    message: str


class Exit(msgspec.Struct, frozen=True):
    attempt: int
    exit_code: int


T = TypeVar("T", bound=msgspec.Struct)


class GenerationFolder:
    """Reads and writes one such folder. Nothing here keeps state in memory."""

    def __init__(self, servers: Path, key: ServerKey) -> None:
        self.key = key
        self.path = servers / key.server_id / f"g{key.generation}"

    @property
    def log(self) -> Path:
        return self.path / LOG_FILE

    def make(self) -> None:
        """Creates it, for nobody but us to read."""
        make_private(self.path)

    def reservation(self) -> Reservation | None:
        return self._read(RESERVATION_FILE, Reservation)

    def write_reservation(self, value: Reservation) -> None:
        self._write(RESERVATION_FILE, value)

    def record(self, attempt: int) -> ProcessRecord | None:
        """The process of this attempt, if it was started."""
        found = self._read(launcher.STATE_FILE, ProcessRecord)
        return found if found and found.attempt == attempt else None

    def launch_error(self, attempt: int) -> str:
        found = self._read(launcher.LAUNCH_ERROR_FILE, LaunchError)
        return found.message if found and found.attempt == attempt else ""

    def exit_code(self, attempt: int) -> int | None:
        found = self._read(EXIT_FILE, Exit)
        return found.exit_code if found and found.attempt == attempt else None

    def write_exit(self, value: Exit) -> None:
        """Does nothing when the folder is gone: then nobody asks any more."""
        if self.path.is_dir():
            self._write(EXIT_FILE, value)

    def lock(self, attempt: int) -> int | None:
        """File descriptor of the attempt's lock, locked by it; None while somebody else holds the lock."""
        return self._lock(attempt, fcntl.LOCK_EX)

    def locked(self, attempt: int) -> bool:
        """True while a server of this attempt lives or is being started."""
        try:
            fd = self._lock(attempt, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False
        if fd is None:
            return True
        os.close(fd)
        return False

    def _lock(self, attempt: int, kind: int) -> int | None:
        create = os.O_CREAT if kind == fcntl.LOCK_EX else 0
        fd = os.open(self.path / f"lock-{attempt}", os.O_RDWR | os.O_CLOEXEC | create, 0o600)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        # A high number, because the launcher's 3 duplicated from 3 would be closed by exec.
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, DESCRIPTOR_MIN)
        os.close(fd)
        return high

    def open_log(self, *, anew: bool) -> int:
        """File descriptor to append to the log; `anew` empties it first."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (os.O_TRUNC if anew else 0)
        return os.open(self.log, flags, 0o600)

    def log_tail(self, lines: int) -> list[str]:
        """The last lines of the log, whole ones only: half a line may hold half a secret, which nobody can mask."""
        try:
            with self.log.open("rb") as file:
                begin = max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES_MAX)
                file.seek(begin)
                data = file.read(LOG_TAIL_BYTES_MAX)
        except FileNotFoundError:
            return []
        if begin:
            data = data.partition(b"\n")[2]
        return data.decode(errors="replace").splitlines()[-lines:]

    def bound_log(self) -> bool:
        """Cuts an overlong log to its end. What is printed during the cut may be missing. True if it was cut."""
        try:
            if self.log.stat().st_size <= LOG_BYTES_MAX:
                return False
            # The server appends through its own descriptor, so the file is emptied in place, not replaced.
            with self.log.open("r+b") as file:
                file.seek(-LOG_BYTES_KEPT, os.SEEK_END)
                end = file.read(LOG_BYTES_KEPT)
                file.truncate(0)
            fd = self.open_log(anew=False)
            try:
                os.write(fd, end.partition(b"\n")[2])
            finally:
                os.close(fd)
        except FileNotFoundError:
            return False
        return True

    def forget(self) -> None:
        """Removes everything but the log; the reservation last, so that a half-done removal is found and done again."""
        if not self.path.is_dir():
            return
        for entry in self.path.iterdir():
            if entry.name not in (LOG_FILE, RESERVATION_FILE):
                entry.unlink(missing_ok=True)
        (self.path / RESERVATION_FILE).unlink(missing_ok=True)

    def _read(self, name: str, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _write(self, name: str, value: msgspec.Struct) -> None:
        launcher.write_json(self.path / name, msgspec.to_builtins(value))


def make_private(folder: Path) -> None:
    """Creates a folder and those that it needs above it, each for its owner alone."""
    for part in (*reversed(folder.parents), folder):
        if not part.is_dir():
            part.mkdir(mode=0o700, exist_ok=True)


def generations(servers: Path, server_id: str = "*") -> Iterator[GenerationFolder]:
    """All starts, of one server or of all, that were reserved and not yet removed."""
    for path in servers.glob(f"{server_id}/g*/{RESERVATION_FILE}"):
        generation = path.parent.name[1:]
        if generation.isdigit():
            yield GenerationFolder(servers, ServerKey(path.parent.parent.name, int(generation)))


def prune_logs(servers: Path, server_id: str, *, before: int) -> None:
    """Removes what earlier, forgotten starts of a server left: their logs."""
    for path in (servers / server_id).glob("g*"):
        number = path.name[1:]
        if number.isdigit() and int(number) < before and not (path / RESERVATION_FILE).exists():
            shutil.rmtree(path, ignore_errors=True)


def remove_server(servers: Path, server_id: str) -> None:
    """Removes all folders of a server, if none of them is in use."""
    if any(generations(servers, server_id)):
        return
    shutil.rmtree(servers / server_id, ignore_errors=True)
