"""What a server is and what may be appended about it. Pure: values in, events out.

    REQUESTED ──claim──► CLAIMED ──ready──► READY ──(api) stop_requested──► STOP_REQUESTED ──claim_stop──► STOP_CLAIMED
        │                  │ │                 └──vanished──► STOPPED ◄──────────────stopped────────────────────┘
        └─expire─► EXPIRED │ └─(api) start_cancelled─► CANCELLED
                           └─fail─► FAILED

A claim of an instance that is gone may be claimed again, for the same generation. Every decision takes the server
folded to the head of its stream, answers the events to append with that version expected, and answers none when the
server has moved on: then the caller walks away and touches nothing.
"""

from __future__ import annotations

import msgspec

from orrery_events.catalog.profile import Profile
from orrery_events.catalog.route import RouteRemoved, RouteSet, route_id_of
from orrery_events.catalog.server import (
    Failed,
    Progressed,
    Ready,
    Removed,
    StartClaimed,
    StartExpired,
    StopClaimed,
    Stopped,
    StopRequested,
)
from orrery_events.registry import Event
from orrery_events.server_state import Phase, Server, facts

OVERDUE_GRACE_S = 10.0
"""The claimer itself ends a start at its deadline; this much later anybody may."""
MESSAGE_LENGTH_MAX = 1000
"""Characters of a reason given to a person."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a start did not succeed, as a person may read it."""

    reason: str
    """As in `server.failed`."""
    message: str
    exit_code: int | None = None
    log_tail: list[str] = msgspec.field(default_factory=list)


def claim_start(server: Server, instance_id: str, *, dead: str = "", now: float) -> list[Event]:
    """This instance takes the start: nobody has yet, or the instance that had is `dead` (known to be gone, or this very
    one, which lost track). Only that one: whoever else holds the claim by now may be alive."""
    if now >= server.deadline:
        return []
    free = server.phase is Phase.REQUESTED
    abandoned = server.phase is Phase.CLAIMED and server.claimed_by == dead
    return [StartClaimed(**facts(server, instance_id=instance_id))] if free or abandoned else []


def progress(
    server: Server, instance_id: str, generation: int, *, step: str, percent: int, message: str
) -> list[Event]:
    """One line of the timeline, while the claim holds."""
    if not server.is_start_of(instance_id, generation):
        return []
    return [Progressed(server_id=server.server_id, generation=generation, progress=percent, message=message, step=step)]


def ready(
    server: Server, instance_id: str, generation: int, *, target: str, profile: Profile, now: float
) -> list[Event]:
    """It answers: the route first, so that whoever has seen `ready` finds the route at or before it."""
    if not server.is_start_of(instance_id, generation):
        return []
    known = facts(server, started_at=now)
    prefix = server.url_path
    route = RouteSet(
        route_id=route_id_of(prefix),
        prefix=prefix,
        target=target,
        policy="owner",
        owner_id=known["user_id"],
        owner_name=known["user_name"],
        server_id=server.server_id,
        server_name=known["name"],
        generation=generation,
        strip_prefix=profile.strip_prefix,
        identity_headers=profile.identity_headers,
        rewrite_location=profile.rewrite_location,
        response_timeout_s=profile.response_timeout_s,
        secret_header=profile.secret_header,
        secret_prefix=profile.secret_prefix,
    )
    return [route, Ready(**known, target=target)]


def fail(server: Server, instance_id: str, generation: int, failure: Failure) -> list[Event]:
    """The claimer gives up."""
    return [_failed(server, failure)] if server.is_start_of(instance_id, generation) else []


def expire(server: Server, *, now: float) -> list[Event]:
    """Nobody took it in time, or whoever took it did not come to an end in time."""
    if server.phase is Phase.REQUESTED and now >= server.deadline:
        return [StartExpired(**facts(server))]
    if server.phase is Phase.CLAIMED and now >= server.deadline + OVERDUE_GRACE_S:
        message = "The start was not finished in time. Try again; if that does not help, ask an administrator."
        return [_failed(server, Failure(reason="timeout", message=message))]
    return []


def claim_stop(server: Server, instance_id: str, *, dead: str = "") -> list[Event]:
    """This instance ends it, unless another than `dead` already does. From here on nothing is routed to it."""
    free = server.phase is Phase.STOP_REQUESTED
    abandoned = server.phase is Phase.STOP_CLAIMED and server.claimed_by == dead
    last = server.last
    if not (free or abandoned) or not isinstance(last, StopRequested | StopClaimed):
        return []
    claimed = StopClaimed(**facts(server, instance_id=instance_id), reason=last.reason, remove=last.remove)
    return [_route_removed(server), claimed]


def stopped(server: Server, instance_id: str, *, exit_code: int | None, log_tail: list[str]) -> list[Event]:
    """What `claim_stop` began is done; with it goes the record, if that was asked for."""
    last = server.last
    if not isinstance(last, StopClaimed) or server.claimed_by != instance_id:
        return []
    events: list[Event] = [Stopped(**facts(server), reason=last.reason, exit_code=exit_code, log_tail=list(log_tail))]
    if last.remove:
        events.append(Removed(**facts(server)))
    return events


def vanished(
    server: Server, generation: int, *, reason: str, exit_code: int | None, message: str, log_tail: list[str]
) -> list[Event]:
    """A ready server was seen to run no more."""
    if server.phase is not Phase.READY or server.generation != generation:
        return []
    event = Stopped(
        **facts(server),
        reason=reason,
        exit_code=exit_code,
        message=message[:MESSAGE_LENGTH_MAX],
        log_tail=list(log_tail),
    )
    return [_route_removed(server), event]


def _failed(server: Server, failure: Failure) -> Failed:
    return Failed(
        **facts(server),
        reason=failure.reason,
        message=failure.message[:MESSAGE_LENGTH_MAX],
        exit_code=failure.exit_code,
        log_tail=list(failure.log_tail),
    )


def _route_removed(server: Server) -> RouteRemoved:
    prefix = server.url_path
    return RouteRemoved(
        route_id=route_id_of(prefix), prefix=prefix, server_id=server.server_id, generation=server.generation
    )
