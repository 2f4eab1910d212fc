"""What a tail feeds."""

from __future__ import annotations

from typing import Protocol

from .recorded import Recorded
from .registry import Event


class Projection(Protocol):
    """State folded from events. `apply` is pure: no clock, no I/O, no logging; it may be fed a compacted history (the
    last event of each key, in position order) or the full one and must end in the same state."""

    def apply(self, recorded: Recorded, event: Event) -> None: ...

    def digest(self) -> str:
        """A short hash of the state, equal on all replicas at the same position."""
        ...
