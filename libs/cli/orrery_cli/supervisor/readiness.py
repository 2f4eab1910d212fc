"""Is everything there: every process says so itself, and then the public port answers for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from orrery_cli import web
from orrery_cli.datadir import DataDir
from orrery_cli.errors import CliError

from .logs import Logs
from .slot import Slot

TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.02
DEATHS_MAX: Final = 2
"""A service that ends this often before it was ever ready is not going to be."""


async def all_ready(slots: Sequence[Slot], data_dir: DataDir, logs: Logs, *, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when every process in the slots is ready. Raises CliError with the reason of one that is not."""
    deadline = time.monotonic() + timeout_s
    missing = list(slots)
    while True:
        answers = await asyncio.gather(*(ready(slot, data_dir) for slot in missing))
        missing = [slot for slot, answer in zip(missing, answers, strict=True) if not answer]
        if not missing:
            return
        for slot in missing:
            if slot.deaths >= DEATHS_MAX:
                raise CliError(_why(slot, logs))
        if time.monotonic() > deadline:
            names = ", ".join(slot.name for slot in missing)
            raise CliError(f"not ready within {timeout_s:.0f} s: {names}. {_hint(missing[0], logs)}")
        await asyncio.sleep(POLL_S)


async def ready(slot: Slot, data_dir: DataDir) -> bool:
    """True if the slot's present process says that it is ready."""
    found = data_dir.run_files().get(slot.name)
    if found is None or slot.identity is None or found.get("pid") != slot.identity.pid or not found.get("ops_url"):
        return False
    return (await web.get(f"{found['ops_url']}/readyz")).status == 200


async def public_port_answers(url: str, *, timeout_s: float = 15.0, now: Callable[[], float] = time.monotonic) -> None:
    """Returns when a router answers for auth and for api. Raises CliError."""
    deadline = now() + timeout_s
    paths = {"auth": "/hub/login", "api": "/hub/api"}
    while True:
        answers = {service: await web.get(url + path) for service, path in paths.items()}
        bad = {service: answer.status for service, answer in answers.items() if answer.status not in (200, 302)}
        if not bad:
            return
        if now() > deadline:
            service, status = next(iter(bad.items()))
            what = f"answered {status}" if status else "did not answer"
            raise CliError(f"{url}{paths[service]} {what} although {service} is ready: `orrery doctor` looks closer")
        await asyncio.sleep(POLL_S)


def _why(slot: Slot, logs: Logs) -> str:
    """A service's own sentence is the best one."""
    line = logs.last_line(slot.name)
    own = f"orrery {slot.service}: "
    if line.startswith(own):
        return f"{slot.name} cannot start: {line.removeprefix(own)}"
    return f"{slot.name} cannot start ({slot.last_end}). {_hint(slot, logs)}"


def _hint(slot: Slot, logs: Logs) -> str:
    line = logs.last_line(slot.name)
    said = f"It last said: {line[:300]} " if line else ""
    return f"{said}Its log: {logs.path(slot.name)}"
