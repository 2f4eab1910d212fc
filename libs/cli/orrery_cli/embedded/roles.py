"""The services' role and database in the embedded Postgres."""

from __future__ import annotations

import msgspec

from orrery_cli.errors import EmbeddedError


class Roles(msgspec.Struct, frozen=True, kw_only=True):
    """Who owns what. Holds passwords: for files and pipes that only we can read."""

    admin_url: str
    owner: str
    password: str
    database: str


async def provision(roles: Roles) -> None:
    """Makes the role and the database when they are missing. Raises EmbeddedError."""
    import asyncpg

    connection = await asyncpg.connect(roles.admin_url)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", roles.owner):
            password = roles.password.replace("'", "''")
            await connection.execute(f"CREATE ROLE {roles.owner} LOGIN PASSWORD '{password}'")
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", roles.database):
            await connection.execute(f"CREATE DATABASE {roles.database} OWNER {roles.owner}")
    except asyncpg.PostgresError as error:
        raise EmbeddedError(f"the embedded database could not be set up ({error}): read its log") from error
    finally:
        await connection.close()
