"""One connection to an upstream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

import httptools

from orrery_router.lines import Header
from orrery_router.target import Target

from . import limits

if TYPE_CHECKING:
    from .shortway import ShortWay

END_OF_HEAD: Final = b"\r\n\r\n"
UNTIL_CLOSE: Final = -1
EXCESS: Final = -2
"""None, and more came than was announced: whatever it is, it is no answer to anything."""
INVALID: Final = "its response is not valid HTTP"
TOO_LARGE: Final = "its response head is too large"
STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5])[0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
"""llhttp lets a reason hold anything, and a status be any number (RFC 9112 §4, RFC 9110 §15)."""
CODING: Final = re.compile(rb"\ntransfer-encoding:[ \t]*([^\r]*)", re.IGNORECASE)


class Answer(Protocol):
    """Who gets what an upstream says."""

    def response_started(self, status: int, head: bytes, body: bytes, *, chunked: bool) -> int:
        """The head of a final response as it came (without its empty line), and what came of the body with it.
        Returns how many bytes of the body are still to come: 0 none, UNTIL_CLOSE, EXCESS. `chunked`: the body comes by
        `response_body`, its chunks taken apart."""
        ...

    def informational(self, head: bytes) -> None: ...
    def switched(self, head: bytes, rest: bytes) -> bool:
        """101. False: nobody asked for it."""
        ...

    def response_body(self, data: bytes) -> None: ...
    def response_ended(self, trailers: list[Header]) -> None: ...
    def upstream_failed(self, reason: str, *, invalid: bool) -> None:
        """`invalid`: it did answer, and that cannot be passed on."""
        ...

    def upstream_bytes(self, data: bytes) -> None: ...
    def upstream_closed(self) -> None: ...
    def upstream_writable(self, *, writable: bool) -> None: ...


class Upstream(asyncio.Protocol):
    """Speaks HTTP/1.1 to one upstream, one exchange at a time.

    llhttp sees every byte of a response before anybody else does. A body with a length is handed on as it came; chunks
    are taken apart and made anew (`_Chunks`), because bytes after the last of them could otherwise pass for the next
    response.
    """

    def __init__(
        self, target: Target, release: Callable[[Upstream, float], None], forget: Callable[[Upstream], None]
    ) -> None:
        """`release`: it is idle, since these monotonic seconds."""
        self.target = target
        self.shortcut: ShortWay | None = None
        """Whose request it has instead of an exchange's."""
        self.idle_since = 0.0
        self.tls_epoch = 0
        """Which of the router's certificates it was made with (`Pool`)."""
        self.used = 0
        """Exchanges so far."""
        self.transport: asyncio.Transport | None = None
        self._release, self._forget = release, forget
        self._answer: Answer | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: _Chunks | None = None
        self._buffer = b""
        self._in_head = False
        self._left = 0
        """Bytes of the body still to come, or UNTIL_CLOSE."""
        self._interim = 0
        self._reusable = False
        self._paused = False
        self._spliced = False

    @property
    def usable(self) -> bool:
        transport = self.transport
        return transport is not None and not transport.is_closing()

    @property
    def reusable(self) -> bool:
        """The response is over as far as has been seen, and another may follow."""
        return self._reusable

    def begin(self, answer: Answer) -> None:
        """The next exchange."""
        self.shortcut = None
        self._answer = answer
        self._in_head = True
        self._interim = self._left = 0
        self._reusable = False
        self.used += 1

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def detach(self, *, reusable: bool) -> None:
        """The exchange is over for whoever had it."""
        self._answer = self._chunks = None
        if not reusable or not self._reusable or not self.usable:
            self.close()
            return
        if self._paused:
            self.pause(paused=False)
        self._release(self, monotonic())

    def close(self) -> None:
        self._answer = None
        if self.transport is not None:
            self.transport.abort() if self._in_head and not self._spliced else self.transport.close()

    def pause(self, *, paused: bool) -> None:
        """Back-pressure from the client."""
        self._paused = paused
        if self.transport is not None and not self.transport.is_closing():
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        assert self.transport is not None  # noqa: S101 (asyncio's own promise)
        self.transport.set_write_buffer_limits(high=limits.WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.shortcut is not None:
            self.shortcut.answered(self, data)
        elif self._answer is None:
            self.close()  # An idle upstream has nothing to say.
        elif self._spliced:
            self._answer.upstream_bytes(data)
        elif self._in_head:
            end = data.find(END_OF_HEAD)
            line = STATUS_LINE.match(data)
            if self._buffer or line is None or line[1] == b"1" or not 0 < end <= limits.RESPONSE_HEAD_BYTES_MAX:
                self._head_bytes(self._buffer + data)
            else:
                self._final(data, end)
        elif self._chunks is not None:
            self._chunks.feed(data)
        else:
            self._body_bytes(self._answer, data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        self.transport = None
        self._forget(self)
        if self.shortcut is not None:
            self.shortcut.take_long_way()
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if self._spliced:
            answer.upstream_closed()
        elif not self._in_head and self._left == UNTIL_CLOSE:
            answer.response_ended([])
        else:
            answer.upstream_failed("it closed the connection", invalid=False)

    def pause_writing(self) -> None:
        if self.shortcut is not None:
            self.shortcut.take_long_way()
        if self._answer is not None:
            self._answer.upstream_writable(writable=False)

    def resume_writing(self) -> None:
        if self.shortcut is not None:
            self.shortcut.take_long_way()
        if self._answer is not None:
            self._answer.upstream_writable(writable=True)

    # llhttp, for responses that are not chunked

    def on_message_complete(self) -> None:
        self._reusable = self._parser.should_keep_alive()

    # Heads

    def _head_bytes(self, data: bytes) -> None:
        """What came since the exchange, or the last interim response, began."""
        while data:
            end = data.find(END_OF_HEAD)
            if len(data if end < 0 else data[:end]) > limits.RESPONSE_HEAD_BYTES_MAX:
                self.fail(TOO_LARGE)
                return
            if end < 0:
                if not data.startswith(b"HTTP/1."[: len(data)]) or data.count(b"\n") != data.count(b"\r\n"):
                    self.fail(INVALID)
                    return
                break
            line = STATUS_LINE.match(data)
            if line is None:
                self.fail(INVALID)
                return
            if line[1] != b"1":
                self._buffer = b""
                self._final(data, end)
                return
            rest = data[end + 4 :]
            if not self._interim_response(data[:end], rest):
                return
            data = rest
        self._buffer = data

    def _interim_response(self, head: bytes, rest: bytes) -> bool:
        """A 1xx; True: another response follows."""
        self._interim += 1
        answer = self._answer
        if answer is None or self._interim > limits.INTERIM_RESPONSES_MAX:
            self.fail("it sends interim responses without end")
            return False
        switching = False
        try:
            self._parser.feed_data(head + END_OF_HEAD)
        except httptools.HttpParserUpgrade:
            switching = True
        except httptools.HttpParserError:
            self.fail(INVALID)
            return False
        if self._parser.get_status_code() != 101:
            answer.informational(head)
            return self._answer is answer
        self._buffer = b""
        if switching and answer.switched(head, rest):
            self._spliced, self._in_head = True, False
        else:
            self.fail("it changed the protocol without being asked to")
        return False

    def _final(self, data: bytes, end: int) -> None:
        answer, head = self._answer, data[:end]
        if answer is None:
            return
        codings = CODING.findall(head)
        if codings:
            if len(codings) > 1 or codings[0].strip().lower() != b"chunked":
                self.fail(INVALID)
                return
            self._chunks = _Chunks(self, answer, head)
            self._chunks.feed(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._reusable = False
            if not _is_head(head):
                self.fail(INVALID)
                return
        self._in_head = False
        left = self._left = answer.response_started(int(head[9:12]), head, data[end + 4 :], chunked=False)
        if left == EXCESS:
            self._reusable = False
            left = 0
        if left == 0 and self._answer is answer:
            answer.response_ended([])

    def _body_bytes(self, answer: Answer, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._reusable = False
        if self._left == UNTIL_CLOSE:
            answer.response_body(data)
            return
        if len(data) > self._left:
            self._reusable = False
            data = data[: self._left]
        self._left -= len(data)
        answer.response_body(data)
        if self._left == 0 and self._answer is answer:
            answer.response_ended([])

    def chunks_begun(self, answer: Answer, status: int, head: bytes) -> None:
        """For `_Chunks`: the head was whole."""
        self._in_head = False
        self._left = 1
        if answer.response_started(status, head, b"", chunked=True) == 0 and self._answer is answer:
            answer.response_ended([])

    def chunks_ended(self, trailers: list[Header], *, reusable: bool) -> None:
        """For `_Chunks`: the last one was whole."""
        self._reusable = reusable
        if self._answer is not None:
            self._answer.response_ended(trailers)

    def fail(self, reason: str) -> None:
        answer, self._answer = self._answer, None
        self._chunks = None
        self.close()
        if answer is not None:
            answer.upstream_failed(reason, invalid=True)


def _is_head(head: bytes) -> bool:
    """True if a head is valid, whatever came after it."""
    try:
        httptools.HttpResponseParser(None).feed_data(head + END_OF_HEAD)
    except httptools.HttpParserError:
        return False
    return True


class _Chunks:
    """One chunked response: its pieces without their framing, and its trailers."""

    def __init__(self, upstream: Upstream, answer: Answer, head: bytes) -> None:
        self._upstream, self._answer, self._head = upstream, answer, head
        self._parser = httptools.HttpResponseParser(self)
        self._trailers: list[Header] = []
        self._trailer_bytes = 0
        self._unread_bytes = 0
        """What came since the last byte of the body: a size line, trailers."""
        self._in_head = True
        self._done = self._keep_alive = self._too_much = False

    def feed(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._done:
                self._upstream.fail(TOO_LARGE if self._too_much else INVALID)
                return
            self._too_much = True
        if self._done:
            self._upstream.chunks_ended(self._trailers, reusable=self._keep_alive and not self._too_much)
        elif self._unread_bytes > limits.RESPONSE_HEAD_BYTES_MAX:
            self._upstream.fail(TOO_LARGE)

    # llhttp

    def on_message_begin(self) -> None:
        if self._done:
            self._too_much = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head or self._done:
            return
        self._trailer_bytes += len(name) + len(value)
        if self._trailer_bytes > limits.TRAILER_BYTES_MAX:
            self._too_much = True
            raise ValueError(TOO_LARGE)
        self._trailers.append((name, value))

    def on_headers_complete(self) -> None:
        if not self._done and self._in_head:
            self._in_head = False
            self._upstream.chunks_begun(self._answer, self._parser.get_status_code(), self._head)

    def on_body(self, data: bytes) -> None:
        self._unread_bytes = 0
        if not self._done:
            self._answer.response_body(data)

    def on_message_complete(self) -> None:
        if not self._done:
            self._done, self._keep_alive = True, self._parser.should_keep_alive()
