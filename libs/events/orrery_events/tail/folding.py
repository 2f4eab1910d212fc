"""Applying events to a projection, whatever they are."""

from __future__ import annotations

from typing import Final

import msgspec
import structlog

from ..errors import UnknownEventType
from ..projection import Projection
from ..recorded import Recorded
from ..registry import Event
from . import metrics

WARNED_MAX: Final = 100

_log = structlog.get_logger("orrery.tail")


class Folding:
    """Of one tail. An event that cannot be understood is counted and skipped: serving goes on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._warned: set[str] = set()

    def apply(self, state: Projection, recorded: Recorded) -> Event | None:
        """The event, once it is applied."""
        try:
            event = recorded.event()
            state.apply(recorded, event)
        except (UnknownEventType, msgspec.MsgspecError):
            self.skip("unknown type", recorded.type)
            return None
        except Exception:  # noqa: BLE001 (a projection's fault must not end the tail)
            metrics.SKIPPED.labels(self._name, "apply failed").inc()
            _log.exception("tail.apply_failed", tail=self._name, type=recorded.type, position=recorded.position)
            return None
        return event

    def skip(self, reason: str, what: str) -> None:
        """Counts something that was not applied, and says so once."""
        metrics.SKIPPED.labels(self._name, reason).inc()
        if what not in self._warned and len(self._warned) < WARNED_MAX:
            self._warned.add(what)
            _log.warning("tail.skipped", tail=self._name, reason=reason, what=what)
