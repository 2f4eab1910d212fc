"""What the spawner hears: commands from its durable consumer, and everything from the tail.

Both say the same things, and saying a thing twice does no harm. A command reaches one spawner, which acts at once; the
tail tells all of them, also when NATS is away.
"""

from __future__ import annotations

from orrery_events import subjects
from orrery_events.catalog.instance import InstanceEvent
from orrery_events.catalog.server import ServerEvent, StartCancelled, StartRequested, StopRequested
from orrery_events.recorded import Recorded
from orrery_events.registry import Event
from orrery_events.tail import Tail

from .projections import SpawnerState
from .reconcile import Reconciler
from .starts import Starts
from .stops import Stops

DURABLE = "spawner"
FILTERS = [subjects.fact_filter(kind.TYPE) for kind in (StartRequested, StopRequested, StartCancelled)]
CATCH_UP_TIMEOUT_S = 1.0
"""How long a command waits for the projection to know what it is about; after that the tail will bring it."""


class Handlers:
    """Passes on what was heard."""

    def __init__(self, tail: Tail[SpawnerState], starts: Starts, stops: Stops, reconciler: Reconciler) -> None:
        self._tail = tail
        self._starts = starts
        self._stops = stops
        self._reconciler = reconciler

    async def command(self, recorded: Recorded, event: Event) -> None:
        """One message of the durable consumer. Returns once the claim is appended, or lost, or has to wait its turn."""
        await self._tail.wait_for(recorded.position, CATCH_UP_TIMEOUT_S)
        if isinstance(event, StartRequested):
            await self._starts.offered(event.server_id)
        elif isinstance(event, StopRequested):
            await self._stops.offered(event.server_id)
        elif isinstance(event, StartCancelled) and event.server_id not in self._starts.busy:
            # Whoever is starting it has heard it too and ends it; what nobody is working on the reconciler finds.
            self._reconciler.wake()

    def heard(self, _recorded: Recorded, event: Event) -> None:
        """One event of the tail, after the projection has taken it in."""
        if isinstance(event, InstanceEvent):
            if event.service == "spawner":
                self._reconciler.wake()
            return
        entry = self._tail.state.servers.get(event.server_id) if isinstance(event, ServerEvent) else None
        if entry is None:
            return
        self._starts.heard(entry.server)
        if isinstance(event, StartRequested):
            self._starts.notice(event.server_id)
        elif isinstance(event, StopRequested):
            self._stops.notice(entry.server)
        elif isinstance(event, StartCancelled) and event.server_id not in self._starts.busy:
            self._reconciler.wake()
