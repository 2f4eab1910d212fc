"""Tasks that are told to end do."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from orrery_events import tasks
from orrery_events.tasks import end_tasks


async def test_one_that_swallows_its_cancellation_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `asyncio.wait_for` does before Python 3.12 when the cancellation arrives together with the result."""
    monkeypatch.setattr(tasks, "AGAIN_S", 0.01)
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            swallowed += 1
            if swallowed == 3:
                raise ValueError("enough")

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end_tasks(task)
    assert (swallowed, task.done()) == (3, True)


async def test_all_end_however_they_end() -> None:
    async def ends(how: str) -> None:
        if how == "fails":
            raise ValueError(how)
        if how == "waits":
            await asyncio.Event().wait()

    several = [asyncio.create_task(ends(how)) for how in ("ends", "fails", "waits")]
    await asyncio.sleep(0)
    await end_tasks(*several)
    assert [task.cancelled() for task in several] == [False, False, True]
    await end_tasks()
