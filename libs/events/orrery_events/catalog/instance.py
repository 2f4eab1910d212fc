"""Instances: running processes of services. Keyed by slot, so that a restart in the same slot replaces the old one."""

from __future__ import annotations

from ..ids import derived_id
from ..registry import Event, event


def instance_stream(slot: str) -> str:
    return f"instance-{derived_id('slot', slot)}"


class InstanceEvent(Event, frozen=True, kw_only=True):
    instance_id: str
    """Fresh at every process start."""
    slot: str
    """Stable name of the place that the process runs in, e.g. `api-1` or a pod's name."""
    service: str
    url: str = ""
    """Where a router may send a browser's request for this service; empty: it takes none."""

    def aggregate_id(self) -> str:
        return self.instance_id

    def compaction_key(self) -> str | None:
        return self.slot


@event("instance.started")
class InstanceStarted(InstanceEvent, frozen=True, kw_only=True):
    """The process is ready."""

    pid: int = 0
    host: str = ""
    version: str = ""
    started_at: float = 0.0


@event("instance.draining")
class InstanceDraining(InstanceEvent, frozen=True, kw_only=True):
    """Finishes what it has, takes nothing new."""


@event("instance.stopped", tombstone=True)
class InstanceStopped(InstanceEvent, frozen=True, kw_only=True):
    """Ended on purpose."""


@event("instance.lost", tombstone=True)
class InstanceLost(InstanceEvent, frozen=True, kw_only=True):
    """Its lease ran out: whatever it had claimed may be claimed by others."""
