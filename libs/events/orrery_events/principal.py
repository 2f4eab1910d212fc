"""For whom a request is made, in the words that every service shares. How it is proven is the runtime's business."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

SESSION_COOKIE: Final = "orrery-session"
TOKEN_PREFIX: Final = "orr_"
"""How an API token begins, so that it is known for one wherever it turns up."""

Kind = Literal["session", "token"]


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who proved who they are."""

    user_id: str
    name: str
    admin: bool
    kind: Kind
    id: str
    """Session or token id."""
    scopes: frozenset[str]
    """As granted, not expanded."""
    expires_at: float | None
    """Unix seconds; None never expires."""
    issued_at: float
    """Unix seconds."""
