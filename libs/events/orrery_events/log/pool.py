"""Connections to Postgres, and which of its errors mean "not there" rather than "no"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from ..errors import LogUnavailable

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 60.0
IDLE_CONNECTION_S = 300.0

SERVER_SETTINGS = {
    # An append that cannot get the lock, or hangs, must give way instead of stopping everybody behind it.
    "lock_timeout": "2s",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
}

GONE: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InternalClientError,
)
"""Postgres did not answer, or not in time. What it did with the statement is unknown."""


async def create_pool(
    database_url: str, *, application_name: str, min_size: int = 1, max_size: int = 5
) -> asyncpg.Pool:
    """A pool with our time limits. Raises what asyncpg raises when Postgres is not there or refuses.

    A unix socket is given as `postgresql://user:password@/name?host=/directory`.
    """
    return await asyncpg.create_pool(
        database_url,
        min_size=min_size,
        max_size=max_size,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        max_inactive_connection_lifetime=IDLE_CONNECTION_S,
        reset=_leave_as_it_is,
        server_settings={**SERVER_SETTINGS, "application_name": application_name},
    )


async def _leave_as_it_is(_connection: PoolConnectionProxy) -> None:
    """asyncpg would send four statements after each use. Nothing here changes a session for longer than a transaction,
    and a transaction that is still open is rolled back all the same."""


@contextmanager
def unavailable_means_log_unavailable() -> Iterator[None]:
    """Turns the errors of `GONE` into LogUnavailable, whose message names the next action."""
    try:
        yield
    except GONE as error:
        raise LogUnavailable(
            f"the event log (Postgres) does not answer ({type(error).__name__}): retry soon"
        ) from error
