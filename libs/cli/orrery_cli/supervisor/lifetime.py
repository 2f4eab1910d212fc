"""How long a process that starts others runs: until a signal, or until it cannot be started."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

from orrery_cli.given import seconds
from orrery_events.tasks import end_tasks
from orrery_runtime.stopping import DRAIN_NOTICE_S, DRAIN_TIMEOUT_S, WEBSOCKET_DRAIN_S, stop_timeout_s


class Lifetime:
    """The first Ctrl-C (or SIGTERM, or a closed terminal) stops, the second hurries."""

    def __init__(self) -> None:
        self.stop, self.hurry = asyncio.Event(), asyncio.Event()

    async def last(self, start: Coroutine[Any, Any, None]) -> None:
        """Runs `start` and returns when the end was asked for, even before `start` is done; what it began is then the
        caller's to end. Raises what `start` raises."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        starting = asyncio.create_task(start)
        stopping = asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                await self.stop.wait()
            else:
                starting.cancel()
                with suppress(asyncio.CancelledError):
                    await starting
        finally:
            stopping.cancel()

    def _on_signal(self) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()


def service_stop_timeout_s() -> float:
    """How long one of our services may take to end before it is killed."""
    return stop_timeout_s(
        drain_notice_s=seconds("drain_notice_s", DRAIN_NOTICE_S),
        drain_timeout_s=seconds("drain_timeout_s", DRAIN_TIMEOUT_S),
        websocket_drain_s=seconds("websocket_drain_s", WEBSOCKET_DRAIN_S),
    )


def spawn(stack: AsyncExitStack, work: Awaitable[None]) -> None:
    """Runs `work` beside everything else until the stack closes."""
    stack.push_async_callback(end_tasks, asyncio.ensure_future(work))
