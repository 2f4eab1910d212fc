"""What auth does when something happens elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from orrery_events.catalog.user import UserDeleted
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_events.tail import Tail

from .projections import AuthState
from .store import Store

CHORE_INTERVAL_S: Final = 60.0
PENDING_MAX: Final = 10_000


class AccountCleaner:
    """Removes the account (the password's hash) of a person who is gone. Level-triggered: what an event missed, the
    chore finds."""

    def __init__(self, tail: Tail[AuthState], store: Store) -> None:
        self._tail, self._store = tail, store
        self._gone: asyncio.Queue[str] = asyncio.Queue(PENDING_MAX)

    def on_event(self, recorded: Recorded, event: Event) -> None:  # noqa: ARG002 (the tail's interface)
        if isinstance(event, UserDeleted):
            with contextlib.suppress(asyncio.QueueFull):
                self._gone.put_nowait(event.user_id)

    async def run(self) -> None:
        unsubscribe = self._tail.subscribe(self.on_event)
        try:
            while True:
                user_id = ""
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHORE_INTERVAL_S):
                        user_id = await self._gone.get()
                if user_id:
                    await self._store.drop_account(user_id)
                else:
                    await self._store.prune()
        finally:
            unsubscribe()
