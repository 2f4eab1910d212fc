"""All listeners of one router, and the way of a connection from there to the protocol that serves it.

Plain HTTP goes the shortest way: the event loop accepts and calls the protocol, nothing of ours in between. Where a
connection has something to prove first (a PROXY protocol header, a TLS handshake), a `Door` accepts it, counts it among
the router's connections from that moment on, and hands it over when that is done in time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from orrery_events.tasks import end_tasks
from orrery_router.passing import Peer
from orrery_runtime.errors import ConfigError

from . import limits, proxy_protocol
from .addresses import Address, Place
from .arrival import Arrival, Trust
from .tls import Reloaded

if TYPE_CHECKING:
    from .server import DataPlane

PROXY_HEADER_TIMEOUT_S: Final = 5.0
TLS_GOODBYE_TIMEOUT_S: Final = 2.0
"""How long the other side may take to say goodbye in TLS, too."""

Serve = Callable[[Arrival, Peer | None], asyncio.BaseProtocol]
"""Makes the protocol of a connection; None: its transport says whose it is."""

_log = structlog.get_logger("orrery.router")


class Listeners:
    """Everything that one router listens on."""

    def __init__(
        self,
        plane: DataPlane,
        *,
        trust: Trust,
        tls: Reloaded[ssl.SSLContext] | None = None,
        tls_handshake_timeout_s: float = 10.0,
        hsts_max_age_s: int = 0,
    ) -> None:
        self._plane, self._trust, self._tls = plane, trust, tls
        self._tls_handshake_timeout_s, self._hsts_max_age_s = tls_handshake_timeout_s, hsts_max_age_s
        self._places: list[Place] = []
        self._servers: list[asyncio.Server] = []
        self._doors: list[Door] = []

    async def open(self, addresses: Sequence[Address], serve: Serve, *, slot: str = "") -> list[Place]:
        """Listens on all of them. `slot`: see `Place`. Raises StartupError, and then listens on none."""
        try:
            places = []
            for address in addresses:
                places.append(place := Place(address, slot))
                self._places.append(place)
            for place in places:
                await self._listen(place, serve)
        except BaseException:
            await self.close()
            raise
        return places

    async def _listen(self, place: Place, serve: Serve) -> None:
        address = place.address
        place.listen()
        arrival = Arrival(self._trust, secure=address.tls, port=place.port, hsts_max_age_s=self._hsts_max_age_s)
        if address.tls or address.proxy_protocol:
            if address.tls and self._tls is None:
                raise ConfigError("an https:// listener needs a certificate: set tls_cert_files")
            door = Door(
                self._plane,
                place.socket,
                arrival,
                serve,
                tls=self._tls if address.tls else None,
                tls_handshake_timeout_s=self._tls_handshake_timeout_s,
                expects_header=address.proxy_protocol,
            )
            door.open()
            self._doors.append(door)
            return
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if address.socket_path else loop.create_server
        self._servers.append(await create(lambda: serve(arrival, None), sock=place.socket, backlog=limits.BACKLOG))

    @property
    def opening(self) -> int:
        """Connections that no protocol has been made for yet."""
        return sum(len(door.opening) for door in self._doors)

    def tick(self) -> None:
        """Once a second: certificates, and paths that are ours alone now."""
        if self._tls is not None:
            self._tls.tick()
        for place in self._places:
            place.tick()

    def ignore_new_connections(self) -> bool:
        """Before `close`: what was not dealt to us yet is left to others who share a port. False: there is nobody to
        leave it to, or no way."""
        return sum(place.ignore_new_connections() for place in self._places) > 0

    async def close(self) -> None:
        """Accepts no more. What is being opened goes on."""
        for place in self._places:
            place.leave()
        for server in self._servers:
            server.close()
        for door in self._doors:
            await door.close()
        for place in self._places:
            place.socket.close()
        self._places.clear()
        self._servers.clear()


class Door:
    """Accepts connections that have something to prove before they are served."""

    def __init__(
        self,
        plane: DataPlane,
        listener: socket.socket,
        arrival: Arrival,
        serve: Serve,
        *,
        tls: Reloaded[ssl.SSLContext] | None,
        tls_handshake_timeout_s: float,
        expects_header: bool,
    ) -> None:
        self._plane, self._listener, self._arrival, self._serve = plane, listener, arrival, serve
        self._tls, self._tls_handshake_timeout_s = tls, tls_handshake_timeout_s
        self._expects_header = expects_header
        self._accepting: asyncio.Task[None] | None = None
        self.opening: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        self._accepting = asyncio.create_task(self._accept(), name="door")

    async def close(self) -> None:
        if self._accepting is not None:
            await end_tasks(self._accepting)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # Too many open files, or the client is gone already.
                _log.warning("connection_not_accepted", reason=str(error))
                await asyncio.sleep(limits.TICK_S)
                continue
            if self._plane.is_full():
                connection.close()
                continue
            task = loop.create_task(self._open(connection))
            self.opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self.opening.discard(task)
        self._plane.emptied()

    async def _open(self, connection: socket.socket) -> None:
        """Whatever goes wrong before somebody serves the connection ends it."""
        proves, address = "proxy_protocol", ""
        try:
            connection.setblocking(False)
            peer = self._arrival.peer(connection.getpeername())
            address = peer.address
            if self._expects_header:
                peer = await self._introduced(connection, peer)
            proves = "tls"
            await self._hand_over(connection, peer)
        except (proxy_protocol.Malformed, TimeoutError, OSError) as error:
            self._plane.refused(proves)
            reason = str(error) or type(error).__name__
            _log.debug("connection_refused", address=address, proves=proves, reason=reason)
            connection.close()
        except BaseException:
            connection.close()
            raise

    async def _introduced(self, connection: socket.socket, peer: Peer) -> Peer:
        """Raises Malformed, TimeoutError, OSError."""
        if not peer.trusted:
            raise proxy_protocol.Malformed(f"{peer.address} is none of trusted_proxies")
        async with asyncio.timeout(PROXY_HEADER_TIMEOUT_S):
            return self._arrival.told(peer, await read_header(connection))

    async def _hand_over(self, connection: socket.socket, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        if self._tls is None:
            await loop.connect_accepted_socket(lambda: self._serve(self._arrival, peer), connection)
        else:
            await loop.connect_accepted_socket(
                lambda: self._serve(self._arrival, peer),
                connection,
                ssl=self._tls.value,
                ssl_handshake_timeout=self._tls_handshake_timeout_s,
                ssl_shutdown_timeout=TLS_GOODBYE_TIMEOUT_S,
            )


async def read_header(connection: socket.socket) -> proxy_protocol.Source:
    """Takes a PROXY protocol header off a non-blocking socket, and not one byte more. Raises Malformed and OSError."""
    taken = b""
    while True:
        seen = await _peek(connection, proxy_protocol.HEADER_BYTES_MAX - len(taken))
        if not seen:
            raise proxy_protocol.Malformed("the connection ended before its PROXY protocol header did")
        found = proxy_protocol.parse(taken + seen)
        # As long as the header goes on, all that is there is the header's.
        size = len(seen) if found is None else found[1] - len(taken)
        taken += connection.recv(size)
        if found is not None:
            return found[0]


async def _peek(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return connection.recv(size, socket.MSG_PEEK)
        except BlockingIOError:
            readable = loop.create_future()
            loop.add_reader(connection, _resolve, readable)
            try:
                await readable
            finally:
                loop.remove_reader(connection)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
