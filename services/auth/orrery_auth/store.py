"""Auth's own tables: the only place where secrets are kept. Nothing of this is ever in an event."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

import asyncpg
import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from orrery_events.ids import new_id
from orrery_events.log.pool import unavailable_means_log_unavailable
from orrery_runtime.jws import SigningKey

from .domain import SETUP_LINK_LIFE_S, WAIT_MAX_S, WINDOW_S

NONCE_BYTES: Final = 12
KEY_LOCK: Final = 0x6B657973
"""Advisory lock of whoever makes a signing key ("keys")."""

ATTEMPT_SQL = """
INSERT INTO auth.throttle AS t (key, failures, blocked_until, updated_at) VALUES ($1, 1, now(), now())
ON CONFLICT (key) DO UPDATE SET
  failures = CASE WHEN t.updated_at < now() - $3 * interval '1 second' THEN 1 ELSE t.failures + 1 END,
  updated_at = now(),
  blocked_until = CASE
    WHEN t.updated_at < now() - $3 * interval '1 second' OR t.failures + 1 <= $2 THEN now()
    ELSE now() + least($4, 2.0 ^ least(t.failures + 1 - $2, 30)) * interval '1 second' END
WHERE t.blocked_until <= now()
RETURNING failures
"""


class Account(msgspec.Struct, frozen=True):
    """Somebody with a password."""

    user_id: str
    name: str
    password_hash: str

    def __repr__(self) -> str:
        return f"Account({self.name!r})"


class Store:
    """Reads and writes schema `auth`. Everything raises LogUnavailable when Postgres does not answer."""

    def __init__(self, pool: asyncpg.Pool, auth_key: str) -> None:
        self._pool = pool
        key = auth_key.encode()
        self._wrap = AESGCM(hmac.new(key, b"orrery/v1/signing-keys", hashlib.sha256).digest())
        self._throttle_key = hmac.new(key, b"orrery/v1/throttle", hashlib.sha256).digest()

    async def account(self, name: str) -> Account | None:
        with unavailable_means_log_unavailable():
            row = await self._pool.fetchrow(
                "SELECT user_id, name, password_hash FROM auth.accounts WHERE name = $1", name
            )
        return Account(*row) if row else None

    async def put_account(self, user_id: str, name: str, password_hash: str) -> None:
        """Creates the account or changes its password. A row that a deleted namesake left is replaced."""
        with unavailable_means_log_unavailable():
            await self._pool.execute(
                """INSERT INTO auth.accounts (user_id, name, password_hash) VALUES ($1, $2, $3)
                   ON CONFLICT (name) DO UPDATE
                   SET user_id = excluded.user_id, password_hash = excluded.password_hash, changed_at = now()""",
                user_id,
                name,
                password_hash,
            )

    async def drop_account(self, user_id: str) -> None:
        with unavailable_means_log_unavailable():
            await self._pool.execute("DELETE FROM auth.accounts WHERE user_id = $1", user_id)

    # Signing keys

    async def signing_keys(self) -> list[SigningKey]:
        """Keys that are not retired, oldest first. A key that `auth_key` does not open raises InvalidTag."""
        with unavailable_means_log_unavailable():
            rows = await self._pool.fetch(
                "SELECT kid, private_key FROM auth.signing_keys WHERE retired_at IS NULL ORDER BY created_at, kid"
            )
        return [self._unwrap(kid, sealed) for kid, sealed in rows]

    async def ensure_signing_key(self) -> SigningKey:
        """The key to sign with; made if there is none. Replicas that start together agree on one."""
        with unavailable_means_log_unavailable():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", KEY_LOCK)
                row = await connection.fetchrow(
                    """SELECT kid, private_key FROM auth.signing_keys WHERE retired_at IS NULL
                       ORDER BY created_at DESC, kid DESC LIMIT 1"""
                )
                if row:
                    return self._unwrap(*row)
                key = SigningKey.generate(new_id())
                nonce = secrets.token_bytes(NONCE_BYTES)
                sealed = nonce + self._wrap.encrypt(nonce, key.private_bytes(), key.kid.encode())
                await connection.execute(
                    "INSERT INTO auth.signing_keys (kid, public_key, private_key) VALUES ($1, $2, $3)",
                    key.kid,
                    key.public_key,
                    sealed,
                )
                return key

    def _unwrap(self, kid: str, sealed: bytes) -> SigningKey:
        raw = self._wrap.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], kid.encode())
        return SigningKey(kid, raw)

    # Set-up links

    async def new_setup_link(self) -> str:
        """A fresh one-time token; earlier ones that nobody used stop working."""
        token = secrets.token_urlsafe(24)
        with unavailable_means_log_unavailable():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("DELETE FROM auth.setup_links WHERE used_at IS NULL")
                await connection.execute(
                    "INSERT INTO auth.setup_links (hash, expires_at) VALUES ($1, now() + $2 * interval '1 second')",
                    _digest(token),
                    SETUP_LINK_LIFE_S,
                )
        return token

    async def setup_link_is_good(self, token: str) -> bool:
        with unavailable_means_log_unavailable():
            return bool(
                await self._pool.fetchval(
                    "SELECT 1 FROM auth.setup_links WHERE hash = $1 AND used_at IS NULL AND expires_at > now()",
                    _digest(token),
                )
            )

    async def use_setup_link(self, token: str) -> bool:
        """True for the one caller that used it up."""
        with unavailable_means_log_unavailable():
            return bool(
                await self._pool.fetchval(
                    """UPDATE auth.setup_links SET used_at = now()
                       WHERE hash = $1 AND used_at IS NULL AND expires_at > now() RETURNING 1""",
                    _digest(token),
                )
            )

    async def restore_setup_link(self, token: str) -> None:
        """Makes a used link good again, when what it was used for failed."""
        with unavailable_means_log_unavailable():
            await self._pool.execute("UPDATE auth.setup_links SET used_at = NULL WHERE hash = $1", _digest(token))

    # Throttle

    async def attempt(self, what: str, free: int) -> float:
        """Counts an attempt as failed until `succeeded` says otherwise. Returns 0, or how many seconds to wait instead.

        Counting first means that many guesses at once are counted too.
        """
        key = self._throttle_of(what)
        with unavailable_means_log_unavailable():
            counted = await self._pool.fetchval(ATTEMPT_SQL, key, free, WINDOW_S, WAIT_MAX_S)
            if counted is not None:
                return 0.0
            wait_s = await self._pool.fetchval(
                "SELECT extract(epoch FROM blocked_until - now())::float8 FROM auth.throttle WHERE key = $1", key
            )
        return max(1.0, wait_s or 0.0)

    async def succeeded(self, account: str, address: str) -> None:
        """It was no failure after all. The address only gets its one attempt back, so that nobody who has an account
        can use it to go on guessing at others."""
        with unavailable_means_log_unavailable():
            await self._pool.execute("DELETE FROM auth.throttle WHERE key = $1", self._throttle_of(account))
            await self._pool.execute(
                "UPDATE auth.throttle SET failures = greatest(0, failures - 1) WHERE key = $1",
                self._throttle_of(address),
            )

    async def prune(self) -> None:
        """Forgets what no longer counts."""
        with unavailable_means_log_unavailable():
            await self._pool.execute(
                "DELETE FROM auth.throttle WHERE updated_at < now() - $1 * interval '1 second'", WINDOW_S
            )
            await self._pool.execute("DELETE FROM auth.setup_links WHERE expires_at < now() - interval '1 day'")

    def _throttle_of(self, what: str) -> bytes:
        """Names and addresses are personal data; the table needs neither in the clear."""
        return hmac.new(self._throttle_key, what.encode(), hashlib.sha256).digest()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
