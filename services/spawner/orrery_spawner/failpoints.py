"""Named places where a test can let a spawner die or freeze.

    ORRERY_FAILPOINTS=spawner.after_claim=kill,spawner.before_ready=pause

`kill` is SIGKILL, `pause` is SIGSTOP, both to this very process; `raise` raises FailpointError. Without the variable a
failpoint costs a dictionary look-up.
"""

from __future__ import annotations

import os
import signal

from orrery_events.errors import OrreryError

VARIABLE = "ORRERY_FAILPOINTS"
ACTIONS = ("kill", "pause", "raise")


class FailpointError(OrreryError):
    """A test asked for this failure through ORRERY_FAILPOINTS."""


def parse(text: str) -> dict[str, str]:
    """`name=action,…` as a mapping. Raises ValueError for an action that does not exist."""
    active = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, action = part.partition("=")
        if action not in ACTIONS:
            raise ValueError(
                f"{VARIABLE}: {part!r} must be <name>=<action> with one of the actions {', '.join(ACTIONS)}"
            )
        active[name] = action
    return active


_active = parse(os.environ.get(VARIABLE, ""))


def hit(name: str) -> None:
    """The place `name` has been reached. For code that runs in threads; coroutines use `failpoint`."""
    action = _active.get(name)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "pause":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "raise":
        raise FailpointError(f"failpoint {name}")


async def failpoint(name: str) -> None:
    """The place `name` has been reached."""
    hit(name)
