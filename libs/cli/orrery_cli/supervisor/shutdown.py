"""The end of `orrery up`, told step by step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Literal

from orrery_cli.console import announce
from orrery_cli.datadir import DataDir
from orrery_cli.errors import CliError

from .jobs import Job, Jobs, Outcome
from .slot import Slot

WIDTH: Final = 20
JOB_TIMEOUT_S: Final = {"count_servers": 3.0, "stop_servers": 90.0}


class Shutdown:
    """Ends processes in the order in which they need one another: routers first, the database last."""

    def __init__(
        self, data_dir: DataDir, backbone: Sequence[Slot], services: Sequence[Slot], hurry: asyncio.Event
    ) -> None:
        self._data_dir = data_dir
        self._backbone = backbone
        self._services = services
        self._hurry = hurry

    async def servers(self, jobs: Jobs, database_url: str, *, stop: bool) -> None:
        """Says what becomes of user servers; ends them if asked. A database that is away is no reason to stay."""
        announce()
        try:
            running = (await self._unless_hurried(jobs, "count_servers", database_url)).servers
            if not running:
                announce("Stopping. No server is running. (Ctrl-C again hurries.)")
            elif not stop:
                announce(f"Stopping. {_servers(running)} left running; the next `orrery up` finds them again.")
                announce("(Ctrl-C again hurries.)")
            else:
                announce(f"Stopping, and {_servers(running)} first. (Ctrl-C again hurries.)")
            if stop:
                began = time.monotonic()
                await self._unless_hurried(jobs, "stop_servers", database_url)
                announce(f"  {'servers'.ljust(WIDTH)} stopped   {time.monotonic() - began:.1f} s")
        except CliError as error:
            announce(f"Stopping. The log could not be asked about servers: {error}")

    async def run(self, *, narrate: bool) -> None:
        """`narrate`: a person asked for it and watches."""
        tell = announce if narrate else _nothing
        began = time.monotonic()
        others = [s for s in self._services if s.service not in ("router", "relay")]
        for what, group in (
            ("routers", [s for s in self._services if s.service == "router"]),
            (", ".join(s.name for s in others), others),
            ("relay", [s for s in self._services if s.service == "relay"]),
            ("NATS", [s for s in self._backbone if s.service == "nats"]),
            ("PostgreSQL", [s for s in self._backbone if s.service == "postgres"]),
        ):
            if group:
                step = time.monotonic()
                await asyncio.gather(*(slot.close(hurry=self._hurry) for slot in group))
                for slot in group:
                    self._data_dir.remove_run_file(slot.name)
                tell(f"  {what.ljust(WIDTH)} stopped   {time.monotonic() - step:.1f} s")
        tell(f"Stopped in {time.monotonic() - began:.1f} s. Data: {self._data_dir.path}")

    async def _unless_hurried(self, jobs: Jobs, kind: Literal["count_servers", "stop_servers"], url: str) -> Outcome:
        work = asyncio.ensure_future(jobs.run(Job(kind=kind, database_url=url)))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait([work, hurry], timeout=JOB_TIMEOUT_S[kind], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if work.done():
            return await work
        work.cancel()
        raise CliError("not waited for")


def _servers(count: int) -> str:
    return "1 running server" if count == 1 else f"{count} running servers"


def _nothing(_text: str) -> None:
    """For an end that nobody watches."""
