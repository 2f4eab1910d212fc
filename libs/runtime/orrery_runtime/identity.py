"""Who is asking: sessions and tokens verified offline against keys and revocations from the log.

A session cookie and an API token are both compact JWS signed by auth (see `jws`). Auth, api and every router hold the
same `IdentityState`, folded from the categories `user` and `auth`, and decide for themselves; nothing is looked up.

    header  {alg: "EdDSA", kid, typ: "orrery-session" | "orrery-token"}
    claims  {sub: user id, jti: session or token id, iat, exp, ep: the user's epoch, scp: [scopes]}

Whether somebody is an admin, what they are called and whether they still exist comes from the log, never from the
token: a token can only say less than what its owner may do.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from orrery_events.catalog.auth import (
    KeyAnnounced,
    KeyRetired,
    SessionRevoked,
    TokenRevoked,
    UserEpochBumped,
)
from orrery_events.catalog.user import UserCreated, UserDeleted, UserEvent, UserUpdated
from orrery_events.principal import TOKEN_PREFIX, Kind, Principal
from orrery_events.recorded import Recorded
from orrery_events.registry import Event

from . import jws

CATEGORIES: Final = ("user", "auth")
"""What a tail must follow to feed an IdentityState."""
SESSION_TYPE: Final = "orrery-session"
TOKEN_TYPE: Final = "orrery-token"
CREDENTIAL_LENGTH_MAX: Final = 4096
CACHE_SIZE: Final = 10_000
"""Verified credentials that a process remembers, about 0.6 KiB each."""
PRUNE_INTERVAL_S: Final = 600.0

Refusal = Literal["malformed", "unknown_key", "forged", "expired", "revoked", "unknown_user"]
"""`unknown_key` and `unknown_user` may only mean that this process lags: catch up and try once more."""

_TYPES: Final[dict[Kind, str]] = {"session": SESSION_TYPE, "token": TOKEN_TYPE}


class Claims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a session or token says. Fields that a newer release adds are ignored."""

    sub: str
    jti: str
    iat: float
    exp: float | None = None
    ep: int = 0
    scp: tuple[str, ...] = ()


class User(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    user_id: str
    name: str
    admin: bool
    created_at: float
    """Unix seconds."""


_claims_decoder = msgspec.json.Decoder(Claims)


class IdentityState:
    """The fold of `user` and `auth` events, or a part of a larger projection (call `apply` with every event)."""

    SECTIONS: ClassVar[Mapping[str, Any]] = {
        "users": User,
        "names": tuple[str, str],
        "keys": tuple[str, str],
        "epochs": tuple[str, int],
        "revoked_sessions": tuple[str, float],
        "revoked_tokens": tuple[str, float | None],
        "revocations": str,
    }

    def __init__(self) -> None:
        self.stamp = object()
        """Another one whenever a verdict may have changed: one that was found with the same still holds."""
        self.users: dict[str, User] = {}
        """By user id."""
        self.user_ids: dict[str, str] = {}
        """Name → user id."""
        self.keys: dict[str, Ed25519PublicKey] = {}
        self.epochs: dict[str, int] = {}
        """User id → lowest epoch that is still good; absent: 0."""
        self.revoked_sessions: dict[str, float] = {}
        """Session id → Unix seconds at which it would have expired."""
        self.revoked_tokens: dict[str, float | None] = {}
        self._key_texts: dict[str, str] = {}
        self._revocations_digest = 0

    def apply(self, recorded: Recorded, event: Event) -> None:  # noqa: ARG002  (the projection's interface)
        self.stamp = object()
        match event:
            case UserCreated() | UserUpdated():
                self._put_user(event)
            case UserDeleted():
                self._drop_name(event.user_id)
                self.users.pop(event.user_id, None)
            case KeyAnnounced():
                self._put_key(event.kid, event.public_key)
            case KeyRetired():
                self.keys.pop(event.kid, None)
                self._key_texts.pop(event.kid, None)
            case SessionRevoked():
                if event.session_id not in self.revoked_sessions:
                    self._revocations_digest ^= _number(f"session:{event.session_id}")
                self.revoked_sessions[event.session_id] = event.expires_at
            case TokenRevoked():
                if event.token_id not in self.revoked_tokens:
                    self._revocations_digest ^= _number(f"token:{event.token_id}")
                self.revoked_tokens[event.token_id] = event.expires_at
            case UserEpochBumped():
                self.epochs[event.user_id] = max(event.epoch, self.epochs.get(event.user_id, 0))
            case _:
                pass

    def digest(self) -> str:
        """Equal on all replicas at the same position, whether or not they have pruned."""
        users = sorted((u.user_id, u.name, u.admin, u.created_at) for u in self.users.values())
        parts = [users, sorted(self._key_texts.items()), sorted(self.epochs.items()), self._revocations_digest]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def sections(self) -> dict[str, list[Any]]:
        """The state in immutable pieces; see `orrery_events.tail.snapshot`."""
        return {
            "users": list(self.users.values()),
            "names": list(self.user_ids.items()),
            "keys": list(self._key_texts.items()),
            "epochs": list(self.epochs.items()),
            "revoked_sessions": list(self.revoked_sessions.items()),
            "revoked_tokens": list(self.revoked_tokens.items()),
            "revocations": [f"{self._revocations_digest:x}"],
        }

    def restore(self, section: str, items: Sequence[Any]) -> None:
        """The inverse, section by section."""
        match section:
            case "users":
                self.users.update((user.user_id, user) for user in items)
            case "names":
                # The users' own strings, so that each is held once.
                owners = ((name, self.users.get(user_id)) for name, user_id in items)
                self.user_ids.update((user.name, user.user_id) for name, user in owners if user and user.name == name)
            case "keys":
                for kid, text in items:
                    self._put_key(kid, text)
            case "epochs":
                self.epochs.update(items)
            case "revoked_sessions":
                self.revoked_sessions.update(items)
            case "revoked_tokens":
                self.revoked_tokens.update(items)
            case "revocations":
                self._revocations_digest = int(items[0], 16)

    def user_by_name(self, name: str) -> User | None:
        user_id = self.user_ids.get(name)
        return self.users.get(user_id) if user_id is not None else None

    def prune(self, now: float) -> None:
        """Forgets revocations of what has expired anyway; changes neither any verdict nor the digest."""
        for session_id in [i for i, expires_at in self.revoked_sessions.items() if expires_at < now]:
            del self.revoked_sessions[session_id]
        for token_id in [i for i, expires_at in self.revoked_tokens.items() if expires_at and expires_at < now]:
            del self.revoked_tokens[token_id]

    def _put_key(self, kid: str, text: str) -> None:
        self.keys.pop(kid, None)
        self._key_texts[kid] = text
        # A key that is none verifies nothing; to fail here would stop every tail in the platform instead.
        with suppress(ValueError):
            self.keys[kid] = jws.public_key(text)

    def _put_user(self, event: UserEvent) -> None:
        self._drop_name(event.user_id)
        self.users[event.user_id] = User(
            user_id=event.user_id, name=event.name, admin=event.admin, created_at=event.created_at
        )
        self.user_ids[event.name] = event.user_id

    def _drop_name(self, user_id: str) -> None:
        """Frees the name that this user had, unless somebody else has it by now."""
        user = self.users.get(user_id)
        if user is not None and self.user_ids.get(user.name) == user_id:
            del self.user_ids[user.name]


class _Cached(msgspec.Struct, frozen=True):
    claims: Claims
    kid: str
    key: Ed25519PublicKey
    kind: Kind
    scopes: frozenset[str]


class Verifier:
    """Verifies credentials against the current state. Signatures are remembered, verdicts are not: revocation,
    expiry, epoch, key and the user's existence are looked at every time."""

    def __init__(self, state: Callable[[], IdentityState], *, cache_size: int = CACHE_SIZE) -> None:
        self._state = state
        self._cache: OrderedDict[bytes, _Cached] = OrderedDict()
        self._cache_size = cache_size
        self._pruned_at = 0.0

    def verify(self, credential: str, now: float, *, kind: Kind | None = None) -> Principal | None:
        """The principal, or None. See `check`."""
        verdict = self.check(credential, now, kind=kind)
        return verdict if isinstance(verdict, Principal) else None

    def check(self, credential: str, now: float, *, kind: Kind | None = None) -> Principal | Refusal:
        """The principal, or why not. `orr_…` must be a token, anything else a session; `kind` further demands one.

        `now`: Unix seconds.
        """
        if len(credential) > CREDENTIAL_LENGTH_MAX or not credential.isascii():
            return "malformed"
        actual: Kind = "token" if credential.startswith(TOKEN_PREFIX) else "session"
        token = credential.removeprefix(TOKEN_PREFIX)
        if kind is not None and kind != actual:
            return "malformed"
        fingerprint = hashlib.sha256(credential.encode()).digest()
        cached = self._cache.get(fingerprint)
        state = self._state()
        if cached is None:
            fresh = _open(token, actual, state)
            if isinstance(fresh, str):
                return fresh
            cached = fresh
            self._cache[fingerprint] = cached
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(fingerprint)
        if now - self._pruned_at > PRUNE_INTERVAL_S:
            self._pruned_at = now
            state.prune(now)
        return _judge(cached, state, now)

    def authenticate(self, authorization: str, session_cookie: str, now: float) -> Principal | Refusal | None:
        """The principal of a request from its `Authorization` header and session cookie; None: it presents nothing.

        An `orr_` token in the header decides alone. Any other Authorization header belongs to the upstream
        application and is not looked at.
        """
        token = token_in(authorization)
        if token:
            return self.check(token, now, kind="token")
        if session_cookie:
            return self.check(session_cookie, now, kind="session")
        return None


def token_in(authorization: str) -> str:
    """The `orr_` token in an Authorization header's value (`token X` or `Bearer X`), or nothing."""
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    return value if scheme.lower() in ("token", "bearer") and value.startswith(TOKEN_PREFIX) else ""


def sign(claims: Claims, key: jws.SigningKey, *, kind: Kind) -> str:
    """The cookie value of a session, or a token with its `orr_` prefix. Only auth has a key to call this with."""
    text = key.sign(_TYPES[kind], msgspec.json.encode(claims))
    return TOKEN_PREFIX + text if kind == "token" else text


def _open(token: str, kind: Kind, state: IdentityState) -> _Cached | Refusal:
    header = jws.header_of(token)
    if header is None or header.typ != _TYPES[kind]:
        return "malformed"
    key = state.keys.get(header.kid)
    if key is None:
        return "unknown_key"
    payload = jws.verified_payload(token, key)
    if payload is None:
        return "forged"
    try:
        claims = _claims_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "malformed"
    if kind == "session" and claims.exp is None:
        return "malformed"
    return _Cached(claims, header.kid, key, kind, frozenset(claims.scp))


def _judge(cached: _Cached, state: IdentityState, now: float) -> Principal | Refusal:
    claims = cached.claims
    current = state.keys.get(cached.kid)
    if current is None:
        return "unknown_key"
    if current is not cached.key and current != cached.key:
        return "forged"
    if claims.exp is not None and now >= claims.exp:
        return "expired"
    revoked = state.revoked_sessions if cached.kind == "session" else state.revoked_tokens
    if claims.jti in revoked or claims.ep < state.epochs.get(claims.sub, 0):
        return "revoked"
    user = state.users.get(claims.sub)
    if user is None:
        return "unknown_user"
    return Principal(
        user_id=user.user_id,
        name=user.name,
        admin=user.admin,
        kind=cached.kind,
        id=claims.jti,
        scopes=cached.scopes,
        expires_at=claims.exp,
        issued_at=claims.iat,
    )


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
