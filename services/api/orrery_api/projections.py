"""What api knows from the log: people, servers, profiles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from orrery_events.catalog.profile import JUPYTERLAB, Profile, ProfileDefined, ProfileRemoved
from orrery_events.catalog.server import Removed, ServerEvent, server_id_of
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_events.server_state import ENDED, Server, evolve
from orrery_runtime.identity import CATEGORIES as IDENTITY_CATEGORIES
from orrery_runtime.identity import IdentityState

CATEGORIES = (*IDENTITY_CATEGORIES, "server", "profile")


class Entry(msgspec.Struct, frozen=True):
    """A server and when it last changed."""

    server: Server
    changed_at: float
    """Unix seconds."""


class ApiState:
    """The fold. Servers whose record is removed are not in it."""

    def __init__(self) -> None:
        self.identity = IdentityState()
        self.servers: dict[str, Entry] = {}
        """By server id."""
        self.by_owner: dict[str, dict[str, str]] = {}
        """User id → server name → server id."""
        self._profiles: dict[str, Profile] = {}

    def apply(self, recorded: Recorded, event: Event) -> None:
        match event:
            case Removed():
                self.servers.pop(event.server_id, None)
                self.by_owner.get(event.user_id, {}).pop(event.name, None)
            case ServerEvent():
                known = self.servers.get(event.server_id)
                server = known.server if known else Server(server_id=event.server_id)
                server = evolve(server, event, recorded.stream_version)
                self.servers[event.server_id] = Entry(server, recorded.recorded_at)
                self.by_owner.setdefault(event.user_id, {})[event.name] = event.server_id
            case ProfileDefined():
                self._profiles[event.profile.name] = event.profile
            case ProfileRemoved():
                self._profiles.pop(event.name, None)
            case _:
                self.identity.apply(recorded, event)

    def server(self, user_id: str, name: str) -> Entry | None:
        return self.servers.get(server_id_of(user_id, name))

    def servers_of(self, user_id: str) -> Iterator[Entry]:
        """The person's servers, the default one first, then by name."""
        for _, server_id in sorted(self.by_owner.get(user_id, {}).items()):
            yield self.servers[server_id]

    def active(self, user_id: str) -> bool:
        """True if any server of theirs runs or is on its way."""
        return any(entry.server.phase not in ENDED for entry in self.servers_of(user_id))

    def profile(self, name: str) -> Profile | None:
        return self._profiles.get(name) or (JUPYTERLAB if name == JUPYTERLAB.name else None)

    def profiles(self) -> list[Profile]:
        """All of them, the built-in one first."""
        rest = sorted(name for name in self._profiles if name != JUPYTERLAB.name)
        return [self._profiles.get(JUPYTERLAB.name, JUPYTERLAB), *(self._profiles[name] for name in rest)]

    def digest(self) -> str:
        """Equal on all replicas at the same position."""
        servers = [(i, e.server.version, e.server.phase, e.server.last) for i, e in sorted(self.servers.items())]
        parts = [self.identity.digest(), servers, sorted(self._profiles.items())]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]
