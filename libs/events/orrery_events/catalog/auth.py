"""Keys, sessions, tokens. No secret and no hash of one is ever in here: only ids and public keys."""

from __future__ import annotations

import msgspec

from ..registry import Event, event


def key_stream(kid: str) -> str:
    return f"key-{kid}"


def session_stream(session_id: str) -> str:
    return f"session-{session_id}"


def token_stream(token_id: str) -> str:
    return f"token-{token_id}"


def epoch_stream(user_id: str) -> str:
    return f"epoch-{user_id}"


@event("auth.key_announced")
class KeyAnnounced(Event, frozen=True, kw_only=True):
    """Sessions and tokens signed by this Ed25519 key are genuine."""

    kid: str
    public_key: str
    """The raw 32 bytes, base64url without padding (the `x` of RFC 8037)."""
    not_before: float
    """Unix seconds from which on auth may sign with it."""

    def aggregate_id(self) -> str:
        return self.kid

    def compaction_key(self) -> str | None:
        return f"key:{self.kid}"


@event("auth.key_retired", tombstone=True)
class KeyRetired(Event, frozen=True, kw_only=True):
    """Nothing signed by this key is genuine any more."""

    kid: str
    reason: str = ""

    def aggregate_id(self) -> str:
        return self.kid

    def compaction_key(self) -> str | None:
        return f"key:{self.kid}"


class SessionEvent(Event, frozen=True, kw_only=True):
    session_id: str
    user_id: str
    issued_at: float
    """Unix seconds."""
    expires_at: float
    """Unix seconds."""

    def aggregate_id(self) -> str:
        return self.session_id

    def compaction_key(self) -> str | None:
        return f"session:{self.session_id}"


@event("auth.session_started")
class SessionStarted(SessionEvent, frozen=True, kw_only=True):
    """Somebody signed in."""

    method: str = "password"


@event("auth.session_revoked")
class SessionRevoked(SessionEvent, frozen=True, kw_only=True):
    """The session is void before its time. Not a tombstone: every verifier must remember it until `expires_at`."""

    reason: str = "logout"


class TokenEvent(Event, frozen=True, kw_only=True):
    token_id: str
    user_id: str
    note: str = ""
    scopes: list[str] = msgspec.field(default_factory=list)
    issued_at: float
    """Unix seconds."""
    expires_at: float | None = None
    """Unix seconds; None never expires."""

    def aggregate_id(self) -> str:
        return self.token_id

    def compaction_key(self) -> str | None:
        return f"token:{self.token_id}"


@event("auth.token_issued")
class TokenIssued(TokenEvent, frozen=True, kw_only=True):
    """An API token was handed out. The token itself is nowhere but in its owner's hands."""


@event("auth.token_revoked")
class TokenRevoked(TokenEvent, frozen=True, kw_only=True):
    """The token is void before its time. Not a tombstone, for the same reason as `session_revoked`."""


@event("auth.user_epoch_bumped")
class UserEpochBumped(Event, frozen=True, kw_only=True):
    """All sessions and tokens of this person that carry a lower epoch are void: signed out everywhere."""

    user_id: str
    epoch: int
    reason: str = ""

    def aggregate_id(self) -> str:
        return self.user_id

    def compaction_key(self) -> str | None:
        return f"epoch:{self.user_id}"


@event("auth.credential_changed")
class CredentialChanged(Event, frozen=True, kw_only=True):
    """A password (or another credential) was set or changed. Only that fact: the credential is auth's secret."""

    user_id: str
    kind: str = "password"

    def aggregate_id(self) -> str:
        return self.user_id

    def compaction_key(self) -> str | None:
        return f"credential:{self.user_id}:{self.kind}"
