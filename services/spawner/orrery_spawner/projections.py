"""What the spawner knows of the log: every server's present state and every profile."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from orrery_events.catalog.profile import JUPYTERLAB, Profile, ProfileDefined, ProfileRemoved
from orrery_events.catalog.server import Removed, ServerEvent
from orrery_events.recorded import Meta, Recorded
from orrery_events.registry import Event
from orrery_events.server_state import Phase, Server, evolve

CATEGORIES = ("server", "profile", "instance")
"""`instance` changes no state here; its events say when claims may have become free."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A server and the event that made it what it is."""

    server: Server
    position: int
    """Of that event: among servers that wait, the order in which they came."""
    meta: Meta
    recorded_at: float
    """Unix seconds."""


class SpawnerState:
    """The projection. Servers whose record is removed are not in it."""

    def __init__(self) -> None:
        self.servers: dict[str, Entry] = {}
        self._profiles: dict[str, Profile] = {}

    def apply(self, recorded: Recorded, event: Event) -> None:
        if isinstance(event, Removed):
            self.servers.pop(event.server_id, None)
        elif isinstance(event, ServerEvent):
            known = self.servers.get(event.server_id)
            server = evolve(
                known.server if known else Server(server_id=event.server_id), event, recorded.stream_version
            )
            self.servers[event.server_id] = Entry(
                server=server, position=recorded.position, meta=recorded.meta, recorded_at=recorded.recorded_at
            )
        elif isinstance(event, ProfileDefined):
            self._profiles[event.profile.name] = event.profile
        elif isinstance(event, ProfileRemoved):
            self._profiles.pop(event.name, None)

    def profile(self, name: str) -> Profile | None:
        """How to run a server of this profile; JupyterLab's is there without anybody defining it."""
        return self._profiles.get(name) or (JUPYTERLAB if name == JUPYTERLAB.name else None)

    def in_phase(self, *phases: Phase) -> Iterator[Entry]:
        return (entry for entry in self.servers.values() if entry.server.phase in phases)

    def digest(self) -> str:
        """Equal on all replicas at the same position."""
        servers = [(s, e.server.version, e.server.phase, e.server.last) for s, e in sorted(self.servers.items())]
        return hashlib.sha256(msgspec.json.encode([servers, sorted(self._profiles.items())])).hexdigest()[:16]
