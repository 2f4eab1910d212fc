"""`orrery serve relay`: copies the log to JetStream. Run two; one leads."""

from __future__ import annotations

from orrery_events.relay import Relay

from .process import Process, run

NAME = "relay"
DIVERGED_CODE = "ORR-BUS-03"
"""Runbook: the stream holds what Postgres lost, and an operator must decide."""


class Progress:
    """What /status says of a relay: how far the stream is. A relay that does not lead knows nothing of it."""

    name = NAME
    epoch = 0
    staleness_s = 0.0

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    @property
    def position(self) -> int:
        return self._relay.last_seq

    @property
    def lag(self) -> int:
        return self._relay.lag

    @property
    def mode(self) -> str:
        return "leading" if self._relay.leading else "standby"

    async def stop(self) -> None:
        """The relay is a task; it ends with the others."""


async def body(process: Process) -> None:
    """The relay's composition root."""
    relay = Relay(
        process.events,
        process.pool,
        process.bus,
        database_url=process.settings.database_url,
        name=process.instance_id,
        traced=bool(process.settings.otlp_endpoint),
    )

    async def undivided() -> str:
        return relay.diverged

    process.health.add("stream", undivided, code=DIVERGED_CODE, required=False)
    process.track(Progress(relay))
    process.task(NAME, relay.run)
    # Being the one that leads is a lock of its own, so a lease that ran out in an outage does no harm.
    await process.register(lease_loss="renew")
    await process.run_until_stopped()


def main() -> int:
    return run(NAME, body)
