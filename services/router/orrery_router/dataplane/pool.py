"""Idle connections to upstreams."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from . import limits
from .upstream import Target, Upstream


class Pool:
    """Idle upstream connections by target, the most recently used one first."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Target, deque[Upstream]] = {}

    def take(self, target: Target, *, fresh: bool) -> Upstream | None:
        """An idle connection, or None. `fresh`: only one that was used a moment ago."""
        idle = self._idle.get(target)
        while idle:
            upstream = idle.pop()
            if not upstream.usable:
                continue
            if fresh and time.monotonic() - upstream.idle_since > limits.FRESH_IDLE_S:
                upstream.close()
                continue
            return upstream
        return None

    async def connect(self, target: Target) -> Upstream:
        """A new connection. Raises OSError and TimeoutError."""
        async with asyncio.timeout(self._connect_timeout_s):
            _, upstream = await asyncio.get_running_loop().create_connection(
                lambda: Upstream(target, self.release, self.forget), target[0], target[1]
            )
        return upstream

    def release(self, upstream: Upstream) -> None:
        idle = self._idle.get(upstream.target)
        if idle is None:
            idle = self._idle[upstream.target] = deque()
        if len(idle) >= limits.POOL_IDLE_MAX:
            idle.popleft().close()
        upstream.idle_since = time.monotonic()
        idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        idle = self._idle.get(upstream.target)
        if idle is None:
            return
        if upstream in idle:
            idle.remove(upstream)
        if not idle:
            del self._idle[upstream.target]

    def drop(self, target: Target) -> None:
        """Closes the idle connections to a target that is gone."""
        for upstream in self._idle.pop(target, ()):
            upstream.close()

    def tick(self, now: float) -> None:
        """Closes what was idle for too long. `now`: monotonic seconds."""
        for idle in list(self._idle.values()):
            while idle and now - idle[0].idle_since > limits.POOL_IDLE_TIMEOUT_S:
                idle.popleft().close()

    def close(self) -> None:
        for target in list(self._idle):
            self.drop(target)
