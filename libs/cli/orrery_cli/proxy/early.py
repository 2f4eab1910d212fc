"""Answers while the proxy is on its way up.

JupyterHub gives its proxy ten seconds until its ports take connections, and only then half a minute until they make
sense. A first start makes a database, which a busy machine may not do in ten; so until then every request is answered
with 503 here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

HEAD_BYTES_MAX: Final = 65_536
HEAD_TIMEOUT_S: Final = 10.0
CONNECTIONS_MAX: Final = 200
BODY: Final = b"The proxy is starting: try again in a moment.\n"
ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


class Early:
    """Listens where the proxy will."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.StreamWriter] = set()

    async def listen(self, reserved: socket.socket) -> None:
        """On the address of a socket that keeps it ours."""
        listener = socket.socket(reserved.family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(reserved.getsockname())
        self._servers.append(await asyncio.start_server(self._answer, sock=listener, limit=HEAD_BYTES_MAX))

    async def close(self) -> None:
        """The proxy listens itself."""
        for server in self._servers:
            server.close()
        for writer in list(self._connections):
            writer.close()
        self._servers.clear()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        self._connections.add(writer)
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(HEAD_TIMEOUT_S):
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(ANSWER)
                    await writer.drain()
        finally:
            self._connections.discard(writer)
            writer.close()
