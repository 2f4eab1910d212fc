"""What can be done with identities: sign in and out, hand out and revoke tokens, create people, set passwords.

The shell around `domain`: reads the stream, decides, appends. Nothing here knows HTTP.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from orrery_events.catalog.auth import (
    CredentialChanged,
    KeyAnnounced,
    SessionRevoked,
    SessionStarted,
    TokenIssued,
    TokenRevoked,
    UserEpochBumped,
    epoch_stream,
    key_stream,
    session_stream,
    token_stream,
)
from orrery_events.catalog.user import user_stream
from orrery_events.errors import Conflict, LogUnavailable
from orrery_events.ids import new_id
from orrery_events.log import EventLog
from orrery_events.names import InvalidName, normalise_user_name
from orrery_events.principal import Principal
from orrery_events.tail import Tail
from orrery_events.user_state import UserFold, fold
from orrery_runtime.identity import Claims, User, sign
from orrery_runtime.jws import SigningKey

from . import domain
from .passwords import Hasher
from .projections import AuthState
from .store import Store

RETRIES_MAX: Final = 5
KEY_WAIT_S: Final = 10.0


class Throttled(Exception):
    """Too many failed attempts."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too many failed attempts: wait {wait_s:.0f} s")
        self.wait_s = wait_s


class SignedIn(msgspec.Struct, frozen=True):
    """A fresh session."""

    user: User
    cookie: str
    expires_at: float
    position: int


async def read_user(log: EventLog, name: str) -> UserFold:
    """The user's stream, folded from Postgres."""
    rows = await log.read_stream(user_stream(name))
    return fold((row.event(), row.stream_version) for row in rows)


async def create_user(
    log: EventLog, store: Store, *, name: str, password_hash: str, admin: bool, actor: str
) -> tuple[str, int]:
    """A user with a password; returns user id and position. Raises NameTaken."""
    for _ in range(RETRIES_MAX):
        state = await read_user(log, name)
        user_id = new_id()
        events = domain.decide_create(state, user_id=user_id, name=name, admin=admin, now=time.time())
        try:
            done = await log.append(user_stream(name), events, expected_version=state.version, actor=actor or user_id)
        except Conflict:
            continue
        await store.put_account(user_id, name, password_hash)
        return user_id, done.last_position
    raise LogUnavailable(f"user {name!r} keeps changing: try again")


class Identities:
    """Sessions, tokens and passwords."""

    def __init__(
        self, log: EventLog, tail: Tail[AuthState], store: Store, hasher: Hasher, *, session_max_age_s: float
    ) -> None:
        self.log, self.tail, self.store, self.hasher = log, tail, store, hasher
        self._session_max_age_s = session_max_age_s
        self._key: SigningKey | None = None

    @property
    def state(self) -> AuthState:
        return self.tail.state

    async def load_key(self) -> None:
        """Makes sure that there is a signing key and that everybody knows it before anything is signed with it."""
        key = await self.store.ensure_signing_key()
        if key.kid not in self.state.identity.keys:
            announced = KeyAnnounced(kid=key.kid, public_key=key.public_key, not_before=time.time())
            try:
                done = await self.log.append(key_stream(key.kid), [announced], expected_version=0)
                await self.tail.wait_for(done.last_position, KEY_WAIT_S)
            except Conflict:
                await self.tail.catch_up(KEY_WAIT_S)
        self._key = key

    @property
    def key(self) -> SigningKey:
        if self._key is None:
            raise LogUnavailable("there is no signing key yet: retry in a moment")
        return self._key

    async def authenticate(self, name: str, password: str, address: str) -> User | None:
        """The user, if the password is right. Raises Throttled."""
        try:
            normal = normalise_user_name(name)
        except InvalidName:
            normal = ""
        by_address, by_account = f"address|{address}", f"account|{normal or name[:64]}|{address}"
        for what, free in ((by_address, domain.FREE_PER_ADDRESS), (by_account, domain.FREE_PER_ACCOUNT)):
            wait_s = await self.store.attempt(what, free)
            if wait_s:
                raise Throttled(wait_s)
        account = await self.store.account(normal) if normal else None
        acceptable = len(password.encode()) <= domain.PASSWORD_BYTES_MAX
        genuine = await self.hasher.verify(account.password_hash if account else None, password if acceptable else "")
        if not genuine or not acceptable or account is None:
            return None
        user = await self._known(account.user_id)
        if user is None:
            return None
        await self.store.succeeded(by_account, by_address)
        if self.hasher.outdated(account.password_hash):
            await self.store.put_account(user.user_id, user.name, await self.hasher.hash(password))
        return user

    async def sign_in(self, user: User) -> SignedIn:
        """Starts a session for somebody who proved who they are."""
        await self.tail.catch_up()
        now = time.time()
        session_id, expires_at = new_id(), now + self._session_max_age_s
        claims = Claims(sub=user.user_id, jti=session_id, iat=now, exp=expires_at, ep=self._epoch(user.user_id))
        started = SessionStarted(session_id=session_id, user_id=user.user_id, issued_at=now, expires_at=expires_at)
        done = await self.log.append(session_stream(session_id), [started], actor=user.user_id)
        return SignedIn(user, sign(claims, self.key, kind="session"), expires_at, done.last_position)

    async def sign_out(self, principal: Principal) -> int:
        """Revokes the session everywhere; returns the position."""
        revoked = SessionRevoked(
            session_id=principal.id,
            user_id=principal.user_id,
            issued_at=principal.issued_at,
            expires_at=principal.expires_at or time.time(),
        )
        done = await self.log.append(session_stream(principal.id), [revoked], actor=principal.user_id)
        await self.tail.wait_for(done.last_position)
        return done.last_position

    async def issue_token(
        self, user: User, request: domain.TokenRequest, *, actor: User
    ) -> tuple[TokenIssued, str, int]:
        """The event, the token itself (shown once, stored nowhere) and the position. Raises ValueError."""
        await self.tail.catch_up()
        issued = domain.decide_token(
            request, token_id=new_id(), user_id=user.user_id, requested_by=actor.name, now=time.time()
        )
        claims = Claims(
            sub=user.user_id,
            jti=issued.token_id,
            iat=issued.issued_at,
            exp=issued.expires_at,
            ep=self._epoch(user.user_id),
            scp=tuple(issued.scopes),
        )
        done = await self.log.append(token_stream(issued.token_id), [issued], actor=actor.user_id)
        await self.tail.wait_for(done.last_position)
        return issued, sign(claims, self.key, kind="token"), done.last_position

    async def revoke_token(self, token: TokenIssued, *, actor: str) -> int:
        revoked = TokenRevoked(
            token_id=token.token_id,
            user_id=token.user_id,
            note=token.note,
            scopes=token.scopes,
            issued_at=token.issued_at,
            expires_at=token.expires_at,
        )
        done = await self.log.append(token_stream(token.token_id), [revoked], actor=actor)
        await self.tail.wait_for(done.last_position)
        return done.last_position

    async def set_password(self, user: User, password: str, *, actor: str) -> int:
        """Changes (or first sets) the password and ends all sessions and tokens. Raises BadPassword."""
        domain.check_password(password)
        await self.store.put_account(user.user_id, user.name, await self.hasher.hash(password))
        for _ in range(RETRIES_MAX):
            stream = epoch_stream(user.user_id)
            rows = await self.log.read_stream(stream, limit=10_000)
            epochs = [event.epoch for event in (row.event() for row in rows) if isinstance(event, UserEpochBumped)]
            events = [
                UserEpochBumped(user_id=user.user_id, epoch=max(epochs, default=0) + 1, reason="password changed"),
                CredentialChanged(user_id=user.user_id),
            ]
            try:
                done = await self.log.append(stream, events, expected_version=len(rows), actor=actor)
            except Conflict:
                continue
            await self.tail.wait_for(done.last_position)
            return done.last_position
        raise LogUnavailable("the password keeps being changed by others: try again")

    async def create_first_admin(self, token: str, name: str, password: str) -> User | None:
        """None: the set-up link is not good. Raises InvalidName, BadPassword, NameTaken."""
        name = normalise_user_name(name)
        domain.check_password(password)
        password_hash = await self.hasher.hash(password)
        if not await self.store.use_setup_link(token):
            return None
        try:
            user_id, position = await create_user(
                self.log, self.store, name=name, password_hash=password_hash, admin=True, actor=""
            )
        except Exception:
            await self.store.restore_setup_link(token)
            raise
        await self.tail.wait_for(position, KEY_WAIT_S)
        return self.state.identity.users.get(user_id)

    async def _known(self, user_id: str) -> User | None:
        """The user as the log has it; somebody created a moment ago may need a look at Postgres."""
        user = self.state.identity.users.get(user_id)
        if user is None:
            await self.tail.catch_up()
            user = self.state.identity.users.get(user_id)
        return user

    def _epoch(self, user_id: str) -> int:
        return self.state.identity.epochs.get(user_id, 0)
