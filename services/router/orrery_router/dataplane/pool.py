"""Idle connections to upstreams."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque

import structlog

from orrery_router.target import Target

from . import limits
from .tls import Reloaded
from .upstream import Upstream

_log = structlog.get_logger("orrery.router")


class Pool:
    """Idle upstream connections by target, the most recently used one first."""

    def __init__(self, connect_timeout_s: float, tls: Reloaded[ssl.SSLContext]) -> None:
        """`tls`: what `https://` targets are spoken to with."""
        self._connect_timeout_s, self._tls = connect_timeout_s, tls
        self._idle: dict[Target, deque[Upstream]] = {}
        self._tls_epoch = 0
        """Counts the changes of the certificates: connections that were made with former ones are not kept."""
        self._complained: dict[Target, float] = {}
        """When a target's TLS was last found wanting."""

    def take(self, target: Target, *, fresh: bool) -> Upstream | None:
        """An idle connection, or None. `fresh`: only one that was used a moment ago."""
        idle = self._idle.get(target)
        while idle:
            upstream = idle.pop()
            transport = upstream.transport
            if transport is None or transport.is_closing():
                continue
            if fresh and time.monotonic() - upstream.idle_since > limits.FRESH_IDLE_S:
                upstream.close()
                continue
            return upstream
        return None

    async def connect(self, target: Target, timeout_s: float = 0.0) -> Upstream:
        """A new connection. `timeout_s`: 0 is as the settings say. Raises OSError (ssl.SSLError) and TimeoutError."""
        loop = asyncio.get_running_loop()

        epoch = self._tls_epoch

        def upstream() -> Upstream:
            made = Upstream(target, self.release, self.forget)
            made.tls_epoch = epoch
            return made

        async with asyncio.timeout(timeout_s or self._connect_timeout_s):
            if target.socket_path:
                return (await loop.create_unix_connection(upstream, target.socket_path))[1]
            tls = self._tls.value if target.tls else None
            try:
                return (await loop.create_connection(upstream, target.host, target.port, ssl=tls))[1]
            except ssl.SSLError as error:
                self._complain(target, error)
                raise

    def _complain(self, target: Target, error: ssl.SSLError) -> None:
        """Once in a while for each target: the page does not say more than its reader can use."""
        now = time.monotonic()
        if now - self._complained.get(target, -limits.COMPLAINT_INTERVAL_S) < limits.COMPLAINT_INTERVAL_S:
            return
        if len(self._complained) >= limits.COMPLAINTS_MAX:
            self._complained.clear()
        self._complained[target] = now
        _log.warning(
            "upstream_tls_refused",
            target=target.url,
            reason=getattr(error, "verify_message", "") or error.reason or str(error),
            consequence="requests for it are answered 502: correct its certificate or upstream_ca_file",
        )

    def release(self, upstream: Upstream, now: float) -> None:
        """It is idle. `now`: monotonic seconds."""
        if upstream.target.tls and upstream.tls_epoch != self._tls_epoch:
            upstream.close()
            return
        idle = self._idle.get(upstream.target)
        if idle is None:
            idle = self._idle[upstream.target] = deque()
        if len(idle) >= limits.POOL_IDLE_MAX:
            idle.popleft().close()
        upstream.idle_since = now
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
        """Closes what was idle for too long, and looks after certificates. `now`: monotonic seconds."""
        if self._tls.tick():
            self._tls_epoch += 1
            for target in [target for target in self._idle if target.tls]:
                self.drop(target)
        for target, at in list(self._complained.items()):
            if now - at > limits.COMPLAINT_INTERVAL_S:
                del self._complained[target]
        for idle in list(self._idle.values()):
            while idle and now - idle[0].idle_since > limits.POOL_IDLE_TIMEOUT_S:
                idle.popleft().close()

    def close(self) -> None:
        for target in list(self._idle):
            self.drop(target)
