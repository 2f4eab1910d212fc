"""Reading one server at the head of its stream, deciding, and appending the decision."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from orrery_events.catalog.server import server_stream
from orrery_events.errors import Conflict, LogUnavailable, OrreryError, UnknownEventType
from orrery_events.log import EventLog
from orrery_events.registry import Event
from orrery_events.server_state import Server, evolve

ACTOR = "service:spawner"
CONFLICTS_MAX = 8
"""How often one decision is taken anew because the stream moved; each time somebody else got on with it."""
RETRY_MIN_S = 0.2
RETRY_MAX_S = 3.0
PAGE = 1000

Decide = Callable[[Server], list[Event]]

_log = structlog.get_logger("orrery.spawner.ledger")


class Fenced(OrreryError):
    """This process could not renew its lease in time: others may have taken over, so it touches nothing more."""


class Ledger:
    """Decides about servers. `known` gives what a projection has of a server, so that only what is newer is read."""

    def __init__(self, log: EventLog, known: Callable[[str], Server | None], *, fresh: Callable[[], bool]) -> None:
        self._log = log
        self._known = known
        self._fresh = fresh

    def fence(self) -> None:
        """Raises Fenced unless everybody still counts this process among the living."""
        if not self._fresh():
            raise Fenced

    async def load(self, server_id: str) -> Server:
        """The server as it is now. Raises LogUnavailable."""
        server = self._known(server_id) or Server(server_id=server_id)
        while True:
            rows = await self._log.read_stream(server_stream(server_id), after_version=server.version, limit=PAGE)
            for recorded in rows:
                try:
                    event = recorded.event()
                except UnknownEventType:
                    # Written by a newer release: it moves the version, and what it says is not ours to judge.
                    server = Server(server_id=server_id, version=recorded.stream_version, last=server.last)
                    continue
                server = evolve(server, event, recorded.stream_version)
            if len(rows) < PAGE:
                return server

    async def settle(self, server_id: str, decide: Decide) -> Server:
        """Appends what `decide` says of the server as it is now, and returns the server after that.

        Whether the aim is reached is to be read off the server: it may have been reached by an earlier attempt whose
        answer was lost, and `decide` may have said that there is nothing (left) to do. Raises LogUnavailable, and
        Conflict if the stream never stood still.
        """
        conflict: Conflict | None = None
        for _ in range(CONFLICTS_MAX):
            server = await self.load(server_id)
            events = decide(server)
            if not events:
                return server
            try:
                done = await self._log.append(
                    server_stream(server_id), events, expected_version=server.version, actor=ACTOR
                )
            except Conflict as error:
                conflict = error
                continue
            for number, event in enumerate(events, start=done.stream_version - len(events) + 1):
                server = evolve(server, event, number)
            return server
        raise conflict or AssertionError("unreachable")

    async def settle_surely(self, server_id: str, decide: Decide) -> Server:
        """The same, waiting while Postgres is away. Raises Fenced."""
        delay_s = RETRY_MIN_S
        while True:
            self.fence()
            try:
                return await self.settle(server_id, decide)
            except (LogUnavailable, Conflict) as error:
                _log.warning("append_delayed", server_id=server_id, reason=str(error), again_in_s=round(delay_s, 2))
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
            delay_s = min(delay_s * 2, RETRY_MAX_S)
