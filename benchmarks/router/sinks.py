"""Two upstreams in one process: one that swallows uploads, one that echoes WebSocket messages.

    python -m benchmarks.router.sinks UPLOAD_PORT ECHO_PORT

Both know what their load sends, and so read as little of it as they can: they share a core with it.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import cast

import uvloop

from benchmarks.router.frames import MESSAGE, REPLY, accept_key
from benchmarks.router.upstreams import SWALLOWED

READ_BYTES = 1 << 18
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(SWALLOWED), SWALLOWED)


class Uploads(asyncio.BufferedProtocol):
    """Answers once a request's body has come: `Content-Length` or chunked, one request at a time."""

    buffer = memoryview(bytearray(READ_BYTES))
    """One for all: what is in it is read before anything else happens."""

    def __init__(self) -> None:
        self.head = b""
        self.left = 0
        self.chunked = False
        self.end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, _hint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, count: int) -> None:
        if self.chunked:
            self.tail(bytes(self.buffer[max(0, count - 5) : count]))
        elif self.left:
            self.less(count)
        else:
            self.head += self.buffer[:count]
            head, found, body = self.head.partition(b"\r\n\r\n")
            if found:
                self.head = b""
                self.begin(head.lower(), body)

    def begin(self, head: bytes, body: bytes) -> None:
        if b"transfer-encoding: chunked" in head:
            self.chunked = True
            self.tail(body[-5:])
        else:
            self.left = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            self.less(len(body))

    def less(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            self.transport.write(ANSWER)

    def tail(self, data: bytes) -> None:
        """The end of a chunked body; the load never sends these bytes inside one."""
        self.end = (self.end + data)[-5:]
        if self.end == b"0\r\n\r\n":
            self.chunked, self.end = False, b""
            self.transport.write(ANSWER)


class Echo(asyncio.Protocol):
    """One frame for each frame: every message is `MESSAGE` bytes on the wire."""

    def __init__(self) -> None:
        self.head: bytes | None = b""
        self.part = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.head is None:
            messages, self.part = divmod(self.part + len(data), MESSAGE)
            if messages:
                self.transport.write(REPLY * messages)
            return
        self.head += data
        head, found, rest = self.head.partition(b"\r\n\r\n")
        if found:
            self.head = None
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept_key(head) + b"\r\n\r\n"
            )
            if rest:
                self.data_received(rest)


async def serve(upload_port: int, echo_port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(Uploads, "127.0.0.1", upload_port, backlog=4096)
    echo = await loop.create_server(Echo, "127.0.0.1", echo_port, backlog=4096)
    gc.freeze()
    await echo.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
