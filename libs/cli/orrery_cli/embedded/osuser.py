"""Which operating-system user the database runs as: ourselves, or somebody unprivileged when we are root.

Postgres refuses to run as root, rightly. We look for a user that exists; we never add one, and we never open a folder
that is not ours so that the other user gets through.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import NamedTuple

from orrery_cli.errors import EmbeddedError

CANDIDATES = ("orrery", "postgres", "nobody")


class Account(NamedTuple):
    """A user other than ourselves."""

    name: str
    uid: int
    gid: int


def database_account() -> Account | None:
    """Whom to run Postgres as; None: as ourselves. Raises EmbeddedError when root finds nobody to hand it to."""
    if os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        "PostgreSQL must not run as root and none of the users orrery, postgres, nobody exists: "
        "add one (`useradd --system orrery`) or run orrery as an ordinary user"
    )


def first_blocked(path: Path, account: Account) -> Path | None:
    """The topmost existing folder on the way to (and including) `path` that `account` cannot pass, or None."""
    for folder in reversed([path, *path.parents]):
        try:
            info = folder.stat()
        except FileNotFoundError:
            return None
        if not may_pass(info, account):
            return folder
    return None


def may_pass(info: os.stat_result, account: Account) -> bool:
    """True if the execute bit that counts for `account` is set."""
    if info.st_uid == account.uid:
        return bool(info.st_mode & stat.S_IXUSR)
    if info.st_gid == account.gid:
        return bool(info.st_mode & stat.S_IXGRP)
    return bool(info.st_mode & stat.S_IXOTH)


def own_folder(path: Path, account: Account | None, *, mode: int = 0o700) -> Path:
    """Makes `path` a folder of `account` with exactly `mode`."""
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    if account is not None:
        os.chown(path, account.uid, account.gid)
    path.chmod(mode)
    return path
