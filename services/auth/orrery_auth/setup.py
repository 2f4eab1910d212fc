"""The first admin: by a one-time link, or from the environment for unattended use. Called before services run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from orrery_events.catalog.user import UserUpdated, user_stream
from orrery_events.log import EventLog, create_pool
from orrery_events.names import normalise_user_name
from orrery_runtime.startup import close_pool

from .domain import check_password
from .identities import create_user, read_user
from .passwords import Hasher
from .projections import AuthState
from .store import Store

PRODUCER = "setup"


async def issue_setup_link(database_url: str) -> str | None:
    """A token for `/hub/setup/<token>`, good once and for 15 minutes; None when there is an admin already."""
    async with _opened(database_url) as (log, store):
        if await has_admin(log):
            return None
        return await store.new_setup_link()


async def bootstrap_admin(database_url: str, name: str, password: str) -> None:
    """Makes sure that this admin exists. The password is only used when the user has none yet.

    Raises InvalidName and BadPassword.
    """
    name = normalise_user_name(name)
    async with _opened(database_url) as (log, store):
        state = await read_user(log, name)
        account = await store.account(name)
        if account is None or account.user_id != state.user_id:
            check_password(password)
            hasher = Hasher()
            try:
                password_hash = await hasher.hash(password)
            finally:
                hasher.close()
            if not state.exists:
                await create_user(log, store, name=name, password_hash=password_hash, admin=True, actor="service:setup")
                return
            await store.put_account(state.user_id, name, password_hash)
        if not state.admin:
            promoted = UserUpdated(user_id=state.user_id, name=name, admin=True, created_at=state.created_at)
            await log.append(user_stream(name), [promoted], expected_version=state.version, actor="service:setup")


async def has_admin(log: EventLog) -> bool:
    state = AuthState()
    async with log.snapshot(["user"]) as snapshot:
        async for recorded in snapshot.latest():
            state.apply(recorded, recorded.event())
    return state.has_admin()


@asynccontextmanager
async def _opened(database_url: str) -> AsyncIterator[tuple[EventLog, Store]]:
    pool: asyncpg.Pool = await create_pool(database_url, application_name="orrery-setup", max_size=2)
    log = EventLog(pool, producer=PRODUCER)
    await log.start()
    try:
        # Links and accounts need no auth_key; only signing keys are encrypted.
        yield log, Store(pool, "")
    finally:
        await log.close()
        await close_pool(pool)
