"""Fixtures for every tier. What they hand out is described in tests/support/backbone.py."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.support.backbone import NatsServer, PostgresServer, blocking, running

# Python finds a folder for temporary files wherever this user may write; the browser's driver would only try /tmp.
os.environ.setdefault("TMPDIR", tempfile.gettempdir())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of a group share a platform. Spread over workers they would disturb each other in ways that look random."""
    if config.getoption("loadgroup", default=False):
        spread = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if spread:
            raise pytest.UsageError(f"pytest-xdist does not keep {spread[0]} with its group: check their versions")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The worker's Postgres. Never kill it: others use it. `own_postgres` is for that."""
    with running(PostgresServer()) as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A Postgres to be killed: `await .kill()`, `await .restart()`, `await .create_database(migrated=True)`.

    What it acknowledged survives the kill, unlike in the worker's quick one.
    """
    with running(PostgresServer(settings={"synchronous_commit": "on"})) as server:
        yield server


@pytest.fixture
def empty_database_url(postgres: PostgresServer) -> Iterator[str]:
    """A database without a table in it."""
    url = blocking(postgres.create_database(migrated=False))
    yield url
    blocking(postgres.drop_database(url))


@pytest.fixture
def database_url(postgres: PostgresServer) -> Iterator[str]:
    """A fresh database with all migrations applied."""
    url = blocking(postgres.create_database(migrated=True))
    yield url
    blocking(postgres.drop_database(url))


@pytest.fixture
def nats_server() -> Iterator[NatsServer]:
    """A nats-server with JetStream: `.url`, `.relay_url`, `.store_dir`; await `.kill()`, `.restart()`, `.stop()`."""
    with running(NatsServer()) as server:
        yield server
