"""The path of a unix socket that is listened on: one owner at a time, and from one to the next without a gap.

Two processes cannot share a path as they share a port. A lock beside it tells a socket that somebody serves from one
that a dead process left, and its file says which slot serves. The next process of that slot need not wait for the end
of the one before: it listens under another name and then renames, so that every connection finds one of the two. The
lock becomes its own as soon as the other is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orrery_router.target import SOCKET_PATH_BYTES_MAX
from orrery_runtime.errors import StartupError

from .limits import BACKLOG

SLOT: Final = "{slot}"
NEW: Final = ".new"
"""Added to the path of a socket that does not listen yet."""
PATH_BYTES_MAX: Final = SOCKET_PATH_BYTES_MAX - len(NEW)
SLOT_BYTES_MAX: Final = 256


class SocketPath:
    """A claim to listen on `path`."""

    def __init__(self, path: Path, mode: int, slot: str) -> None:
        """`slot`: whose processes follow one another; empty: nobody follows. Raises StartupError."""
        self.path, self._mode = path, mode
        self._inode = 0
        """Of our socket, once the path is ours."""
        self._file = _open_lock(path)
        try:
            self._owns = self._claim(slot)
        except BaseException:
            os.close(self._file)
            raise

    def _claim(self, slot: str) -> bool:
        """False: the lock is still our predecessor's."""
        if _try_lock(self._file):
            _require_free(self.path)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, slot.encode(), 0)
            return True
        if not slot or os.pread(self._file, SLOT_BYTES_MAX, 0) != slot.encode():
            raise _taken(self.path)
        return False

    def listen(self, listener: socket.socket) -> None:
        """From now on who connects to the path comes to `listener`. Raises StartupError."""
        new = self.path.with_name(self.path.name + NEW)
        try:
            with self._alone():
                new.unlink(missing_ok=True)
                mask = os.umask(0o177)  # From its first moment on the socket is nobody else's.
                try:
                    listener.bind(str(new))
                finally:
                    os.umask(mask)
                new.chmod(self._mode)
                listener.listen(BACKLOG)
                listener.setblocking(False)
                self._inode = new.lstat().st_ino
                new.rename(self.path)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {self.path} ({error.strerror or error}): correct ORRERY_LISTEN"
            ) from None

    def tick(self) -> None:
        """Now and then: the lock may have become free."""
        if not self._owns and self._file >= 0:
            self._owns = _try_lock(self._file)

    def leave(self) -> None:
        """Takes the path away unless it is another's already. The lock's file stays, or two could hold a lock of it."""
        if self._file < 0:
            return
        with contextlib.suppress(OSError), self._alone():
            if self._inode and self.path.lstat().st_ino == self._inode:
                self.path.unlink()
        os.close(self._file)
        self._file = -1

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While a path changes hands. (Locks of this kind are others than those of `flock`.)"""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _open_lock(path: Path) -> int:
    lock = path.with_name(path.name + ".lock")
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartupError(
            f"cannot make {lock} ({error.strerror}): correct ORRERY_LISTEN or the folder's mode"
        ) from None


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _require_free(path: Path) -> None:
    """With the lock held: what is there is a dead router's, or no router's at all. Raises StartupError."""
    try:
        state = path.lstat()
    except OSError:
        return
    if not stat.S_ISSOCK(state.st_mode):
        raise StartupError(f"{path} is there and is no socket: name another path in ORRERY_LISTEN or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            pass  # It is somebody's, who is busy or does not let us in.
    raise _taken(path)


def _taken(path: Path) -> StartupError:
    return StartupError(
        f"another process listens on {path}: stop it, or give each router a path of its own by {SLOT} in ORRERY_LISTEN"
    )
