"""What auth knows from the log: everybody's identity, and the tokens that are out."""

from __future__ import annotations

import hashlib

from orrery_events.catalog.auth import TokenIssued, TokenRevoked
from orrery_events.catalog.user import UserDeleted
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_runtime.identity import CATEGORIES, IdentityState

__all__ = ["CATEGORIES", "AuthState"]


class AuthState:
    """The fold of the categories `user` and `auth`."""

    def __init__(self) -> None:
        self.identity = IdentityState()
        self.tokens: dict[str, TokenIssued] = {}
        """Token id → what was issued and not revoked; expired ones included."""

    def apply(self, recorded: Recorded, event: Event) -> None:
        self.identity.apply(recorded, event)
        match event:
            case TokenIssued():
                self.tokens[event.token_id] = event
            case TokenRevoked():
                self.tokens.pop(event.token_id, None)
            case UserDeleted():
                for token_id in [i for i, t in self.tokens.items() if t.user_id == event.user_id]:
                    del self.tokens[token_id]
            case _:
                pass

    def tokens_of(self, user_id: str, now: float) -> list[TokenIssued]:
        """The person's good tokens, oldest first. `now`: Unix seconds."""
        good = (t for t in self.tokens.values() if t.expires_at is None or t.expires_at > now)
        return sorted((t for t in good if t.user_id == user_id), key=lambda t: (t.issued_at, t.token_id))

    def has_admin(self) -> bool:
        return any(user.admin for user in self.identity.users.values())

    def digest(self) -> str:
        tokens = ",".join(sorted(t for t, token in self.tokens.items() if token.user_id in self.identity.users))
        return hashlib.sha256(f"{self.identity.digest()}|{tokens}".encode()).hexdigest()[:32]
