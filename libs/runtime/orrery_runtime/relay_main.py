"""`orrery serve relay`: copies the log to JetStream. Run two; one leads."""

from __future__ import annotations

from orrery_events.relay import Relay

from .process import Process, run


async def body(process: Process) -> None:
    """The relay's composition root."""
    relay = Relay(
        process.events,
        process.pool,
        process.bus,
        database_url=process.settings.database_url,
        name=process.instance_id,
    )
    process.task("relay", relay.run)
    await process.register()
    await process.run_until_stopped()


def main() -> int:
    return run("relay", body)
