"""A real Postgres and a real NATS for tests, from the embedded binaries. Fixtures: tests/conftest.py.

Each pytest worker has one Postgres, started when the first test needs it, and each test its own database in it, copied
from one that was migrated once. A test that wants to kill Postgres or NATS has one of its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import uuid_utils

from orrery_api.schema import MIGRATIONS as API
from orrery_auth.schema import MIGRATIONS as AUTH
from orrery_cli.embedded.nats import Nats
from orrery_cli.embedded.postgres import OWNER, Postgres
from orrery_cli.embedded.roles import provision
from orrery_runtime.migrate import ES, upgrade

T = TypeVar("T")

TEMPLATE = "orrery_template"
# Tests kill processes, never the machine.
QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end on a loop of its own, whether or not this thread has one running."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Server(Protocol):
    """Of a test's own."""

    def launch(self) -> None: ...
    async def ready(self) -> None: ...
    def remove(self) -> None: ...


S = TypeVar("S", bound=Server)


@contextmanager
def running(server: S) -> Iterator[S]:
    """From the main thread; the server is ready, and gone in the end."""
    try:
        server.launch()
        blocking(server.ready())
        yield server
    finally:
        server.remove()


class PostgresServer:
    """A Postgres of a test's own, on a socket. `.url` is an empty database, owned by its user."""

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="orrery-t-"))
        # The database runs as an unprivileged user when the tests run as root, and must be able to get there.
        self.root.chmod(0o711)
        self.postgres = Postgres(self.root / "pg", settings={**QUICK, **(settings or {})})
        self.log = self.root / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._template_made = False

    @property
    def url(self) -> str:
        return self.postgres.url()

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def launch(self) -> None:
        """From the main thread: the kernel ends the server when the thread that launched it ends."""
        self.postgres.prepare()
        with self.log.open("ab") as output:
            self._process = self.postgres.launch(output)

    async def ready(self) -> None:
        assert self._process is not None, "launch it first"
        await self.postgres.wait_ready(self._process)
        await provision(self.postgres.roles())

    async def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer does it; returns when it is gone."""
        await asyncio.to_thread(self._end, signal.SIGKILL)

    async def stop(self) -> None:
        """A fast shutdown."""
        await asyncio.to_thread(self._end, signal.SIGINT)

    async def restart(self) -> None:
        """Starts it again on the same socket, after `kill` or `stop` or instead of them."""
        await self.stop()
        self.launch()
        await self.ready()

    def remove(self) -> None:
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.root, ignore_errors=True)

    async def create_database(self, *, migrated: bool) -> str:
        """A new database and its URL."""
        if migrated and not self._template_made:
            await self._create(TEMPLATE, "template0")
            await upgrade(self.postgres.url(database=TEMPLATE), [ES, AUTH, API])
            self._template_made = True
        name = f"t_{uuid_utils.uuid7().hex}"
        await self._create(name, TEMPLATE if migrated else "template0")
        return self.postgres.url(database=name)

    async def drop_database(self, url: str) -> None:
        """Ends its connections, too."""
        name = urlsplit(url).path.lstrip("/")
        await self._as_superuser(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _create(self, name: str, template: str) -> None:
        await self._as_superuser(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template}")

    async def _as_superuser(self, statement: str) -> None:
        connection = await asyncpg.connect(self.postgres.url(database="postgres", superuser=True))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            process.wait(30)


class NatsServer:
    """A nats-server of a test's own. `.url` is a service's, `.relay_url` the relay's (it may make streams)."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="orrery-t-"))
        self._nats = Nats(self.root / "nats")
        self.log = self.root / "nats.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._nats.url("service")

    @property
    def relay_url(self) -> str:
        return self._nats.url("relay")

    @property
    def wrong_url(self) -> str:
        """The right place with a wrong password."""
        split = urlsplit(self.url)
        return urlunsplit(split._replace(netloc=f"service:wrong@127.0.0.1:{split.port}"))

    @property
    def store_dir(self) -> Path:
        return self._nats.store_dir

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def launch(self) -> None:
        """From the main thread: the kernel ends the server when the thread that launched it ends."""
        self._nats.prepare()
        with self.log.open("ab") as output:
            self._process = self._nats.launch(output)

    async def ready(self) -> None:
        assert self._process is not None, "launch it first"
        await self._nats.wait_ready(self._process)

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        await asyncio.to_thread(self._end, signal.SIGKILL)

    async def stop(self) -> None:
        await asyncio.to_thread(self._end, signal.SIGTERM)

    async def restart(self) -> None:
        """Starts it again on the same port, after `kill` or `stop` or instead of them."""
        await self.stop()
        self.launch()
        await self.ready()

    def wipe(self) -> None:
        """Deletes JetStream's store; call it while the server is down."""
        shutil.rmtree(self.store_dir, ignore_errors=True)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        self._end(signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            process.wait(30)
