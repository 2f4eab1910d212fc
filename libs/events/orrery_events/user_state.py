"""The state of a person, folded from the stream of their name: shared by whoever decides about people (api, auth)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .catalog.user import UserDeleted, UserEvent
from .registry import Event


class UserFold(msgspec.Struct, frozen=True):
    """One user. A name whose user was deleted is free again."""

    version: int = 0
    """Of the stream, up to which this is folded."""
    user_id: str = ""
    name: str = ""
    admin: bool = False
    created_at: float = 0.0
    """Unix seconds."""

    @property
    def exists(self) -> bool:
        return bool(self.user_id)


def evolve(user: UserFold, event: Event, version: int) -> UserFold:
    """The user after one more event of the stream."""
    match event:
        case UserDeleted():
            return UserFold(version)
        case UserEvent():
            return UserFold(version, event.user_id, event.name, event.admin, event.created_at)
    return msgspec.structs.replace(user, version=version)


def fold(events: Iterable[tuple[Event, int]]) -> UserFold:
    """`(event, stream version)` pairs in order."""
    user = UserFold()
    for event, version in events:
        user = evolve(user, event, version)
    return user
