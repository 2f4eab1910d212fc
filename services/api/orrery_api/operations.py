"""What can be asked of the platform: the shell around `domain`. Reads the stream, decides, appends. Knows no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable
from typing import Final

import msgspec

from orrery_events.catalog.profile import JUPYTERLAB, Profile, profile_stream
from orrery_events.catalog.server import server_id_of, server_stream
from orrery_events.catalog.user import user_stream
from orrery_events.errors import Conflict, LogUnavailable, OrreryError, UnknownEventType
from orrery_events.ids import new_id
from orrery_events.log import EventLog
from orrery_events.registry import Event
from orrery_events.server_state import ENDED, Phase, Server, evolve
from orrery_events.tail import Tail
from orrery_events.user_state import UserFold, fold
from orrery_runtime.identity import User

from . import domain
from .projections import ApiState
from .watch import Watch

RETRIES_MAX: Final = 10
SLOW_SPAWN_S: Final = 10.0
"""How long an answer to a start waits for it to be ready (JupyterHub's `slow_spawn_timeout`)."""
SLOW_STOP_S: Final = 10.0
PAGE: Final = 1000


class UnknownProfile(OrreryError):
    """There is no such profile."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of a wish."""

    server: Server
    position: int
    """The log's position to read up to; 0: nothing was appended."""


class Operations:
    """Starts, stops, people, profiles."""

    def __init__(self, log: EventLog, tail: Tail[ApiState], watch: Watch) -> None:
        self.log, self.tail, self.watch = log, tail, watch

    @property
    def state(self) -> ApiState:
        return self.tail.state

    async def read_server(self, server_id: str) -> Server:
        """The server folded to the head of its stream. Starts from what is known and reads on."""
        known = self.state.servers.get(server_id)
        server = known.server if known else Server(server_id=server_id)
        while True:
            rows = await self.log.read_stream(server_stream(server_id), after_version=server.version, limit=PAGE)
            for row in rows:
                try:
                    server = evolve(server, row.event(), row.stream_version)
                except UnknownEventType:
                    server = msgspec.structs.replace(server, version=row.stream_version)
            if len(rows) < PAGE:
                return server

    async def start(
        self, owner: User, name: str, *, profile: str, display_name: str, options: dict[str, object], actor: str,
        key: uuid.UUID | None = None,
    ) -> Outcome:  # fmt: skip
        """Asks for a start. Raises NotNow, UnknownProfile, LogUnavailable."""
        ask = domain.Ask(
            server_id=server_id_of(owner.user_id, name),
            user_id=owner.user_id,
            user_name=owner.name,
            name=name,
            display_name=display_name,
            profile=profile,
            options=options,
            requested_by=actor,
        )
        chosen = self._profile(domain.profile_of(await self.read_server(ask.server_id), ask, JUPYTERLAB.name))
        return await self._decide_server(
            ask.server_id, lambda server: domain.decide_start(server, ask, chosen, now=time.time()), actor, key
        )

    async def stop(self, server_id: str, *, remove: bool, actor: str) -> Outcome:
        """Asks for a stop, or cancels a start. Raises NotNow, LogUnavailable."""
        return await self._decide_server(
            server_id, lambda server: domain.decide_stop(server, requested_by=actor, remove=remove), actor, None
        )

    async def settled(self, server_id: str, generation: int, timeout_s: float, *, asked_at: int) -> Server | None:
        """Waits until that generation is ready or ended; None when it takes longer. `asked_at`: the position of the
        wish: what is known from before it says nothing of what becomes of it."""

        def reached() -> Server | None:
            if self.tail.position < asked_at:
                return None
            entry = self.state.servers.get(server_id)
            if entry is None:
                return Server(server_id=server_id)
            server = entry.server
            done = server.phase is Phase.READY or server.phase in ENDED
            return server if server.generation > generation or (server.generation == generation and done) else None

        return await self._wait(server_id, reached, timeout_s)

    async def ended(self, server_id: str, timeout_s: float, *, asked_at: int) -> Server | None:
        """Waits until the server does not run any more; None when it takes longer. `asked_at`: as with `settled`."""

        def reached() -> Server | None:
            if self.tail.position < asked_at:
                return None
            entry = self.state.servers.get(server_id)
            if entry is None:
                return Server(server_id=server_id)
            return entry.server if entry.server.phase in ENDED else None

        return await self._wait(server_id, reached, timeout_s)

    async def _wait(self, server_id: str, reached: Callable[[], Server | None], timeout_s: float) -> Server | None:
        with self.watch.listen(server_id) as queue, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (server := reached()) is None:
                    await queue.get()
                return server
        return None

    async def _decide_server(
        self,
        server_id: str,
        decide: Callable[[Server], list[Event]],
        actor: str,
        key: uuid.UUID | None,
    ) -> Outcome:
        for _ in range(RETRIES_MAX):
            # A repetition is answered as the first time, whatever became of the server since.
            earlier = await self.log.find_command(key) if key is not None else None
            server = await self.read_server(server_id)
            if earlier is not None:
                await self.tail.wait_for(earlier.last_position)
                return Outcome(server, earlier.last_position)
            events = decide(server)
            if not events:
                return Outcome(server, 0)
            try:
                done = await self.log.append(
                    server_stream(server_id), events, expected_version=server.version, command_id=key, actor=actor
                )
            except Conflict:
                continue
            if done.duplicate:
                continue
            for version, event in enumerate(events, server.version + 1):
                server = evolve(server, event, version)
            await self.tail.wait_for(done.last_position)
            return Outcome(server, done.last_position)
        raise LogUnavailable("this server keeps changing: try again in a moment")

    def _profile(self, name: str) -> Profile:
        profile = self.state.profile(name)
        if profile is None:
            raise UnknownProfile(f"there is no profile {name!r}: choose one of {self._profile_names()}")
        return profile

    def _profile_names(self) -> str:
        return ", ".join(profile.name for profile in self.state.profiles())

    # People

    async def create_user(self, name: str, *, admin: bool, actor: str) -> int:
        """Returns the position. Raises Exists."""
        return await self._decide_user(
            name,
            lambda user: domain.decide_create_user(user, user_id=new_id(), name=name, admin=admin, now=time.time()),
            actor,
        )

    async def set_admin(self, name: str, *, admin: bool, actor: str) -> int:
        return await self._decide_user(name, lambda user: domain.decide_update_user(user, admin=admin), actor)

    async def delete_user(self, user: User, *, actor: str) -> int:
        """Stops and removes their servers, then the person."""
        for entry in list(self.state.servers_of(user.user_id)):
            await self.stop(entry.server.server_id, remove=True, actor=actor)
        return await self._decide_user(user.name, domain.decide_delete_user, actor)

    async def _decide_user(self, name: str, decide: Callable[[UserFold], list[Event]], actor: str) -> int:
        for _ in range(RETRIES_MAX):
            rows = await self.log.read_stream(user_stream(name), limit=10_000)
            user = fold((row.event(), row.stream_version) for row in rows)
            events = decide(user)
            if not events:
                return 0
            try:
                done = await self.log.append(user_stream(name), events, expected_version=user.version, actor=actor)
            except Conflict:
                continue
            await self.tail.wait_for(done.last_position)
            return done.last_position
        raise LogUnavailable(f"user {name!r} keeps changing: try again in a moment")

    # Profiles

    async def define_profile(self, profile: Profile, *, actor: str) -> int:
        """Raises InvalidName and ValueError."""
        done = await self.log.append(profile_stream(profile.name), domain.decide_profile(profile), actor=actor)
        await self.tail.wait_for(done.last_position)
        return done.last_position

    async def remove_profile(self, name: str, *, actor: str) -> int:
        done = await self.log.append(profile_stream(name), domain.decide_remove_profile(name), actor=actor)
        await self.tail.wait_for(done.last_position)
        return done.last_position
