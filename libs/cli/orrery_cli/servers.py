"""User servers, seen from the command line: how many run, and an end to all of them, by way of the log as always."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from orrery_api.domain import decide_stop
from orrery_events.catalog.server import server_stream
from orrery_events.errors import Conflict, LogUnavailable
from orrery_events.log import EventLog, create_pool
from orrery_events.server_state import ENDED, STARTING, STOPPING, Phase, Server, evolve
from orrery_runtime.startup import close_pool

from .errors import CliError

ACTOR: Final = "service:cli"
STOP_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.1
RETRIES_MAX: Final = 5


@asynccontextmanager
async def opened(database_url: str) -> AsyncIterator[EventLog]:
    """The log, for one command. Raises CliError when Postgres does not answer."""
    try:
        pool: asyncpg.Pool = await create_pool(database_url, application_name="orrery-cli", max_size=2)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise CliError(f"Postgres does not answer ({error}): `orrery status` shows what runs") from None
    log = EventLog(pool, producer="cli")
    await log.start()
    try:
        yield log
    except LogUnavailable as error:
        raise CliError(str(error)) from None
    finally:
        await log.close()
        await close_pool(pool)


async def count_running(log: EventLog) -> int:
    """Servers that are ready."""
    return sum(server.phase is Phase.READY for server in await current(log))


async def stop_all(log: EventLog, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
    """Asks for the end of every server, waits until a spawner has ended them, and returns how many they were.

    Raises CliError when some still run after `timeout_s`.
    """
    wanted = {s.server_id for s in await current(log) if s.phase in STARTING | STOPPING or s.phase is Phase.READY}
    for server_id in wanted:
        await ask_to_stop(log, server_id)
    deadline = time.monotonic() + timeout_s
    while left := [s for s in await current(log) if s.server_id in wanted and s.phase not in ENDED]:
        if time.monotonic() > deadline:
            raise CliError(f"{len(left)} of {len(wanted)} servers do not stop: see `orrery events tail`")
        await asyncio.sleep(POLL_S)
    return len(wanted)


async def ask_to_stop(log: EventLog, server_id: str) -> None:
    """Appends what has to be appended, if anything."""
    stream = server_stream(server_id)
    for _ in range(RETRIES_MAX):
        server = Server(server_id=server_id)
        while rows := await log.read_stream(stream, after_version=server.version):
            for row in rows:
                server = evolve(server, row.event(), row.stream_version)
        events = decide_stop(server, requested_by=ACTOR, remove=False)
        if not events:
            return
        try:
            await log.append(stream, events, expected_version=server.version, actor=ACTOR)
        except Conflict:
            continue
        return


async def current(log: EventLog) -> list[Server]:
    """Every server that has not been removed."""
    found = []
    async with log.snapshot(["server"]) as snapshot:
        async for recorded in snapshot.latest():
            event = recorded.event()
            found.append(evolve(Server(server_id=event.aggregate_id()), event, recorded.stream_version))
    return found
