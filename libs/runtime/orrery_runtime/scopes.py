"""What a principal may do, in JupyterHub's scopes (`servers`, `read:users!user=ada`, …).

A scope is a name with an optional filter: `servers` over everybody, `servers!user=ada` over ada's,
`access:servers!server=ada/lab` over one. A wide scope contains narrower ones (`servers` contains `read:servers`).

    user     holds `self`: a fixed list of scopes, each filtered to the user
    admin    holds the list below, unfiltered
    session  all that its user holds
    token    what it was granted and its owner still holds; `inherit` is all that the owner holds
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from orrery_events.principal import Principal

from .errors import HttpError

CACHE_SIZE: Final = 8192
INHERIT: Final = "inherit"
SELF: Final = "self"

CONTAINS: Final[dict[str, tuple[str, ...]]] = {
    "admin-ui": (),
    "admin:users": ("admin:auth_state", "users", "read:roles:users", "delete:users"),
    "admin:auth_state": (),
    "users": ("read:users", "list:users", "users:activity"),
    "delete:users": (),
    "list:users": ("read:users:name",),
    "read:users": ("read:users:name", "read:users:groups", "read:users:activity"),
    "read:users:name": (),
    "read:users:groups": (),
    "read:users:activity": (),
    "read:roles": ("read:roles:users", "read:roles:services", "read:roles:groups"),
    "read:roles:users": (),
    "read:roles:services": (),
    "read:roles:groups": (),
    "users:activity": ("read:users:activity",),
    "admin:servers": ("admin:server_state", "servers"),
    "admin:server_state": (),
    "servers": ("read:servers", "start:servers", "delete:servers"),
    "read:servers": ("read:users:name",),
    "start:servers": (),
    "delete:servers": (),
    "tokens": ("read:tokens",),
    "read:tokens": (),
    "admin:groups": ("groups", "read:roles:groups", "delete:groups"),
    "groups": ("read:groups", "list:groups"),
    "list:groups": ("read:groups:name",),
    "read:groups": ("read:groups:name",),
    "read:groups:name": (),
    "delete:groups": (),
    "admin:services": ("list:services", "read:services", "read:roles:services"),
    "list:services": ("read:services:name",),
    "read:services": ("read:services:name",),
    "read:services:name": (),
    "read:hub": (),
    "access:servers": (),
    "access:services": (),
    "users:shares": ("read:users:shares",),
    "read:users:shares": (),
    "groups:shares": ("read:groups:shares",),
    "read:groups:shares": (),
    "read:shares": (),
    "shares": ("access:servers", "read:shares", "users:shares", "groups:shares"),
    "proxy": (),
    "shutdown": (),
    "read:metrics": (),
}
"""Every scope, with those that it directly contains: exactly those of JupyterHub 6.1.1."""

SELF_SCOPES: Final = (
    "read:users",
    "users:shares",
    "read:shares",
    "users:activity",
    "servers",
    "tokens",
    "access:servers",
)
ADMIN_SCOPES: Final = (
    "admin-ui",
    "admin:users",
    "admin:servers",
    "admin:services",
    "tokens",
    "admin:groups",
    "list:services",
    "read:services",
    "read:hub",
    "proxy",
    "shutdown",
    "access:services",
    "access:servers",
    "read:roles",
    "read:metrics",
    "shares",
)
IDENTIFY_SCOPES: Final = ("read:users:name", "read:users:groups")
"""What every token may read of its own owner, so that it can find out whose it is."""


def expand(principal: Principal) -> frozenset[str]:
    """All scopes that the principal effectively holds, contained ones included, filters resolved."""
    granted = None if principal.kind == "session" or INHERIT in principal.scopes else principal.scopes
    return _effective(principal.name, principal.admin, granted)


def allows(principal: Principal, scope: str, *, user_name: str = "", server_name: str | None = None) -> bool:
    """True if the principal holds the scope over that user (and, if named, over that server of theirs).

    Without `user_name` only the unfiltered scope will do. `server_name`: the empty text is the default server.
    """
    held = expand(principal)
    if scope in held:
        return True
    if not user_name:
        return False
    if f"{scope}!user={user_name}" in held:
        return True
    return server_name is not None and f"{scope}!server={user_name}/{server_name}" in held


def holds_somewhere(principal: Principal, scope: str) -> bool:
    """True if the principal holds the scope over anything at all."""
    return any(held == scope or held.startswith(f"{scope}!") for held in expand(principal))


def require(principal: Principal, scope: str, *, user_name: str = "", server_name: str | None = None) -> None:
    """Returns if `allows`. Raises HttpError: 403 when the scope is not held at all, 404 when it is held, but over
    others (so that nobody can find out by asking which users exist)."""
    if allows(principal, scope, user_name=user_name, server_name=server_name):
        return
    if user_name and holds_somewhere(principal, scope):
        raise HttpError(404, "No access to resources or resources not found")
    raise HttpError(403, f"Action is not authorized with current scopes; requires any of [{scope}]")


def unknown(scopes: Iterable[str]) -> list[str]:
    """Those that are not scopes, for a 400 to whoever asks for a token with them."""
    return [s for s in scopes if s.partition("!")[0] not in CONTAINS and s not in (INHERIT, SELF)]


def exceeding(principal: Principal, scopes: Iterable[str], *, owner_name: str, owner_admin: bool) -> list[str]:
    """Those that a token of this owner may not be given by this principal: neither more than the owner holds nor more
    than the principal does. `inherit` needs a principal that itself holds all that the owner holds."""
    owner = _effective(owner_name, owner_admin, None)
    held = expand(principal)
    beyond = []
    for scope in scopes:
        wanted = owner if scope == INHERIT else _granted(owner_name, frozenset({scope}))
        if any(not _covered(one, owner) or not _covered(one, held) for one in wanted) or not wanted:
            beyond.append(scope)
    return beyond


@lru_cache(maxsize=CACHE_SIZE)
def _effective(name: str, admin: bool, granted: frozenset[str] | None) -> frozenset[str]:
    owner = (
        _with_contained(ADMIN_SCOPES) if admin else frozenset(f"{s}!user={name}" for s in _with_contained(SELF_SCOPES))
    )
    if granted is None:
        return owner
    wanted = _granted(name, granted) | {f"{scope}!user={name}" for scope in IDENTIFY_SCOPES}
    return frozenset(one for scope in wanted for one in _narrowed(scope, name, owner))


def _granted(owner_name: str, scopes: frozenset[str]) -> frozenset[str]:
    """A token's scopes with `self` and `!user` resolved to its owner and contained scopes added."""
    expanded: set[str] = set()
    for scope in scopes:
        if scope == SELF:
            expanded.update(f"{s}!user={owner_name}" for s in _with_contained(SELF_SCOPES))
            continue
        base, bang, text = scope.partition("!")
        if base not in CONTAINS:
            continue
        text = f"user={owner_name}" if text == "user" else text
        expanded.update(f"{s}{bang}{text}" for s in _with_contained((base,)))
    return frozenset(expanded)


def _narrowed(scope: str, name: str, owner: frozenset[str]) -> list[str]:
    """What of a granted scope its owner still holds: the scope itself, the owner's part of it, or nothing."""
    if _covered(scope, owner):
        return [scope]
    own = f"{scope}!user={name}"
    return [own] if "!" not in scope and own in owner else []


def _covered(scope: str, held: frozenset[str]) -> bool:
    """True if `held` has the scope, or it without its filter, or one over the user whose server the filter names."""
    base, _, text = scope.partition("!")
    if scope in held or base in held:
        return True
    kind, _, value = text.partition("=")
    return kind == "server" and f"{base}!user={value.partition('/')[0]}" in held


@lru_cache(maxsize=256)
def _with_contained(scopes: tuple[str, ...]) -> frozenset[str]:
    found: set[str] = set()
    waiting = list(scopes)
    while waiting:
        scope = waiting.pop()
        if scope not in found:
            found.add(scope)
            waiting.extend(CONTAINS[scope])
    return frozenset(found)
