"""Real Postgres and real NATS for tests: the embedded ones of the product, in directories of the tests' own."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from orrery_api.schema import MIGRATIONS as API
from orrery_auth.schema import MIGRATIONS as AUTH
from orrery_cli.embedded import EmbeddedNats, EmbeddedPostgres
from orrery_runtime.migrate import ES, upgrade

_numbers = itertools.count(1)


def open_directory(prefix: str) -> Path:
    """A directory below /tmp that the unprivileged user of the database can pass when tests run as root."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    path.chmod(0o711)
    return path


class PostgresServer:
    """A cluster of the tests' own."""

    def __init__(self) -> None:
        self.directory = open_directory("orrery-pg-")
        self.embedded = EmbeddedPostgres(self.directory)
        self.embedded.prepare()
        self._template = False

    async def start(self) -> None:
        with (self.directory / "postgres.log").open("ab") as log:
            self.embedded.start(log)
        await self.embedded.wait_ready()

    async def kill(self) -> None:
        """SIGKILL to the postmaster; returns when it is gone."""
        process = self.embedded.process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)

    async def restart(self) -> None:
        await self.start()

    def stop(self) -> None:
        self.embedded.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    async def create_database(self, *, migrated: bool) -> str:
        """The URL of a fresh database. Migrated ones are copies of a template that is migrated once."""
        if migrated and not self._template:
            await self._create("orrery_template", "template1")
            await migrate_everything(self.url("orrery_template"))
            self._template = True
        name = f"test_{next(_numbers)}"
        await self._create(name, "orrery_template" if migrated else "template1")
        return self.url(name)

    def url(self, database: str) -> str:
        return self.embedded.url.replace("@/orrery?", f"@/{database}?")

    async def _create(self, name: str, template: str) -> None:
        admin = await asyncpg.connect(self.embedded.admin_url())
        try:
            await admin.execute(f"CREATE DATABASE {name} OWNER orrery TEMPLATE {template} STRATEGY file_copy")
        finally:
            await admin.close()


async def migrate_everything(database_url: str) -> None:
    """All schemas, as `orrery up` does it."""
    await upgrade(database_url, [ES, AUTH, API])


class NatsServer:
    """A nats-server with JetStream of one test's own."""

    def __init__(self) -> None:
        self.directory = open_directory("orrery-nats-")
        self.embedded = EmbeddedNats(self.directory)
        self.embedded.prepare()

    @property
    def url(self) -> str:
        return self.embedded.url

    @property
    def relay_url(self) -> str:
        return self.embedded.relay_url

    @property
    def store_dir(self) -> Path:
        return self.embedded.store_dir

    async def start(self) -> None:
        with (self.directory / "nats.log").open("ab") as log:
            self.embedded.start(log)
        await self.embedded.wait_ready()

    async def kill(self) -> None:
        process = self.embedded.process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)

    async def restart(self) -> None:
        """Starts it again on the same port with what is in its store."""
        self.embedded.stop()
        await self.start()

    def stop(self) -> None:
        self.embedded.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The database server that all tests of this worker share; each test has databases of its own on it."""
    server = PostgresServer()
    asyncio.run(server.start())
    yield server
    server.stop()


@pytest.fixture
async def own_postgres() -> AsyncIterator[PostgresServer]:
    """A database server of this test alone, to be killed."""
    server = PostgresServer()
    try:
        await server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def empty_database_url(postgres: PostgresServer) -> str:
    return await postgres.create_database(migrated=False)


@pytest.fixture
async def database_url(postgres: PostgresServer) -> str:
    return await postgres.create_database(migrated=True)


@asynccontextmanager
async def running_nats() -> AsyncIterator[NatsServer]:
    server = NatsServer()
    try:
        await server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    async with running_nats() as server:
        yield server
