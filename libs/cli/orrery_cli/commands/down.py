"""`orrery down`: what Ctrl-C does, from another terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orrery_cli.console import say
from orrery_cli.errors import CliError, NotRunning

from .options import DataDirOption

if TYPE_CHECKING:
    from orrery_cli.datadir import DataDir

TIMEOUT_S = 60.0


def down(
    data_dir: DataDirOption = None,
    stop_servers: Annotated[bool, typer.Option("--stop-servers", help="Stop running notebooks first.")] = False,
) -> None:
    """Ends the platform that runs on this data directory. Running notebooks go on unless told otherwise."""
    import os
    import signal
    import time

    from orrery_cli.datadir import DataDir as Place
    from orrery_cli.supervisor.children import Identity

    place = Place(data_dir)
    pid = place.lock_holder()
    identity = Identity.of(pid) if pid else None
    if pid is None or identity is None:
        raise NotRunning(f"nothing runs on {place.path}: there is nothing to end")
    if stop_servers:
        _stop_servers(place)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + TIMEOUT_S
    while place.lock_holder() == pid and identity.process() is not None:
        if time.monotonic() > deadline:
            raise CliError(f"`orrery up` (pid {pid}) does not end: look at its terminal, or `kill -9 {pid}`")
        time.sleep(0.05)
    say(f"Stopped. Data: {place.path}")


def _stop_servers(place: DataDir) -> None:
    import asyncio

    from orrery_cli import servers

    async def stop() -> int:
        async with servers.opened(place.secret("database_url")) as log:
            return await servers.stop_all(log)

    say(f"Servers stopped: {asyncio.run(stop())}")
