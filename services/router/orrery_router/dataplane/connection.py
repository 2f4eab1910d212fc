"""A client's connection: parses requests strictly, one exchange at a time, the rest waits its turn."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

import httptools
import structlog

from orrery_router.lines import Header
from orrery_router.passing import Peer
from orrery_router.replies import Reply

from . import limits
from .arrival import Arrival
from .exchange import Exchange
from .head import BadRequest, Head, fields_of
from .shortway import NOBODY, ShortWay

if TYPE_CHECKING:
    from .server import DataPlane
    from .upstream import Upstream

_log = structlog.get_logger("orrery.router")

SERVICE_RESTART: Final = b"\x88\x02" + (1012).to_bytes(2, "big")
"""A WebSocket's close frame, as servers send it (RFC 6455 §5.5.1)."""


class Client(ShortWay):
    """One browser's connection.

    A request whose header lines were seen before, byte by byte, and that is whole in one piece, goes the short way
    (`shortway`). Everything else goes through llhttp, which also decides what may be known the next time.
    """

    _parser: httptools.HttpRequestParser | None = None
    _in_head = False
    """Bytes of a head have come, its end has not."""
    _target = b""
    _headers: list[Header] | None = None
    _trailers: list[Header] | None = None
    _head_bytes = _size = 0
    """What came since the last byte of a body or since the head began: a head, trailers, a chunk's size line. And what
    the parser has made of a head, or of trailers."""
    _receiving: Exchange | None = None
    _held: frozenset[str] = frozenset()
    """Why nothing is read."""
    _spliced = False
    _refusal: tuple[int, str] | None = None
    _refused_head: Head | None = None
    _linger_until = 0.0
    lingering = False
    """Everything was said; what still comes is thrown away."""
    _head_since = 0.0

    def __init__(self, server: DataPlane, arrival: Arrival, peer: Peer | None) -> None:
        """`peer`: where its transport does not say it."""
        super().__init__(server, arrival, peer)
        self._waiting: list[Exchange] = []

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        if self.peer is NOBODY:
            self.peer = self.arrival.peer(transport.get_extra_info("peername"))
        assert self.transport is not None  # noqa: S101 (asyncio's own promise)
        self.transport.set_write_buffer_limits(high=limits.WRITE_HIGH_BYTES)
        if not self.server.connected(self):
            self.transport.abort()

    def begin(self, head: Head) -> Exchange:
        self._current = exchange = Exchange(self, head, request_ended=True)
        return exchange

    def received(self, data: bytes) -> None:
        if self._spliced:
            if self._current is not None:
                self._current.keep(data)
        elif not self._linger_until and self._refusal is None:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        self._head_bytes += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except BadRequest as error:
            self._refuse(error.status, error.message)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, BadRequest):
                self._refuse(cause.status, cause.message)
            else:
                _log.error("request_failed", exc_info=cause)
                self._refuse(500, "The router could not handle this request; its log says why.")
        except httptools.HttpParserError:
            self._refuse(400, "The request is not valid HTTP.")
        else:
            if self._head_bytes > self.server.bounds.head_bytes_max and (
                self._in_head or (self._receiving is not None and self._receiving.head.chunked)
            ):
                self._refuse(431, self._head_too_large())

    def _head_too_large(self) -> str:
        return f"The request's head is larger than {self.server.bounds.head_bytes_max} bytes."

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        self.take_long_way()
        self.transport = None
        self.server.disconnected(self)
        for exchange in (self._current, *self._waiting):
            if exchange is not None and not exchange.finished:
                exchange.client_gone()

    def pause_writing(self) -> None:
        self.take_long_way()
        self.writable = False
        if self._current is not None:
            self._current.client_writable(writable=False)

    def resume_writing(self) -> None:
        self.take_long_way()
        self.writable = True
        if self._current is not None:
            self._current.client_writable(writable=True)

    # llhttp

    def on_message_begin(self) -> None:
        self._target, self._headers, self._trailers = b"", [], None
        self._in_head, self.quiet = True, False
        self._head_bytes = max(1, self._head_bytes if self._receiving is None else 1)

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._size = len(self._target)
        if self._size > self.server.bounds.head_bytes_max:
            raise BadRequest(431, self._head_too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        if not name:
            raise BadRequest(400, "A header has no name.")
        headers = self._headers
        if headers is None:
            headers = self._trailers = [] if self._trailers is None else self._trailers
        headers.append((name, value))
        self._size += len(name) + len(value) + 4
        if self._size > self.server.bounds.head_bytes_max:
            raise BadRequest(431, self._head_too_large())
        if len(headers) > limits.HEADERS_MAX:
            raise BadRequest(431, f"The request has more than {limits.HEADERS_MAX} headers.")

    def on_headers_complete(self) -> None:
        headers, parser = self._headers, self._parser
        if headers is None or parser is None:
            return
        self._headers, self._in_head = None, False
        self._head_bytes = self._size = 0
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise BadRequest(400, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        http10 = version == "1.0"
        fields = fields_of(headers, http10=http10, keep_alive=parser.should_keep_alive())
        head = Head(parser.get_method(), self._target, fields)
        head.http10 = http10
        if parser.should_upgrade():
            head.upgrade = head.get(b"upgrade").lower().strip()
        elif self._block and self.server.known.learn(self._block, fields):
            self._last = (self._block, fields, ())
        exchange = Exchange(self, head, request_ended=not (head.has_body or head.upgrade))
        self._receiving = exchange
        self._waiting.append(exchange)
        if len(self._waiting) > limits.PIPELINED_MAX:
            self.hold("pipeline")
        if not head.upgrade:
            self._next()

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0
        if self._receiving is not None:
            self._receiving.request_body(data)

    def on_message_complete(self) -> None:
        exchange = self._receiving
        self._head_bytes, self._head_since = 0, 0.0
        if exchange is not None and not exchange.head.upgrade:
            self._receiving = None
            exchange.request_end(self._trailers or [])
            if exchange.finished and exchange is self._current:
                self._advance()

    # Exchanges

    def _next(self) -> None:
        while self._current is None and self._waiting and self.transport is not None and not self._linger_until:
            self._current = self._waiting.pop(0)
            self.free("pipeline")
            self._current.check_and_start()
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
            exchange.keep(rest)
        self._spliced = True

    def exchange_finished(self, exchange: Exchange, *, close: bool) -> None:
        if exchange is not self._current:
            return
        if close or self._spliced:
            self._current = None
            self.close(linger=not exchange.request_ended)
        elif exchange.request_ended:
            self._advance()

    def _advance(self) -> None:
        self._current = None
        self.last_at = monotonic()
        if self._held:
            self._held -= {"upstream"}
            self.free("connecting")
        if self._waiting or self._refusal is not None:
            self._next()
        elif self._receiving is None and not self._in_head and not self._linger_until:
            self.quiet = True

    def splice(self, upstream: Upstream | None, server_id: str) -> None:
        """From now on bytes are bytes: what was needed to understand them is not kept for hours."""
        self._spliced = True
        self._pipe, self._pipe_server_id = upstream, server_id
        self._parser, self._target = None, b""
        self.forget()

    def _refuse(self, status: int, message: str) -> None:
        """A request that cannot be understood: answered, and the connection ends, because what follows cannot be
        trusted to be where it seems to be."""
        gone = self.transport is None or self.transport.is_closing()
        if gone or self._linger_until or self._refusal is not None:
            return
        self.quiet = False
        broken, self._receiving = self._receiving, None
        self._refused_head = Head(b"", self._target, fields_of(self._headers or [])) if broken is None else broken.head
        if broken is not None and broken is self._current:
            if broken.response_begun:
                self.server.refused(status)
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
        self.server.refused(status)
        if self._refused_head is not None:
            reply = self.server.gateway.replies.page(self._refused_head, status, message, close=True)
            if isinstance(reply, Reply):
                self.write(self.arrival.marked(reply.content))
        self.close(linger=True)

    # Bytes

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def hold(self, reason: str) -> None:
        """Stops reading until every reason is gone."""
        self._held |= {reason}
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def free(self, reason: str) -> None:
        self._held -= {reason}
        if not self._held and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def close(self, *, linger: bool = False) -> None:
        """Ends the connection once what was written is out. `linger`: what the client still sends is read and thrown
        away for a moment, because closing on unread bytes would reset the connection and lose the answer."""
        if self.transport is None or self._linger_until:
            return
        self.quiet = False
        if linger:
            self.lingering = True
            self._linger_until = monotonic() + limits.TICK_S * 2
            self._held = frozenset()
            self.transport.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
        else:
            self.transport.close()

    def close_websocket(self, *, patient: bool) -> None:
        """Ends a WebSocket by a frame that says why, if what its server has sent so far is whole frames. Into the midst
        of a frame nothing is put: `patient` leaves such a connection as it is, else it ends without a word."""
        exchange = self._current
        if exchange is None or exchange.frames is None or self._linger_until:
            return
        if exchange.frames.between:
            self.write(SERVICE_RESTART)
        elif patient:
            return
        self.close(linger=True)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    @property
    def spliced(self) -> bool:
        return self._spliced

    def tick(self, now: float) -> None:
        """Timeouts, once a second."""
        self.take_long_way()
        quiet_s = now - self.last_at
        if self.quiet and quiet_s > limits.REMEMBERED_S:
            self.forget()
        if self._linger_until:
            if now > self._linger_until and self.transport is not None:
                self.transport.close()
        elif self._spliced:
            return
        elif (
            self._refusal is None
            and self._in_head
            and quiet_s > 0
            and now - self._head_started(now) > self.server.bounds.head_timeout_s
        ):
            self._refuse(408, "The request's head did not come in time.")
        elif self.quiet and quiet_s > self.server.bounds.keepalive_timeout_s:
            self.close()
        elif self.quiet and self.server.draining:
            if now - max(self.last_at, self.server.draining_since) > limits.QUIET_DRAIN_S:
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
