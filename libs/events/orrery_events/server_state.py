"""The state of a server, folded from its events: the one place that knows what each event makes of it.

    REQUESTED ─► CLAIMED ─► READY ─► STOP_REQUESTED ─► STOP_CLAIMED ─► STOPPED ─► (REMOVED)
        │           ├─► FAILED   └──────────────────────────────────────▲
        ├─► EXPIRED └─► CANCELLED

Shared by whoever asks for servers (api) and whoever runs them (spawner); what may be appended next is for each of them
to decide.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from .catalog.server import (
    Failed,
    Ready,
    Removed,
    ServerEvent,
    StartCancelled,
    StartClaimed,
    StartExpired,
    StartRequested,
    StopClaimed,
    Stopped,
    StopRequested,
    server_url_path,
)
from .registry import Event

DEADLINE_DEFAULT_S: Final = 300.0
"""For a start request that names no deadline."""


class Phase(StrEnum):
    """Where a server's current generation stands."""

    NONE = "none"
    REQUESTED = "requested"
    CLAIMED = "claimed"
    READY = "ready"
    STOP_REQUESTED = "stop_requested"
    STOP_CLAIMED = "stop_claimed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    STOPPED = "stopped"
    REMOVED = "removed"


PHASES: dict[type[ServerEvent], Phase] = {
    StartRequested: Phase.REQUESTED,
    StartClaimed: Phase.CLAIMED,
    Ready: Phase.READY,
    StopRequested: Phase.STOP_REQUESTED,
    StopClaimed: Phase.STOP_CLAIMED,
    Failed: Phase.FAILED,
    StartCancelled: Phase.CANCELLED,
    StartExpired: Phase.EXPIRED,
    Stopped: Phase.STOPPED,
    Removed: Phase.REMOVED,
}
STARTING = frozenset({Phase.REQUESTED, Phase.CLAIMED})
STOPPING = frozenset({Phase.STOP_REQUESTED, Phase.STOP_CLAIMED})
ENDED = frozenset({Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED, Phase.STOPPED, Phase.REMOVED})
"""Nothing of this generation may run any more."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One server, folded. `last` is its latest event that says what it is (they all repeat everything)."""

    server_id: str
    version: int = 0
    """Version of its stream up to which this is folded."""
    last: ServerEvent | None = None

    @property
    def phase(self) -> Phase:
        return PHASES[type(self.last)] if self.last is not None else Phase.NONE

    @property
    def generation(self) -> int:
        return self.last.generation if self.last is not None else 0

    @property
    def claimed_by(self) -> str:
        """The spawner instance that takes care of it now; empty when none has to."""
        claimed = self.phase in (Phase.CLAIMED, Phase.READY, *STOPPING)
        return self.last.instance_id if self.last is not None and claimed else ""

    def is_start_of(self, instance_id: str, generation: int) -> bool:
        """True while that instance holds the claim on the start of that generation."""
        return self.phase is Phase.CLAIMED and self.claimed_by == instance_id and self.generation == generation

    @property
    def deadline(self) -> float:
        """Unix seconds by which this start must have come to an end."""
        if self.last is None:
            return 0.0
        return self.last.deadline or self.last.requested_at + DEADLINE_DEFAULT_S

    @property
    def url_path(self) -> str:
        """Where it is served, without the platform's base path; also its route's prefix."""
        return server_url_path(self.last.user_name, self.last.name) if self.last is not None else ""


def evolve(server: Server, event: Event, version: int) -> Server:
    """The server after one more event of its stream; route events and the timeline only move the version."""
    last = event if isinstance(event, ServerEvent) and type(event) in PHASES else server.last
    return Server(server_id=server.server_id, version=version, last=last)


_FACTS = tuple(field.name for field in msgspec.structs.fields(ServerEvent))


def facts(server: Server, **changed: Any) -> dict[str, Any]:
    """What every event about this server repeats, as arguments of the next one."""
    if server.last is None:
        raise ValueError(f"server {server.server_id} has no history")
    return {name: getattr(server.last, name) for name in _FACTS} | changed
