"""Waiting for what happens to a server, and remembering the steps of starts under way."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from orrery_events.catalog.server import Progressed, ServerEvent, StartRequested
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_events.tail import Tail

QUEUE_MAX: Final = 500
"""Events that wait for one listener; a slower one misses the oldest."""
REMEMBERED_SERVERS_MAX: Final = 2_000
REMEMBERED_EVENTS_MAX: Final = 100

Item = tuple[Recorded, Event]


class Watch:
    """Hands live server events to those who wait for them."""

    def __init__(self, tail: Tail[Any]) -> None:
        self._listeners: dict[str, set[asyncio.Queue[Item]]] = {}
        self._seen: OrderedDict[str, deque[Item]] = OrderedDict()
        self._unsubscribe = tail.subscribe(self._on_event)

    def close(self) -> None:
        self._unsubscribe()

    @contextmanager
    def listen(self, server_id: str) -> Iterator[asyncio.Queue[Item]]:
        """Everything that happens to the server from here on."""
        queue: asyncio.Queue[Item] = asyncio.Queue(QUEUE_MAX)
        listeners = self._listeners.setdefault(server_id, set())
        listeners.add(queue)
        try:
            yield queue
        finally:
            listeners.discard(queue)
            if not listeners:
                self._listeners.pop(server_id, None)

    def seen(self, server_id: str) -> list[Item]:
        """What this process saw of the latest start: enough to tell the story while the log is away."""
        return list(self._seen.get(server_id, ()))

    def _on_event(self, recorded: Recorded, event: Event) -> None:
        if not isinstance(event, ServerEvent | Progressed):
            return
        self._remember(recorded, event)
        for queue in self._listeners.get(event.server_id, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait((recorded, event))

    def _remember(self, recorded: Recorded, event: ServerEvent | Progressed) -> None:
        if isinstance(event, StartRequested):
            self._seen.pop(event.server_id, None)
        items = self._seen.setdefault(event.server_id, deque(maxlen=REMEMBERED_EVENTS_MAX))
        items.append((recorded, event))
        while len(self._seen) > REMEMBERED_SERVERS_MAX:
            self._seen.popitem(last=False)
