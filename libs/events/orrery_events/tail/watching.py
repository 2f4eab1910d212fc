"""Callbacks of those who want to know what a tail does."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from ..recorded import Recorded
from ..registry import Event

Watcher = Callable[[Recorded, Event], None]

_log = structlog.get_logger("orrery.tail")


class Watchers:
    """Of one tail. A watcher's fault must not end the tail."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._of_events: list[Watcher] = []
        self._of_rebuilds: list[Callable[[], None]] = []

    def subscribe(self, callback: Watcher) -> Callable[[], None]:
        """Returns the way to end that."""
        self._of_events.append(callback)
        return lambda: self._of_events.remove(callback)

    def on_rebuild(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Returns the way to end that."""
        self._of_rebuilds.append(callback)
        return lambda: self._of_rebuilds.remove(callback)

    def applied(self, recorded: Recorded, event: Event) -> None:
        for watcher in self._of_events[:]:
            try:
                watcher(recorded, event)
            except Exception:  # noqa: BLE001
                _log.exception("tail.watcher_failed", tail=self._name, type=recorded.type)

    def rebuilt(self) -> None:
        for callback in self._of_rebuilds[:]:
            try:
                callback()
            except Exception:  # noqa: BLE001
                _log.exception("tail.rebuild_watcher_failed", tail=self._name)
