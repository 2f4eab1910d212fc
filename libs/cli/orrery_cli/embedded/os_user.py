"""Which operating-system user the database and the broker run as, and what that user may reach.

Postgres refuses to run as root, and nothing that listens should. Started as root we use an unprivileged user that is
there already; we create none, and never widen the permissions of a directory that is not ours.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import IO, Any

import msgspec

from orrery_events.errors import OrreryError

CANDIDATES = ("orrery", "postgres", "nobody")
PR_SET_PDEATHSIG = 1


class EmbeddedError(OrreryError):
    """An embedded part cannot run. See the sentence that follows."""


class ServiceUser(msgspec.Struct, frozen=True):
    """An operating-system user."""

    name: str
    uid: int
    gid: int

    @property
    def switches(self) -> bool:
        """True when we are somebody else (that is, root)."""
        return self.uid != os.geteuid()


def service_user() -> ServiceUser:
    """Ourselves, or an unprivileged user when we are root. Raises EmbeddedError."""
    if os.geteuid() != 0:
        return _of(pwd.getpwuid(os.geteuid()))
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return _of(entry)
    raise EmbeddedError(
        f"the database must not run as root, and there is no user {' or '.join(CANDIDATES)}: "
        "create one (useradd --system orrery) or start Orrery as an ordinary user"
    )


def _of(entry: pwd.struct_passwd) -> ServiceUser:
    return ServiceUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def private_directory(path: Path, user: ServiceUser) -> Path:
    """Makes sure that the directory is there, belongs to the user and is closed to everybody else."""
    path.mkdir(mode=0o700, parents=False, exist_ok=True)
    if user.switches:
        os.chown(path, user.uid, user.gid)
    path.chmod(0o700)
    return path


def require_reachable(path: Path, user: ServiceUser) -> None:
    """Raises EmbeddedError when the user cannot pass a directory on the way to `path`."""
    closed = first_closed(path.parent, user)
    if closed is not None:
        raise EmbeddedError(
            f"user {user.name}, as whom the database runs, cannot pass {closed}: "
            "choose a --data-dir below a directory that is open to all, such as /var/lib/orrery"
        )


def first_closed(path: Path, user: ServiceUser) -> Path | None:
    """The topmost directory up to `path` that the user cannot pass, or None."""
    for directory in [*reversed(path.resolve().parents), path.resolve()]:
        info = directory.stat()
        if info.st_uid == user.uid:
            needed = stat.S_IXUSR
        elif info.st_gid == user.gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if user.uid != 0 and not info.st_mode & needed:
            return directory
    return None


def executable_copy(source: Path, copy: Path, user: ServiceUser) -> Path:
    """`source` itself if the user can reach it, else a copy of that file or directory that it can.

    A checkout below a closed home directory is the usual reason; the home stays closed.
    """
    if not user.switches or first_closed(source.resolve().parent, user) is None:
        return source
    if not copy.exists():
        temporary = copy.with_name(copy.name + ".new")
        if source.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(source, temporary, symlinks=True)
        else:
            shutil.copy2(source, temporary)
        temporary.rename(copy)
    return copy


def spawn(
    argv: list[str], *, user: ServiceUser, cwd: Path, env: Mapping[str, str], output: IO[bytes] | int,
    death_signal: signal.Signals,
) -> Popen[bytes]:  # fmt: skip
    """Starts a program as that user, in a session of its own; it gets `death_signal` when we die, however we die."""
    switch: dict[str, Any] = {}
    if user.switches:
        switch = {"user": user.uid, "group": user.gid, "extra_groups": []}
    return Popen(
        argv,
        cwd=cwd,
        env=dict(env),
        stdin=DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=dies_with_us(death_signal),  # noqa: PLW1509 (one prctl call, no Python locks involved)
        **switch,
    )


def dies_with_us(death_signal: signal.Signals) -> Callable[[], None]:
    """To be called in the child between fork and exec (prctl(2), PR_SET_PDEATHSIG)."""
    libc = ctypes.CDLL(None, use_errno=True)

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)

    return arrange
