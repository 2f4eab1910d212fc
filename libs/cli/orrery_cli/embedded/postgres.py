"""The embedded Postgres: our own cluster, our own supervision.

    home/            ours
      data/          the cluster, of the database's user, 0700
      socket/        the unix socket, of the database's user, 0700 (or elsewhere, see `socket_dir`)
      postgres.conf  written anew at every start; `custom.conf` beside it is the operator's and wins
      *.password     0600

Every start goes through `prepare`, `launch`, `wait_ready` and `provision` (see roles.py). It listens on no network
address, asks everybody for a password (scram-sha-256, from a file that only we can read) and
runs as an unprivileged user when we are root. Services log in as `orrery`, who owns the one database and nothing else;
the superuser `postgres` is for us.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psutil

from orrery_cli.errors import EmbeddedError

from . import binaries, child
from .osuser import Account, database_account, first_blocked, own_folder
from .roles import Roles

SUPERUSER = "postgres"
OWNER = "orrery"
DATABASE = "orrery"
SOCKET_PATH_BYTES_MAX = 100
"""The kernel takes 107 bytes for a socket's path; some are left for the lock file beside it."""
SOCKET_NAME = ".s.PGSQL.5432"
INIT_TIMEOUT_S = 60.0
READY_TIMEOUT_S = 60.0
"""Recovery after a crash replays at most `max_wal_size`."""
LEFTOVER_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
ORPHAN_STEPS = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

SETTINGS: dict[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    # Sized for a machine that has other things to do: the log is small and its readers are few.
    "shared_buffers": "32MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "max_wal_size": "256MB",
    "min_wal_size": "48MB",
    "max_wal_senders": "2",
    "max_logical_replication_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "io_method": "sync",
    "jit": "off",
    "fsync": "on",
    "synchronous_commit": "on",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
    # Statements and their parameters may hold what must not be in a log.
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}


class Postgres:
    """One cluster."""

    def __init__(self, home: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.home = home.absolute()
        self.data = self.home / "data"
        self.account: Account | None = None
        self.socket_dir = self.home / "socket"
        self._settings = {**SETTINGS, **(settings or {})}
        self._binaries = Path()

    def prepare(self) -> bool:
        """Everything before the start: folders, a leftover server of this cluster ended, the cluster made when there
        is none. Blocks for about a second the first time. True when the cluster is new. Raises EmbeddedError."""
        self.account = database_account()
        own_folder(self.home, None, mode=0o711 if self.account else 0o700)
        self._require_passage(self.home)
        self._binaries = self._reachable_binaries()
        self.socket_dir = self._choose_socket_dir()
        self.end_leftovers()
        new = not (self.data / "PG_VERSION").exists()
        if new:
            self._initialise()
        self._require_version()
        self._write_settings()
        return new

    def launch(self, output: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Starts the server. It ends (fast shutdown) when the calling thread's process dies."""
        return child.start(
            [str(self._binaries / "bin" / "postgres"), "-D", str(self.data), f"--config-file={self._settings_file}"],
            cwd=self.home,
            env=self._environment(),
            account=self.account,
            output=output,
            death_signal=signal.SIGINT,
        )

    def ready(self) -> bool:
        """True once the running server takes connections (it says so in its pid file)."""
        lines = self._pid_file_lines()
        return len(lines) >= 8 and lines[7].strip() == "ready"

    async def wait_ready(self, process: subprocess.Popen[bytes], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Returns when connections are taken. Raises EmbeddedError when the server ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            lines = self._pid_file_lines()
            # The pid: the file may still be that of a server which was killed.
            if lines and lines[0].strip() == str(process.pid) and self.ready():
                return
            if process.poll() is not None:
                raise EmbeddedError(f"PostgreSQL ended with code {process.returncode} while starting: read its log")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL took no connections within {timeout_s:.0f} s: read its log")
            await asyncio.sleep(child.POLL_S)

    def roles(self) -> Roles:
        """What `provision` needs to know."""
        admin_url = self.url(database="postgres", superuser=True)
        return Roles(admin_url=admin_url, owner=OWNER, password=self._password(OWNER), database=DATABASE)

    def url(self, *, database: str = DATABASE, superuser: bool = False) -> str:
        """With the password in it: for an environment, never for an argument list or a log."""
        user = SUPERUSER if superuser else OWNER
        return f"postgresql://{user}:{quote(self._password(user))}@/{database}?host={quote(str(self.socket_dir))}"

    def version(self) -> str:
        """`18.4`."""
        done = subprocess.run(
            [self._binaries / "bin" / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.split()[-1]

    def end_leftovers(self) -> None:
        """Ends a server of this cluster that outlived its supervisor, and backends that outlived their server.

        A process is known by its working directory: only a server of this cluster stands in its data folder.
        """
        lines = self._pid_file_lines()
        if not lines:
            return
        mine = child.running(lambda p: p.name() == "postgres" and Path(p.cwd()) == self.data)
        main = [p for p in mine if str(p.pid) == lines[0].strip()]
        rest = [p for p in mine if p not in main]
        if not (child.end(main, LEFTOVER_STEPS) and child.end(rest, ORPHAN_STEPS if not main else LEFTOVER_STEPS[2:])):
            pids = ", ".join(str(p.pid) for p in mine)
            raise EmbeddedError(f"an earlier PostgreSQL on {self.data} does not end: kill {pids} and try again")
        pid = lines[0].strip()
        if not main and pid.isdigit() and psutil.pid_exists(int(pid)):
            # The pid has gone to a stranger, which would make Postgres refuse to start.
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    @property
    def _settings_file(self) -> Path:
        return self.home / "postgres.conf"

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self.home)}

    def _require_passage(self, path: Path) -> None:
        blocked = first_blocked(path, self.account) if self.account else None
        if blocked is not None and self.account:
            raise EmbeddedError(
                f"PostgreSQL runs as the user {self.account.name}, who cannot enter {blocked}: choose another "
                "--data-dir, or run orrery as an ordinary user"
            )

    def _reachable_binaries(self) -> Path:
        """The programs, copied to a place that the database's user can reach when the installation is not."""
        installed = binaries.postgres()
        if self.account is None or first_blocked(installed / "bin", self.account) is None:
            return installed
        store = self.home / "programs"
        copy = store / binaries.POSTGRES_PACKAGE / binaries.POSTGRES_INSTALL
        stamp = store / "complete"
        wanted = str((installed / "bin" / "postgres").stat().st_mtime_ns)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(store, ignore_errors=True)
            shutil.copytree(installed, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
            shutil.copytree(binaries.site_packages() / binaries.LIBRARIES, store / binaries.LIBRARIES)
            stamp.write_text(wanted)
        return copy

    def _choose_socket_dir(self) -> Path:
        """`home/socket`, unless the socket's path would be too long: then a private folder elsewhere, remembered."""
        beside = self.home / "socket"
        if len(os.fsencode(beside / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX:
            return own_folder(beside, self.account)
        note = self.home / "socket_dir"
        owner = self.account.uid if self.account else os.geteuid()
        if note.exists():
            folder = Path(note.read_text().strip())
            if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == owner:
                return own_folder(folder, self.account)
        folder = own_folder(Path(tempfile.mkdtemp(prefix="orrery-pg-")), self.account)
        note.write_text(f"{folder}\n")
        return folder

    def _password(self, user: str) -> str:
        file = self.home / f"{user}.password"
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            return write_secret(file, secrets.token_urlsafe(32))

    def _initialise(self) -> None:
        """Makes the cluster in a staging folder and renames it, so that one cut short is never taken for a whole."""
        for old in self.home.glob("staging-*"):
            shutil.rmtree(old, ignore_errors=True)
        staging = own_folder(Path(tempfile.mkdtemp(prefix="staging-", dir=self.home)), self.account)
        password = staging / "password"
        write_secret(password, self._password(SUPERUSER))
        if self.account:
            os.chown(password, self.account.uid, self.account.gid)
        argv = [str(self._binaries / "bin" / "initdb"), "-D", str(staging / "data"), f"--username={SUPERUSER}"]
        argv += ["--auth-local=scram-sha-256", "--auth-host=scram-sha-256", f"--pwfile={password}"]
        argv += ["--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        argv += ["--no-instructions", *(["--no-sync"] if self._settings["fsync"] == "off" else [])]
        done = subprocess.run(
            argv,
            cwd=staging,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INIT_TIMEOUT_S,
            check=False,
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
        )
        if done.returncode != 0:
            reason = (done.stdout.strip().splitlines() or ["no reason given"])[-1]
            raise EmbeddedError(f"initdb failed in {self.home}: {reason}")
        (staging / "data").rename(self.data)
        shutil.rmtree(staging, ignore_errors=True)

    def _require_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        if found != binaries.POSTGRES_MAJOR:
            raise EmbeddedError(
                f"{self.data} was made by PostgreSQL {found} and this release brings {binaries.POSTGRES_MAJOR}: "
                "dump it with the old release and load it into a new --data-dir"
            )

    def _write_settings(self) -> None:
        wanted = {**self._settings, "unix_socket_directories": f'"{self.socket_dir}"'}
        lines = [f"{name} = {_quoted(value)}" for name, value in sorted(wanted.items())]
        text = "# Written at every start. Put your own settings into custom.conf beside this file.\n"
        text += "\n".join(lines) + f"\ninclude_if_exists = {_quoted(str(self.home / 'custom.conf'))}\n"
        self._settings_file.write_text(text)
        self._settings_file.chmod(0o644)


def write_secret(path: Path, text: str) -> str:
    """Writes a new file that only its owner can read, whole or not at all."""
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text + "\n")
    Path(fresh).rename(path)
    return text


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
