"""Callers that wait for a tail to reach a position."""

from __future__ import annotations

import asyncio
import contextlib


class Positions:
    """Waits for `position >= wanted`; woken by `reach`."""

    def __init__(self) -> None:
        self._waiters: list[tuple[int, asyncio.Future[bool]]] = []

    async def wait(self, wanted: int, timeout_s: float) -> bool:
        """False when it was not reached within `timeout_s`."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiter = (wanted, future)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            return False
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def reach(self, position: int) -> None:
        for wanted, future in self._waiters:
            if wanted <= position and not future.done():
                future.set_result(True)

    def cancel(self) -> None:
        for _, future in self._waiters:
            future.cancel()
