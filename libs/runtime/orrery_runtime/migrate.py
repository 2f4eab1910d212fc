"""Migrations: alembic, one location per schema, each with its own version table inside that schema.

`upgrade` is safe to call from many processes at once (an advisory lock lets one work while the others wait) and cheap
when there is nothing to do: the versions are compared with asyncpg first, and alembic is not even imported.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from .errors import StartupError

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK_TIMEOUT_S = 4
STATEMENT_TIMEOUT_S = 60
WAIT_FOR_OTHER_S = 120
LOCK_KEY = 0x6F727265
"""Advisory lock of whoever migrates ("orre")."""


class MigrationLocation(msgspec.Struct, frozen=True):
    """Where the migrations of one schema are: `path/versions/NNNN_name.py`, applied in the order of their numbers."""

    name: str
    schema: str
    path: Path

    def head(self) -> str:
        """The newest revision there is; its file is named `<revision>_<what>.py`."""
        revisions = [p.name.partition("_")[0] for p in self.path.glob("versions/[0-9]*.py")]
        if not revisions:
            raise StartupError(f"{self.name}: there are no migrations in its package: install Orrery again")
        return max(revisions)


ES = MigrationLocation("es", "es", Path(__file__).parent / "migrations" / "es")


async def upgrade(database_url: str, locations: Sequence[MigrationLocation]) -> list[str]:
    """Brings every location to its newest revision; returns the names of those that changed.

    Raises StartupError with one sentence when the database does not answer or refuses.
    """
    try:
        connection = await asyncpg.connect(database_url, timeout=10, command_timeout=WAIT_FOR_OTHER_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise StartupError(unreachable(database_url, error)) from error
    try:
        if not await _outdated(connection, locations):
            return []
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        outdated = await _outdated(connection, locations)
        for location in outdated:
            await _upgrade_one(database_url, location)
        return [location.name for location in outdated]
    finally:
        await connection.close()


async def _outdated(connection: asyncpg.Connection, locations: Sequence[MigrationLocation]) -> list[MigrationLocation]:
    outdated = []
    for location in locations:
        table = f"{location.schema}.alembic_version"
        current = None
        if await connection.fetchval("SELECT to_regclass($1)", table) is not None:
            current = await connection.fetchval(f"SELECT version_num FROM {table}")  # noqa: S608 (our own schema name)
        if current is not None and current > location.head():
            raise StartupError(
                f"schema {location.schema} is at revision {current}, newer than this release's {location.head()}: "
                "install the release that wrote it"
            )
        if current != location.head():
            outdated.append(location)
    return outdated


async def _upgrade_one(database_url: str, location: MigrationLocation) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 (only when there is something to do)
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    async def connect() -> Any:
        return await asyncpg.connect(database_url, timeout=10, command_timeout=STATEMENT_TIMEOUT_S)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_run_alembic, location)
            await connection.commit()
    finally:
        await engine.dispose()


def _run_alembic(connection: Connection, location: MigrationLocation) -> None:
    from alembic.migration import MigrationContext  # noqa: PLC0415
    from alembic.operations import Operations  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
    connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {location.schema}")
    script = ScriptDirectory(str(location.path))
    context = MigrationContext.configure(
        connection,
        opts={
            "version_table_schema": location.schema,
            "fn": lambda revision, _context: script._upgrade_revs("head", revision),  # noqa: SLF001 (alembic's own recipe)
        },
    )
    with context.begin_transaction(), Operations.context(context):
        context.run_migrations()


def unreachable(database_url: str, error: BaseException) -> str:
    """One sentence for an operator; it never holds the password."""
    place = re.sub(r"//[^@/]*@", "//", database_url).partition("?")[0]
    match error:
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            reason, action = "it refused the user or the password", "correct ORRERY_DATABASE_URL"
        case asyncpg.InvalidCatalogNameError():
            reason, action = "it has no database of that name", "create it or correct ORRERY_DATABASE_URL"
        case asyncio.TimeoutError():
            reason, action = "no answer in time", "start it or correct ORRERY_DATABASE_URL"
        case OSError():
            reason, action = error.strerror or type(error).__name__, "start it or correct ORRERY_DATABASE_URL"
        case _:
            reason, action = str(error).partition("\n")[0], "correct ORRERY_DATABASE_URL"
    return f"Postgres at {place} cannot be used ({reason}): {action}"
