"""Auth's decisions, without I/O: where a sign-in may lead, how long the next guess must wait, what becomes of a user.

    failures within the window     1 … FREE   then
    wait before the next attempt   none       2 s, 4 s, 8 s, … at most `WAIT_MAX_S`

The count is kept per account and address together, so that nobody can lock a stranger out, and per address alone with
more room, so that one address cannot try every account. It is forgotten when nothing failed for `WINDOW_S`.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import msgspec

from orrery_events.catalog.auth import CredentialChanged, TokenIssued
from orrery_events.catalog.user import UserCreated
from orrery_events.errors import OrreryError
from orrery_events.registry import Event
from orrery_events.user_state import UserFold

PASSWORD_LENGTH_MIN: Final = 8
PASSWORD_BYTES_MAX: Final = 1024
"""argon2 takes more, but nobody types it."""
FREE_PER_ACCOUNT: Final = 5
FREE_PER_ADDRESS: Final = 30
WAIT_MAX_S: Final = 300.0
WINDOW_S: Final = 900.0
SETUP_LINK_LIFE_S: Final = 900.0
NEXT_LENGTH_MAX: Final = 2048
TOKEN_NOTE_LENGTH_MAX: Final = 1024
TOKEN_LIFE_S_MAX: Final = 10 * 366 * 86_400


class BadPassword(OrreryError):
    """The password cannot be used. Choose another one."""


class NameTaken(OrreryError):
    """There is a user of that name already. Choose another one."""


def decide_create(state: UserFold, *, user_id: str, name: str, admin: bool, now: float) -> list[Event]:
    """A user with a password. Raises NameTaken."""
    if state.exists:
        raise NameTaken(f"there is a user named {name!r} already: choose another name")
    return [
        UserCreated(user_id=user_id, name=name, admin=admin, created_at=now),
        CredentialChanged(user_id=user_id),
    ]


def check_password(password: str) -> str:
    """The password itself. Raises BadPassword."""
    if len(password) < PASSWORD_LENGTH_MIN:
        raise BadPassword(f"a password needs at least {PASSWORD_LENGTH_MIN} characters")
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        raise BadPassword(f"a password has at most {PASSWORD_BYTES_MAX} bytes")
    return password


def wait_after_s(failures: int, free: int) -> float:
    """How long the next attempt must wait after so many failures."""
    if failures <= free:
        return 0.0
    return min(WAIT_MAX_S, 2.0 ** min(failures - free, 30))


def safe_next(target: str, base_url: str) -> str:
    """Where a sign-in leads: `target` if it is a path on this platform, else the home page.

    Browsers read `//host`, `/\\host` and control characters in their own ways, so all of these are refused.
    """
    home = f"{base_url}hub/home"
    if not target.startswith(base_url) or len(target) > NEXT_LENGTH_MAX:
        return home
    if target.startswith("//") or "\\" in target or any(ord(c) <= 32 or ord(c) == 127 for c in target):
        return home
    try:
        parts = urlsplit(target)
    except ValueError:
        return home
    if parts.scheme or parts.netloc or parts.path.startswith("//"):
        return home
    return target


class TokenRequest(msgspec.Struct, kw_only=True):
    """The body of `POST /hub/api/users/{name}/tokens`."""

    note: str = ""
    expires_in: int | None = None
    """Seconds."""
    scopes: list[str] | None = None
    roles: list[str] | None = None
    auth: dict[str, str] | None = None


def decide_token(request: TokenRequest, *, token_id: str, user_id: str, requested_by: str, now: float) -> TokenIssued:
    """The token that is asked for. Raises ValueError with what is wrong."""
    if request.expires_in is not None and not 0 < request.expires_in <= TOKEN_LIFE_S_MAX:
        raise ValueError(f"expires_in must be between 1 and {TOKEN_LIFE_S_MAX} seconds")
    if len(request.note) > TOKEN_NOTE_LENGTH_MAX:
        raise ValueError(f"the note has at most {TOKEN_NOTE_LENGTH_MAX} characters")
    if request.roles not in (None, [], ["token"]):
        raise ValueError("roles other than 'token' are not known: name scopes instead")
    return TokenIssued(
        token_id=token_id,
        user_id=user_id,
        note=request.note or f"Requested by {requested_by}",
        scopes=sorted(set(request.scopes)) if request.scopes else ["inherit"],
        issued_at=now,
        expires_at=now + request.expires_in if request.expires_in is not None else None,
    )
