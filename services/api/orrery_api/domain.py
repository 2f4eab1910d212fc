"""Api's decisions, without I/O: what may be asked of a server, a user, a profile. Values in, events out."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from orrery_events.catalog.profile import Profile, ProfileDefined, ProfileRemoved
from orrery_events.catalog.server import (
    Removed,
    StartCancelled,
    StartRequested,
    StopRequested,
)
from orrery_events.catalog.user import UserCreated, UserDeleted, UserUpdated
from orrery_events.errors import OrreryError
from orrery_events.names import InvalidName
from orrery_events.registry import Event
from orrery_events.server_state import ENDED, STARTING, STOPPING, Phase, Server, facts
from orrery_events.user_state import UserFold

QUEUE_TIMEOUT_S: Final = 300.0
"""How long a start may wait for a spawner, on top of its profile's own limit."""
START_TIMEOUT_S_MAX: Final = 3600.0
RESPONSE_TIMEOUT_S_MAX: Final = 86_400.0
COMMAND_WORDS_MAX: Final = 200
OPTIONS_BYTES_MAX: Final = 16_384
DISPLAY_NAME_LENGTH_MAX: Final = 255


class NotNow(OrreryError):
    """The server is in a state in which this cannot be asked of it."""


class Exists(OrreryError):
    """There is one of that name already."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A wish to start a server."""

    server_id: str
    user_id: str
    user_name: str
    name: str
    display_name: str = ""
    profile: str = ""
    """Empty: the one it had last, or the default."""
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    requested_by: str = ""


def log_name(user_name: str, name: str) -> str:
    """JupyterHub's way to name a server in messages: `ada`, `ada:lab`."""
    return f"{user_name}:{name}" if name else user_name


def profile_of(server: Server, ask: Ask, default: str) -> str:
    """The profile that a start will use."""
    if ask.profile:
        return ask.profile
    if server.last is not None and server.phase is not Phase.REMOVED:
        return server.last.profile
    return default


def decide_start(server: Server, ask: Ask, profile: Profile, *, now: float) -> list[Event]:
    """Nothing when it is being started already. Raises NotNow."""
    named = log_name(ask.user_name, ask.name)
    if server.phase in STARTING:
        return []
    if server.phase is Phase.READY:
        raise NotNow(f"{named} is already running")
    if server.phase in STOPPING:
        raise NotNow(f"{named} is pending stop, please wait")
    last = server.last
    return [
        StartRequested(
            server_id=ask.server_id,
            user_id=ask.user_id,
            user_name=ask.user_name,
            name=ask.name,
            display_name=ask.display_name or (last.display_name if last else ""),
            profile=profile.name,
            generation=server.generation + 1,
            user_options=ask.options,
            requested_at=now,
            deadline=now + QUEUE_TIMEOUT_S + profile.start_timeout_s,
            requested_by=ask.requested_by,
        )
    ]


def decide_stop(server: Server, *, requested_by: str, remove: bool) -> list[Event]:
    """Nothing when there is nothing to stop. A start under way is cancelled. Raises NotNow."""
    if server.phase in STARTING:
        cancelled: list[Event] = [StartCancelled(**facts(server))]
        return [*cancelled, Removed(**facts(server))] if remove else cancelled
    if server.phase is Phase.READY:
        return [StopRequested(**facts(server), requested_by=requested_by, remove=remove)]
    if server.phase in STOPPING:
        if remove:
            raise NotNow("it is being stopped: remove it once that is done")
        return []
    if remove and server.phase in ENDED and server.phase is not Phase.REMOVED:
        return [Removed(**facts(server))]
    return []


def decide_create_user(user: UserFold, *, user_id: str, name: str, admin: bool, now: float) -> list[Event]:
    """Raises Exists."""
    if user.exists:
        raise Exists(f"User {name} already exists")
    return [UserCreated(user_id=user_id, name=name, admin=admin, created_at=now)]


def decide_update_user(user: UserFold, *, admin: bool) -> list[Event]:
    if not user.exists or user.admin == admin:
        return []
    return [UserUpdated(user_id=user.user_id, name=user.name, admin=admin, created_at=user.created_at)]


def decide_delete_user(user: UserFold) -> list[Event]:
    if not user.exists:
        return []
    return [UserDeleted(user_id=user.user_id, name=user.name, admin=user.admin, created_at=user.created_at)]


def decide_profile(profile: Profile) -> list[Event]:
    """Raises InvalidName and ValueError with what is wrong."""
    if not profile.name or len(profile.name) > 63 or not profile.name.replace("-", "").replace("_", "").isalnum():
        raise InvalidName("a profile's name has 1 to 63 letters, digits, - and _")
    if profile.driver != "process":
        raise ValueError("the only driver is 'process'")
    if not profile.command or len(profile.command) > COMMAND_WORDS_MAX or not profile.command[0]:
        raise ValueError(f"command must be a list of 1 to {COMMAND_WORDS_MAX} words, the program first")
    if not 1 <= profile.start_timeout_s <= START_TIMEOUT_S_MAX:
        raise ValueError(f"start_timeout_s must be between 1 and {START_TIMEOUT_S_MAX:.0f}")
    if not 0 <= profile.response_timeout_s <= RESPONSE_TIMEOUT_S_MAX:
        raise ValueError(f"response_timeout_s must be between 0 and {RESPONSE_TIMEOUT_S_MAX:.0f}")
    for header in (profile.secret_header, profile.secret_env):
        if any(not (c.isalnum() or c in "-_") for c in header):
            raise ValueError("secret_header and secret_env are names of letters, digits, - and _")
    if any(ord(c) < 32 or ord(c) > 126 for c in profile.secret_prefix + profile.probe_path + profile.default_path):
        raise ValueError("secret_prefix, probe_path and default_path are plain ASCII text")
    return [ProfileDefined(profile=profile)]


def decide_remove_profile(name: str) -> list[Event]:
    return [ProfileRemoved(name=name)]
