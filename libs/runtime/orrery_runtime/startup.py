"""What a process needs before it can begin, and the sentences it ends with when it does not get it."""

from __future__ import annotations

import asyncio
import errno
import random
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import structlog

from orrery_events.bus import Bus
from orrery_events.log import create_pool

from .config import Settings
from .errors import ConfigError, StartupError

RETRY_S: Final = 0.25
PATIENCE_S: Final = 1.0
"""How long Postgres is waited for by a process that can begin without it."""
NATS_VERDICT_TIMEOUT_S: Final = 2.0
NATS_VERDICT_INTERVAL_S: Final = 0.02
NATS_REFUSED: Final = "NATS refused"
"""How `Bus.last_error` begins when the credentials are wrong."""
POOL_CLOSE_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger("orrery.startup")


def own_secrets(settings: Settings) -> list[str]:
    """The secrets among the settings, for the redaction of logs."""
    urls = [settings.database_url, *settings.nats_url.split(",")]
    passwords = [unquote(urlsplit(url.strip()).password or "") for url in urls]
    return [settings.secret_key.get_secret_value(), settings.auth_key.get_secret_value(), *passwords]


def database_place(url: str) -> str:
    """`host:port/name` of a database URL, without the credentials."""
    split = urlsplit(url)
    socket_dir = parse_qs(split.query).get("host", [""])[0]
    place = f"{split.hostname}:{split.port or 5432}" if split.hostname else socket_dir or "the local socket"
    return f"{place}{split.path}" if split.hostname else f"{place} ({split.path.lstrip('/')})"


def cannot_listen(error: OSError, setting: str, port: int) -> StartupError:
    reason = "is in use by another process" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
    return StartupError(f"port {port} {reason}: stop the other one or choose another {setting}")


class Unreachable(StartupError):
    """Postgres cannot be reached. Start it."""


async def connect(
    settings: Settings, application_name: str, *, pool_size: int, may_start_alone: bool = False
) -> tuple[asyncpg.Pool, bool]:
    """A pool on a database that has Orrery's tables, and False. Raises StartupError.

    Waits up to `startup_timeout_s`. Who `may_start_alone` waits for a moment only, and then has a pool that connects
    when it is needed and can, and True.
    """
    wait_s = PATIENCE_S if may_start_alone else settings.startup_timeout_s
    try:
        return await _connect(settings, application_name, pool_size=pool_size, wait_s=wait_s), False
    except Unreachable as error:
        if not may_start_alone:
            raise
        _log.warning("started_without_postgres", reason=str(error))
    url = settings.database_url
    return await create_pool(url, application_name=application_name, min_size=0, max_size=pool_size), True


async def _connect(settings: Settings, application_name: str, *, pool_size: int, wait_s: float) -> asyncpg.Pool:
    if not settings.database_url:
        raise ConfigError("database_url is missing: set ORRERY_DATABASE_URL or run `orrery up`, which brings its own")
    place = database_place(settings.database_url)
    deadline = time.monotonic() + wait_s
    reason = ""
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            pool = await asyncio.wait_for(
                create_pool(settings.database_url, application_name=application_name, max_size=pool_size), left_s
            )
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
            raise StartupError(
                f"Postgres at {place} refused the user or password given in ORRERY_DATABASE_URL: correct them"
            ) from None
        except asyncpg.InvalidCatalogNameError:
            raise StartupError(f"Postgres at {place} has no such database: create it or correct the URL") from None
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if reason and isinstance(error, TimeoutError):
                break  # Our own time was up: what Postgres said before says more.
            if reason != (reason := _reason(error)):
                _log.info("postgres_awaited", place=place, reason=reason)
        else:
            if await _has_tables(pool):
                return pool
            await close_pool(pool)
            reason = "its tables are missing"
        await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
    if reason == "its tables are missing":
        raise StartupError(
            f"the database at {place} has no Orrery tables: apply the migrations first (`orrery migrate`)"
        )
    raise Unreachable(f"Postgres at {place} cannot be reached ({reason}): start it or correct ORRERY_DATABASE_URL")


async def close_pool(pool: asyncpg.Pool) -> None:
    """Closes the connections; those that are still in use after a while are cut."""
    try:
        await asyncio.wait_for(pool.close(), POOL_CLOSE_TIMEOUT_S)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        pool.terminate()


async def require_nats_login(bus: Bus) -> None:
    """Returns when NATS has accepted us or is away (which is no reason not to start). Raises StartupError when it
    refuses the credentials: that does not heal by waiting, and nobody would notice."""
    deadline = time.monotonic() + NATS_VERDICT_TIMEOUT_S
    while not bus.connected and not bus.last_error and time.monotonic() < deadline:  # noqa: ASYNC110 (no event for both)
        await asyncio.sleep(NATS_VERDICT_INTERVAL_S)
    if bus.last_error.startswith(NATS_REFUSED):
        raise StartupError(bus.last_error)


def require_writable(path: Path, setting: str) -> None:
    """Makes the folder if need be. Raises StartupError when this process may not write there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A name of its own: processes that start together on one folder must not remove each other's probe.
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise StartupError(
            f"cannot write to {path} ({error.strerror}): correct its permissions or choose another {setting}"
        ) from None


async def _has_tables(pool: asyncpg.Pool) -> bool:
    return await pool.fetchval("SELECT to_regclass('es.events') IS NOT NULL") is True


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
