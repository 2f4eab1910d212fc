"""What lies where in a data directory, who may use it, and its secrets.

data_dir/        0711 when root made it (the database's unprivileged user must get through), else 0700
  lock           held by the running `orrery up`; its pid is the text
  secrets/       0700: secret_key, auth_key, database_url, nats_url, relay_nats_url, each 0600
  run/           0700: <slot>.json of each process, up.json of the supervisor
  logs/          0700: <slot>.log
  postgres/      see embedded/postgres.py
  nats/          see embedded/nats.py
  snapshots/     what routers and proxies knew, see orrery_runtime/snapshots.py
  homes/, servers/   the spawner's
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from .errors import CliError

ENV = "ORRERY_DATA_DIR"
ROOT_DEFAULT = Path("/var/lib/orrery")
SECRET_BYTES = 32


def default() -> Path:
    """`/var/lib/orrery` for root, the user's own data folder for anybody else."""
    if os.geteuid() == 0:
        return ROOT_DEFAULT
    import platformdirs

    return platformdirs.user_data_path("orrery")


class DataDir:
    """Paths, and the few operations on them. Making one touches nothing."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or default()).expanduser().absolute()
        self.run = self.path / "run"
        self.logs = self.path / "logs"
        self.secrets = self.path / "secrets"
        self.postgres = self.path / "postgres"
        self.nats = self.path / "nats"
        self.snapshots = self.path / "snapshots"
        self._lock: int | None = None

    def prepare(self) -> None:
        """Makes the folders. Raises CliError with one sentence when it cannot."""
        mode = 0o711 if os.geteuid() == 0 else 0o700
        try:
            if not self.path.exists():
                self.path.mkdir(parents=True, exist_ok=True)
                self.path.chmod(mode)  # Whatever the umask: JupyterHub's is 077.
            for folder in (self.run, self.logs, self.secrets):
                folder.mkdir(exist_ok=True, mode=0o700)
                folder.chmod(0o700)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            blocking = self._in_the_way()
            reason = f"{blocking} is not a folder" if blocking else (error.strerror or type(error).__name__).lower()
            raise CliError(
                f"the data directory {self.path} cannot be written to ({reason}): "
                "correct its permissions or choose another with --data-dir"
            ) from None

    def lock(self) -> None:
        """Makes this process the only `orrery up` here, until it ends. Raises CliError naming the other one."""
        if not self.try_lock():
            raise CliError(
                f"`orrery up` already runs on {self.path} with pid {self.lock_holder() or '?'}: see "
                f"`orrery status{self.option()}`, or choose another --data-dir"
            )

    def try_lock(self) -> bool:
        """As `lock`; False: there is another one."""
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._lock = handle
        return True

    def lock_holder(self) -> int | None:
        """The pid of the running `orrery up`, or None when there is none."""
        try:
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(handle, 32).decode().strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(handle)
        return None

    def option(self) -> str:
        """` --data-dir …` as a person must type it to reach this one, or nothing when it is the default."""
        return "" if self.path == default() else f" --data-dir {self.path}"

    def generated_secret(self, name: str) -> Path:
        """The file of a secret, made on first use."""
        file = self.secrets / name
        if not file.exists():
            write_private(file, secrets.token_hex(SECRET_BYTES) + "\n")
        return file

    def keep_secret(self, name: str, text: str) -> Path:
        """Writes a secret that is known already. Returns its file."""
        file = self.secrets / name
        write_private(file, text + "\n")
        return file

    def secret(self, name: str) -> str:
        """The text of a secret; empty when there is none or it is not ours to read."""
        try:
            return (self.secrets / name).read_text().strip()
        except OSError:
            return ""

    def run_files(self) -> dict[str, dict[str, Any]]:
        """Slot (or `up`) to what its process wrote about itself; broken files are left out."""
        found = {}
        for file in sorted(self.run.glob("[!.]*.json")):
            try:
                body = json.loads(file.read_text())
            except (OSError, ValueError):
                continue
            if isinstance(body, dict):
                found[file.stem] = body
        return found

    def write_run_file(self, name: str, body: dict[str, Any]) -> None:
        write_private(self.run / f"{name}.json", json.dumps(body) + "\n")

    def remove_run_file(self, name: str) -> None:
        (self.run / f"{name}.json").unlink(missing_ok=True)

    def _in_the_way(self) -> Path | None:
        for folder in (*reversed(self.path.parents), self.path, self.run, self.logs, self.secrets):
            if folder.exists() and not folder.is_dir():
                return folder
        return None


def write_private(file: Path, text: str) -> None:
    """Replaces a file by one that only its owner can read; readers see the old text or the new, never half."""
    handle, fresh = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    Path(fresh).rename(file)
