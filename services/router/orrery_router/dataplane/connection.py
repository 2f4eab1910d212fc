"""A client's connection: parses requests strictly, one exchange at a time, the rest waits its turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

import httptools

from orrery_router import passing
from orrery_router.passing import Peer

from . import limits
from .exchange import Exchange
from .head import BadRequest, Head

if TYPE_CHECKING:
    from .server import DataPlane


class Client(asyncio.Protocol):
    """One browser's connection."""

    def __init__(self, server: DataPlane) -> None:
        self.server = server
        self.peer = Peer("", trusted=False)
        self.transport: asyncio.Transport | None = None
        self.writable = True
        self._parser = httptools.HttpRequestParser(self)
        self._head: Head | None = None
        self._head_bytes = 0
        self._head_done = True
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._receiving: Exchange | None = None
        self._spliced = False
        self._held: set[str] = set()
        self._refusal: tuple[int, str] | None = None
        self._last_at = time.monotonic()
        self._linger_until = 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        self.peer = Peer(address, trusted=passing.is_in(address, self.server.trusted_proxies))
        assert self.transport is not None  # noqa: S101 (asyncio's own promise)
        self.transport.set_write_buffer_limits(high=limits.WRITE_HIGH_BYTES)
        if not self.server.connected(self):
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._last_at = time.monotonic()
        if self._linger_until or self._refusal:
            return
        if self._spliced:
            if self._current is not None:
                self._current.client_bytes(data)
            return
        if not self._head_done or self._receiving is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except BadRequest as error:
            self._refuse(error.status, error.message)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, BadRequest):
                self._refuse(cause.status, cause.message)
            else:
                self._refuse(400, "The request is not valid HTTP.")
        except httptools.HttpParserError:
            self._refuse(400, "The request is not valid HTTP.")
        else:
            if not self._head_done and self._head_bytes > self.server.bounds.head_bytes_max:
                self._refuse(431, f"The request's head is larger than {self.server.bounds.head_bytes_max} bytes.")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        self.transport = None
        self.server.disconnected(self)
        for exchange in (self._current, *self._waiting):
            if exchange is not None and not exchange.finished:
                exchange.client_gone()

    def pause_writing(self) -> None:
        self.writable = False
        if self._current is not None:
            self._current.client_writable(writable=False)

    def resume_writing(self) -> None:
        self.writable = True
        if self._current is not None:
            self._current.client_writable(writable=True)

    # llhttp

    def on_message_begin(self) -> None:
        self._head = Head()
        self._head_done = False
        self._head_bytes = max(1, self._head_bytes if self._receiving is None else 1)

    def on_url(self, url: bytes) -> None:
        if self._head is not None:
            self._head.target += url
            if len(self._head.target) > self.server.bounds.head_bytes_max:
                raise BadRequest(431, f"The request's head is larger than {self.server.bounds.head_bytes_max} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        head = self._head
        if head is None:
            return
        if not name:
            raise BadRequest(400, "A header has no name.")
        head.headers.append((name, value))
        if len(head.headers) > limits.HEADERS_MAX:
            raise BadRequest(431, f"The request has more than {limits.HEADERS_MAX} headers.")

    def on_headers_complete(self) -> None:
        head, parser = self._head, self._parser
        if head is None:
            return
        self._head_done = True
        if sum(len(n) + len(v) + 4 for n, v in head.headers) + len(head.target) > self.server.bounds.head_bytes_max:
            raise BadRequest(431, f"The request's head is larger than {self.server.bounds.head_bytes_max} bytes.")
        head.method = parser.get_method()
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise BadRequest(400, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        head.http10 = version == "1.0"
        head.keep_alive = parser.should_keep_alive()
        if parser.should_upgrade():
            head.upgrade = head.get(b"upgrade").lower().strip()
        lengths = [v for n, v in head.headers if n.lower() == b"content-length"]
        chunked = any(n.lower() == b"transfer-encoding" for n, _ in head.headers)
        head.chunked = chunked
        head.length = int(lengths[0]) if lengths and lengths[0].strip().isdigit() else 0
        exchange = Exchange(self, head)
        self._receiving = exchange
        self._waiting.append(exchange)
        if len(self._waiting) > limits.PIPELINED_MAX:
            self.hold("pipeline")
        if not head.upgrade:
            self._next()

    def on_body(self, data: bytes) -> None:
        if self._receiving is not None:
            self._receiving.request_body(data)

    def on_message_complete(self) -> None:
        exchange = self._receiving
        self._head_bytes, self._head_since = 0, 0.0
        if exchange is not None and not exchange.head.upgrade:
            self._receiving = None
            exchange.request_end()
            if exchange.finished and exchange is self._current:
                self._advance()

    # Exchanges

    def _next(self) -> None:
        while self._current is None and self._waiting and self.transport is not None and not self._linger_until:
            self._current = self._waiting.popleft()
            self.free("pipeline")
            self._current.start()
        if self._current is None and self._refusal is not None:
            self._answer_refusal(*self._refusal)

    def _upgrade(self, rest: bytes) -> None:
        """The request asks for another protocol; what follows it is not HTTP."""
        exchange = self._receiving
        if exchange is None:
            return
        head = exchange.head
        if head.upgrade != b"websocket" or head.method != b"GET" or head.http10 or head.has_body:
            self._refuse(400, "The only protocol that a connection can be changed to here is websocket.")
            return
        self._receiving = None
        exchange.request_ended = True
        self._next()
        if rest and not exchange.finished:
            exchange.client_bytes(rest)
        self._spliced = True

    def exchange_finished(self, exchange: Exchange, *, close: bool) -> None:
        if exchange is not self._current:
            return
        if close or self._spliced or self.server.draining:
            self._current = None
            self.close(linger=not exchange.request_ended)
        elif exchange.request_ended:
            self._advance()

    def _advance(self) -> None:
        self._current = None
        self._last_at = time.monotonic()
        self._held.discard("upstream")
        self.free("connecting")
        self._next()

    def splice(self) -> None:
        self._spliced = True

    def _refuse(self, status: int, message: str) -> None:
        """A request that cannot be understood: answered, and the connection ends, because what follows cannot be
        trusted to be where it seems to be."""
        if self._linger_until or self._refusal is not None:
            return
        self.server.refused(status)
        broken, self._receiving = self._receiving, None
        if broken is not None and broken is self._current:
            if broken.response_begun:
                self.abort()  # Half an answer must not look like a whole one.
                return
            self._current = None
            broken.client_gone()
        elif broken is not None:
            self._waiting.remove(broken)
        self._refusal = (status, message)
        self._next()

    def _answer_refusal(self, status: int, message: str) -> None:
        """Once the requests before it have their answers."""
        head = self._head or Head()
        self.write(self.server.gateway.replies.page(head, status, message, close=True).content)
        self.close(linger=True)

    # Bytes

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def hold(self, reason: str) -> None:
        """Stops reading until every reason is gone."""
        self._held.add(reason)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def free(self, reason: str) -> None:
        self._held.discard(reason)
        if not self._held and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def close(self, *, linger: bool = False) -> None:
        """Ends the connection once what was written is out. `linger`: what the client still sends is read and thrown
        away for a moment, because closing on unread bytes would reset the connection and lose the answer."""
        if self.transport is None or self._linger_until:
            return
        if linger:
            self._linger_until = time.monotonic() + limits.TICK_S * 2
            self._held.clear()
            self.transport.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
        else:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    @property
    def idle(self) -> bool:
        """Between two requests."""
        return self._current is None and not self._waiting and self._head_done

    @property
    def spliced(self) -> bool:
        return self._spliced

    def tick(self, now: float) -> None:
        """Timeouts, once a second."""
        quiet_s = now - self._last_at
        if self._linger_until:
            if now > self._linger_until and self.transport is not None:
                self.transport.close()
        elif self._spliced:
            return
        elif (
            self._refusal is None
            and not self._head_done
            and quiet_s > 0
            and now - self._head_started(now) > self.server.bounds.head_timeout_s
        ):
            self._refuse(408, "The request's head did not come in time.")
        elif self.idle and quiet_s > self.server.bounds.keepalive_timeout_s:
            self.close()
        elif self._receiving is not None and not self._held and quiet_s > self.server.bounds.body_timeout_s:
            self._refuse(408, "The request's body did not come in time.")
        elif self._current is not None:
            self._current.tick(now)

    def _head_started(self, now: float) -> float:
        """A client that drips its head byte by byte is not saved by each byte."""
        if self._head_since == 0.0:
            self._head_since = now
        return self._head_since

    _head_since = 0.0
