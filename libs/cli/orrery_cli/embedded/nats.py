"""The embedded NATS: one nats-server with JetStream, on the loopback address, with two users.

    home/           0700
      nats.conf     0600, written anew at every start: it holds the passwords, which are never in an argument list
      port          chosen once, so that clients find the server again after a restart
      jetstream/    a copy of the log's recent part; deleting it loses nothing
      *.password    0600

`relay` may do everything. `service` may not publish events nor change the stream: that is the relay's alone, because
the stream's sequence numbers must equal the log's positions.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import IO, Any, Literal

from orrery_cli.errors import EmbeddedError

from . import binaries, child
from .osuser import own_folder
from .postgres import write_secret

User = Literal["relay", "service"]
READY_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 1.0
MAX_PAYLOAD_BYTES = 1_048_576
MAX_STORE_BYTES = 4 * 2**30
MAX_CONNECTIONS = 1_000
LEFTOVER_STEPS = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))

CONFIG = """\
# Written at every start.
listen: "127.0.0.1:{port}"
server_name: "orrery"
max_payload: {max_payload}
max_connections: {max_connections}
write_deadline: "5s"
# nats-py's read loop dies of the other form of flow control.
feature_flags {{ js_ack_fc_v2: false }}
jetstream {{
  store_dir: {store_dir}
  max_memory_store: {max_memory}
  max_file_store: {max_store}
}}
authorization {{
  users: [
    {{ user: "relay", password: {relay} }}
    {{ user: "service", password: {service}, permissions {{
        publish {{ deny: [
          "orrery.v1.evt.>", "orrery.v1.sys.head",
          "$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>", "$JS.API.STREAM.DELETE.>", "$JS.API.STREAM.PURGE.>",
          "$JS.API.STREAM.MSG.DELETE.>", "$JS.API.STREAM.RESTORE.>", "$JS.API.STREAM.SNAPSHOT.>",
          "$JS.API.ACCOUNT.PURGE.>"
        ] }}
    }} }}
  ]
}}
"""


class Nats:
    """One nats-server. `prepare`, `launch`, `wait_ready`, in this order."""

    def __init__(self, home: Path, *, store_dir: Path | None = None) -> None:
        self.home = home.absolute()
        self.store_dir = store_dir or self.home / "jetstream"
        self.port = 0
        self.version = ""
        """Known once it answers."""

    def prepare(self) -> None:
        """Folders, port, configuration; a leftover server of this folder is ended. Raises EmbeddedError."""
        own_folder(self.home, None)
        self._program = binaries.nats_server()
        self.end_leftovers()
        self.port = self._choose_port()
        self._write_config()

    def launch(self, output: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Starts the server. It ends when the calling thread's process dies."""
        return child.start(
            [str(self._program), "-c", str(self._config)],
            cwd=self.home,
            env={"PATH": os.defpath, "HOME": str(self.home)},
            output=output,
            death_signal=signal.SIGTERM,
        )

    async def wait_ready(self, process: subprocess.Popen[bytes], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Returns when the server greets clients. Raises EmbeddedError when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            info = await probe(self.port)
            if info is not None and info.get("jetstream"):
                self.version = str(info.get("version", ""))
                return
            if process.poll() is not None:
                raise EmbeddedError(f"nats-server ended with code {process.returncode} while starting: read its log")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"nats-server did not answer within {timeout_s:.0f} s: read its log")
            await asyncio.sleep(child.POLL_S)

    def url(self, user: User) -> str:
        """With the password in it: for an environment, never for an argument list or a log."""
        return f"nats://{user}:{self._password(user)}@127.0.0.1:{self.port}"

    def end_leftovers(self) -> None:
        """Ends a server with this configuration that outlived its supervisor."""
        if not self._config.exists():
            return
        mine = child.running(lambda p: p.name() == "nats-server" and p.cmdline()[-1] == str(self._config))
        if not child.end(mine, LEFTOVER_STEPS):
            pids = ", ".join(str(p.pid) for p in mine)
            raise EmbeddedError(f"an earlier nats-server on {self.home} does not end: kill {pids} and try again")

    @property
    def _config(self) -> Path:
        return self.home / "nats.conf"

    def _choose_port(self) -> int:
        """The remembered port, or a new one when there is none or another program took it meanwhile."""
        file = self.home / "port"
        try:
            port = int(file.read_text())
        except (OSError, ValueError):
            port = 0
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        file.write_text(f"{port}\n")
        return port

    def _password(self, user: User) -> str:
        file = self.home / f"{user}.password"
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            # Letters and digits only: it goes into a URL and into the configuration as it is.
            return write_secret(file, secrets.token_hex(32))

    def _write_config(self) -> None:
        text = CONFIG.format(
            port=self.port,
            store_dir=json.dumps(str(self.store_dir)),
            max_payload=MAX_PAYLOAD_BYTES,
            max_connections=MAX_CONNECTIONS,
            max_memory=64 * 2**20,
            max_store=MAX_STORE_BYTES,
            relay=json.dumps(self._password("relay")),
            service=json.dumps(self._password("service")),
        )
        write_secret(self._config, text)


async def probe(port: int) -> dict[str, Any] | None:
    """What the nats-server on this port says of itself in its greeting; None when none answers."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    kind, _, body = line.partition(b" ")
    try:
        return dict(json.loads(body)) if kind == b"INFO" else None
    except ValueError:
        return None
