"""All connections of one router process: the listener, the pool, the clock, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge

from orrery_router.gateway import Gateway
from orrery_router.handlers import Activity
from orrery_router.passing import Networks

from . import limits
from .connection import Client
from .head import KnownHeads
from .limits import Limits
from .pool import Pool
from .tally import Tally

if TYPE_CHECKING:
    from .exchange import Exchange

BACKLOG: Final = 1024
SWITCHED: Final = 101

REFUSED: Final = Counter("orrery_router_requests_refused", "Requests that were not valid.", ["code"])
OPEN: Final = Gauge("orrery_router_open_connections", "Open client connections.", ["kind"])


class DataPlane:
    """The proxy of one process."""

    def __init__(
        self,
        gateway: Gateway,
        activity: Activity,
        catch_up: Callable[[], Awaitable[bool]],
        *,
        base_url: str,
        bounds: Limits,
        trusted_proxies: Networks = (),
    ) -> None:
        self.gateway, self.activity, self.catch_up, self.base_url = gateway, activity, catch_up, base_url
        self.bounds, self.trusted_proxies = bounds, trusted_proxies
        self.pool = Pool(bounds.connect_timeout_s)
        self.known = KnownHeads()
        self.draining = False
        self._tally = Tally()
        self._clients: set[Client] = set()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()

    async def listen(self, host: str, port: int) -> int:
        """Shares the port with other routers (SO_REUSEPORT); returns it. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((host, port))
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Client(self), sock=listener, backlog=BACKLOG)
        bound: int = listener.getsockname()[1]
        return bound

    async def run(self) -> None:
        """The one clock: timeouts of everything, once a second."""
        while True:
            await asyncio.sleep(limits.TICK_S)
            now = time.monotonic()
            for client in list(self._clients):
                client.tick(now)
            self.pool.tick(now)
            OPEN.labels("websocket").set(sum(client.spliced for client in self._clients))
            OPEN.labels("http").set(sum(not client.spliced for client in self._clients))

    async def drain(self, timeout_s: float) -> None:
        """Stops accepting, lets requests finish, closes WebSockets spread over the time that is left."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        deadline = time.monotonic() + timeout_s
        if not self._clients:
            self._empty.set()
        for client in list(self._clients):
            if client.quiet:
                client.close()
        sockets = [client for client in self._clients if client.spliced]
        random.shuffle(sockets)
        pause_s = min(0.2, timeout_s / 2 / max(1, len(sockets)))
        for client in sockets:
            client.close()
            await asyncio.sleep(pause_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._empty.wait()
        for client in list(self._clients):
            client.abort()
        self.pool.close()

    def connected(self, client: Client) -> bool:
        """False: there are too many connections already."""
        if len(self._clients) >= self.bounds.connections_max:
            REFUSED.labels("connections").inc()
            return False
        self._clients.add(client)
        return True

    def disconnected(self, client: Client) -> None:
        self._clients.discard(client)
        if self.draining and not self._clients:
            self._empty.set()

    def refused(self, status: int) -> None:
        REFUSED.labels(str(status)).inc()

    def observe(self, exchange: Exchange, status: int) -> None:
        """Counts an exchange that is over."""
        plan = exchange.plan
        if plan is None:
            self._tally.add(status // 100, "own", exchange.began_at)
            return
        # A WebSocket's life says nothing about how fast answers come.
        self._tally.add(status // 100, plan.way.kind, exchange.began_at if status != SWITCHED else 0.0)
        if plan.span is not None:
            plan.span.set_attribute("http.response.status_code", status)
            plan.span.end()
