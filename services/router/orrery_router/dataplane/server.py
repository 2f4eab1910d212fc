"""All connections of one router process: the listener, the pool, the clock, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client import Counter, Gauge

from orrery_router.passing import Peer
from orrery_router.plan import Repeat

from . import limits
from .answers import KnownAnswer
from .arrival import Arrival, Trust
from .connection import Client
from .handover import HANDSHAKES_S
from .head import KnownHeads
from .limits import Limits
from .listeners import Listeners
from .pool import Pool
from .remembered import Remembered
from .roles import Decider, Witness
from .tally import Tally
from .tls import Reloaded

if TYPE_CHECKING:
    from .exchange import Exchange

SWITCHED: Final = 101

REFUSED: Final = Counter("orrery_router_requests_refused", "Requests that were not valid.", ["code"])
OPEN: Final = Gauge("orrery_router_open_connections", "Open client connections.", ["kind"])


class Connection(Protocol):
    """Somebody's connection, as the clock and the drain see it."""

    @property
    def quiet(self) -> bool: ...
    @property
    def spliced(self) -> bool: ...
    def tick(self, now: float) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class DataPlane:
    """The proxy of one process."""

    def __init__(
        self,
        gateway: Decider,
        activity: Witness,
        catch_up: Callable[[], Awaitable[bool]],
        *,
        base_url: str,
        bounds: Limits,
        upstream_tls: Reloaded[ssl.SSLContext],
        trust: Trust,
        tls: Reloaded[ssl.SSLContext] | None = None,
        tls_handshake_timeout_s: float = 10.0,
        hsts_max_age_s: int = 0,
    ) -> None:
        self.gateway, self.activity, self.catch_up, self.base_url = gateway, activity, catch_up, base_url
        self.bounds = bounds
        self.pool = Pool(bounds.connect_timeout_s, upstream_tls)
        self.listeners = Listeners(
            self, trust=trust, tls=tls, tls_handshake_timeout_s=tls_handshake_timeout_s, hsts_max_age_s=hsts_max_age_s
        )
        self.known = KnownHeads()
        self.draining, self.draining_since = False, 0.0
        self.repeats: Remembered[Repeat] = Remembered(limits.REPEATS_MAX // 2)
        self.answers: Remembered[KnownAnswer] = Remembered(limits.ANSWERS_MAX // 2)
        self.tally = Tally()
        self._clients: set[Connection] = set()
        self._empty = asyncio.Event()

    def serve(self, arrival: Arrival, peer: Peer | None) -> Client:
        """The protocol of a new connection."""
        return Client(self, arrival, peer)

    def is_full(self) -> bool:
        """True: there are too many connections already, those that are still being opened counted."""
        if len(self._clients) + self.listeners.opening < self.bounds.connections_max:
            return False
        REFUSED.labels("connections").inc()
        return True

    async def run(self) -> None:
        """The one clock: timeouts of everything, once a second."""
        while True:
            await asyncio.sleep(limits.TICK_S)
            now = time.monotonic()
            for client in list(self._clients):
                client.tick(now)
            self.pool.tick(now)
            self.listeners.tick()
            OPEN.labels("websocket").set(sum(client.spliced for client in self._clients))
            OPEN.labels("http").set(sum(not client.spliced for client in self._clients))

    async def drain(self, timeout_s: float, *, websockets_s: float) -> None:
        """Ends without losing a request: answers end their connections, the listener hears no new ones, those that say
        nothing are closed after a while, and WebSockets one after the other."""
        self.draining, self.draining_since = True, time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._stop_listening())
            group.create_task(self._close_websockets(websockets_s, patient=True))
        # Those that have come since, and those whose server was in the middle of a frame.
        await self._close_websockets(0.0, patient=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self.draining_since + timeout_s - time.monotonic())):
                while self._clients or self.listeners.opening:
                    self._empty.clear()
                    await self._empty.wait()
        for client in list(self._clients):
            client.abort()
        self.pool.close()

    async def _stop_listening(self) -> None:
        if self.listeners.ignore_new_connections():
            await asyncio.sleep(HANDSHAKES_S)
        await self.listeners.close()

    async def _close_websockets(self, spread_s: float, *, patient: bool) -> None:
        """Spread over time, so that their owners do not all come back at once."""
        sockets = [client for client in self._clients if isinstance(client, Client) and client.spliced]
        if not sockets:
            return
        random.shuffle(sockets)
        pause_s = min(limits.WEBSOCKET_PAUSE_S, spread_s / len(sockets))
        for client in sockets:
            client.close_websocket(patient=patient)
            await asyncio.sleep(pause_s)

    def connected(self, client: Connection) -> bool:
        """False: there are too many connections already."""
        if len(self._clients) >= self.bounds.connections_max:
            REFUSED.labels("connections").inc()
            return False
        self._clients.add(client)
        return True

    def disconnected(self, client: Connection) -> None:
        self._clients.discard(client)
        self.emptied()

    def emptied(self) -> None:
        """The drain is over once nobody is left."""
        if self.draining and not self._clients and not self.listeners.opening:
            self._empty.set()

    def refused(self, code: int | str) -> None:
        """`code`: a status, or what a connection had to prove and could not: `tls`, `proxy_protocol`."""
        REFUSED.labels(str(code)).inc()

    def observe(self, exchange: Exchange, status: int) -> None:
        """Counts an exchange that is over."""
        plan = exchange.plan
        duration_s = time.monotonic() - exchange.began_at
        if plan is None:
            self.tally.add(status // 100, "own", duration_s)
            return
        # A WebSocket's life says nothing about how fast answers come.
        self.tally.add(status // 100, plan.way.kind, duration_s if status != SWITCHED else -1.0)
        if plan.span is not None:
            plan.span.set_attribute("http.response.status_code", status)
            plan.span.end()
