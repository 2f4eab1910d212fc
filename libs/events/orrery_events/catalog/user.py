"""People (and later service accounts). Stream: `user-<namekey>`, so that two creations of one name meet."""

from __future__ import annotations

from ..ids import derived_id
from ..registry import Event, event


def user_stream(name: str) -> str:
    """The stream of the user with this (normalised) name. The opaque user id is inside the events, not here."""
    return f"user-{derived_id('user-name', name)}"


class UserEvent(Event, frozen=True, kw_only=True):
    """What every user event says: the last one alone tells all there is to know of the person."""

    user_id: str
    name: str
    admin: bool = False
    created_at: float = 0.0
    """Unix seconds."""

    def aggregate_id(self) -> str:
        return self.user_id

    def compaction_key(self) -> str | None:
        return self.user_id


@event("user.created")
class UserCreated(UserEvent, frozen=True, kw_only=True):
    """Somebody may from now on have sessions, tokens and servers."""


@event("user.updated")
class UserUpdated(UserEvent, frozen=True, kw_only=True):
    """The person's name or admin flag changed."""


@event("user.deleted", tombstone=True)
class UserDeleted(UserEvent, frozen=True, kw_only=True):
    """The person is gone: sessions and tokens are void from here on."""
