"""Ending tasks."""

from __future__ import annotations

import asyncio
from typing import Any, Final

AGAIN_S: Final = 3.0
"""A task may take so long to clean up before it is told again."""


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks and returns when all have ended, however they ended.

    Telling them once is not enough: before Python 3.12 `asyncio.wait_for`, which nats-py uses everywhere, swallows a
    cancellation that arrives together with its result (python/cpython#86296).
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # Looked at, so that nobody complains that nobody did.
