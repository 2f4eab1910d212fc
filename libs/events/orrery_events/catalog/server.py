"""Servers and their life. Stream: `server-<server_id>`; `generation` counts the starts.

    start_requested ─► start_claimed ─► (progressed)* ─► ready ─► stop_requested ─► stop_claimed ─► stopped
           │                 │                             │
           └─► start_expired ├─► failed                    └─► stopped (it ended by itself)
           └─► start_cancelled (before or after the claim)

Every event but `progressed` is fat: it repeats what the server is, so that the last one alone (in `es.latest`) rebuilds
the server's state. `progressed` has no compaction key and changes no state: it is for the timeline.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..ids import derived_id
from ..registry import Event, event


def server_id_of(user_id: str, name: str) -> str:
    """One server per (owner, name): two simultaneous first starts meet on one stream."""
    return derived_id("server", user_id, name)


def server_stream(server_id: str) -> str:
    return f"server-{server_id}"


def server_url_path(user_name: str, name: str) -> str:
    """`/user/ada/` for the default server, `/user/ada/lab/` for a named one; without the platform's base path."""
    return f"/user/{user_name}/{name}/" if name else f"/user/{user_name}/"


class ServerEvent(Event, frozen=True, kw_only=True):
    """What every server event says."""

    server_id: str
    user_id: str
    user_name: str
    name: str = ""
    """Empty for the default server."""
    display_name: str = ""
    profile: str = "jupyterlab"
    generation: int
    user_options: dict[str, Any] = msgspec.field(default_factory=dict)
    requested_at: float = 0.0
    """Unix seconds of this generation's start request."""
    deadline: float = 0.0
    """Unix seconds by which this generation must be ready, failed, cancelled or expired."""
    started_at: float | None = None
    """Unix seconds at which this generation became ready."""
    instance_id: str = ""
    """The spawner instance that holds the claim, once there is one."""

    def aggregate_id(self) -> str:
        return self.server_id

    def compaction_key(self) -> str | None:
        return self.server_id


@event("server.start_requested")
class StartRequested(ServerEvent, frozen=True, kw_only=True):
    """Somebody wants it to run."""

    requested_by: str = ""


@event("server.start_claimed")
class StartClaimed(ServerEvent, frozen=True, kw_only=True):
    """One spawner instance takes care of this generation's start. Claimed again when that instance is lost."""


@event("server.progressed")
class Progressed(Event, frozen=True, kw_only=True):
    """One line of the start's timeline that a person would care about."""

    server_id: str
    generation: int
    progress: int
    """0 to 99; 100 is `ready`."""
    message: str
    step: str = ""

    def aggregate_id(self) -> str:
        return self.server_id


@event("server.ready")
class Ready(ServerEvent, frozen=True, kw_only=True):
    """It answers and is routed (the same command sets the route)."""

    target: str = ""


@event("server.failed")
class Failed(ServerEvent, frozen=True, kw_only=True):
    """The start did not succeed."""

    reason: str
    """One of `command_not_found`, `exited`, `port_never_opened`, `probe_failed`, `profile_unknown`,
    `driver_error`, `timeout`."""
    message: str = ""
    """A sentence a person can act on."""
    exit_code: int | None = None
    log_tail: list[str] = msgspec.field(default_factory=list)
    """The last lines the server printed, secrets masked."""


@event("server.start_cancelled")
class StartCancelled(ServerEvent, frozen=True, kw_only=True):
    """Stopped by a person before it was ready."""


@event("server.start_expired")
class StartExpired(ServerEvent, frozen=True, kw_only=True):
    """No spawner took it before its deadline."""


@event("server.stop_requested")
class StopRequested(ServerEvent, frozen=True, kw_only=True):
    """Somebody wants it to end."""

    requested_by: str = ""
    reason: str = "requested"
    remove: bool = False
    """Remove the record too, once it is stopped."""


@event("server.stop_claimed")
class StopClaimed(ServerEvent, frozen=True, kw_only=True):
    """One spawner instance ends it (the same command removes the route)."""

    reason: str = "requested"
    remove: bool = False


@event("server.stopped")
class Stopped(ServerEvent, frozen=True, kw_only=True):
    """It does not run any more."""

    reason: str = "requested"
    """`requested`, `exited` (by itself), `lost` (its process vanished)."""
    exit_code: int | None = None
    message: str = ""
    log_tail: list[str] = msgspec.field(default_factory=list)


@event("server.removed", tombstone=True)
class Removed(ServerEvent, frozen=True, kw_only=True):
    """The record is gone; its stream and generation count stay."""
