"""One connection to an upstream, and the pool of idle ones."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Protocol

import httptools

from orrery_router.passing import Header

from . import limits

Target = tuple[str, int]


class Answer(Protocol):
    """Who gets what an upstream says."""

    def response_started(self, status: int, reason: bytes, headers: list[Header], *, http10: bool) -> bool:
        """The head of a final response. True: it has no body, whatever its headers say."""
        ...

    def informational(self, status: int, reason: bytes, headers: list[Header]) -> None: ...
    def switched(self, reason: bytes, headers: list[Header], rest: bytes) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_ended(self) -> None: ...
    def upstream_failed(self, reason: str) -> None: ...
    def upstream_bytes(self, data: bytes) -> None: ...
    def upstream_closed(self) -> None: ...
    def upstream_writable(self, *, writable: bool) -> None: ...


class Upstream(asyncio.Protocol):
    """Speaks HTTP/1.1 to one upstream, one exchange at a time; strict parser, bytes handed on as they come."""

    def __init__(self, target: Target, pool: Pool) -> None:
        self.target = target
        self.idle_since = 0.0
        self.used = 0
        """Exchanges so far."""
        self.transport: asyncio.Transport | None = None
        self._pool = pool
        self._answer: Answer | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers: list[Header] = []
        self._reason = b""
        self._head_bytes = 0
        self._in_head = False
        self._spliced = False
        self._bodyless = False
        self._done = False
        self._started = False

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing() and self._answer is None

    def begin(self, answer: Answer) -> None:
        """The next exchange."""
        self._answer = answer
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._reason, self._head_bytes = [], b"", 0
        self._bodyless = self._done = self._started = False
        self._in_head = True
        self.used += 1

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def detach(self, *, reusable: bool) -> None:
        """The exchange is over for whoever had it."""
        self._answer = None
        self._parser = None
        if reusable and self.transport is not None and not self.transport.is_closing() and not self._spliced:
            self.transport.resume_reading()
            self._pool.release(self)
        else:
            self.close()

    def close(self) -> None:
        self._answer = None
        if self.transport is not None:
            self.transport.abort() if self._spliced is False and self._in_head else self.transport.close()

    def pause(self, *, paused: bool) -> None:
        """Back-pressure from the client."""
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
        answer = self._answer
        if answer is None:
            self.close()  # An idle upstream has nothing to say.
            return
        if self._spliced:
            answer.upstream_bytes(data)
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > limits.RESPONSE_HEAD_BYTES_MAX and self._headers and self._in_head:
                self._fail("its response head is too large")
                return
        parser = self._parser
        if parser is None:
            return
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._switch(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            if not self._done:
                self._fail("its response is not valid HTTP")
            else:
                self.close()
            return

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        self.transport = None
        self._pool.forget(self)
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if self._spliced:
            answer.upstream_closed()
        elif self._started and not self._done and self._until_close():
            answer.response_ended()
        elif not self._done:
            answer.upstream_failed("it closed the connection")

    def pause_writing(self) -> None:
        if self._answer is not None:
            self._answer.upstream_writable(writable=False)

    def resume_writing(self) -> None:
        if self._answer is not None:
            self._answer.upstream_writable(writable=True)

    # llhttp

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser, answer = self._parser, self._answer
        if parser is None or answer is None:
            return
        status, headers, reason = parser.get_status_code(), self._headers, self._reason
        self._headers, self._reason = [], b""
        if status == 101:
            self._switching = (reason, headers)
            return
        if 100 <= status < 200:
            answer.informational(status, reason, headers)
            return
        self._in_head = False
        self._started = True
        self._length_known = any(n.lower() in (b"content-length", b"transfer-encoding") for n, _ in headers)
        self._bodyless = answer.response_started(status, reason, headers, http10=parser.get_http_version() == "1.0")
        if self._bodyless and self._answer is not None:
            self._end()

    def on_body(self, data: bytes) -> None:
        if self._answer is not None and not self._done:
            self._answer.response_body(data)

    def on_message_complete(self) -> None:
        if self._started and not self._done:
            self._end()

    def _end(self) -> None:
        self._done = True
        if self._answer is not None:
            self._answer.response_ended()

    def _until_close(self) -> bool:
        """A body without a length ends with the connection (RFC 9112 §6.3)."""
        return not self._length_known

    def _switch(self, rest: bytes) -> None:
        answer = self._answer
        reason, headers = self._switching
        if answer is None:
            self.close()
            return
        self._spliced, self._in_head = True, False
        answer.switched(reason, headers, rest)

    def _fail(self, reason: str) -> None:
        answer, self._answer = self._answer, None
        self.close()
        if answer is not None:
            answer.upstream_failed(reason)

    _switching: tuple[bytes, list[Header]] = (b"", [])
    _length_known = True


class Pool:
    """Idle upstream connections by target, the most recently used one first."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Target, deque[Upstream]] = {}

    def take(self, target: Target, *, fresh: bool) -> Upstream | None:
        """An idle connection, or None. `fresh`: only one that was used a moment ago."""
        idle = self._idle.get(target)
        now = time.monotonic()
        while idle:
            upstream = idle.pop()
            if not upstream.usable:
                continue
            if fresh and now - upstream.idle_since > limits.FRESH_IDLE_S:
                upstream.close()
                continue
            return upstream
        return None

    async def connect(self, target: Target) -> Upstream:
        """A new connection. Raises OSError and TimeoutError."""
        async with asyncio.timeout(self._connect_timeout_s):
            _, upstream = await asyncio.get_running_loop().create_connection(
                lambda: Upstream(target, self), target[0], target[1]
            )
        return upstream

    def release(self, upstream: Upstream) -> None:
        idle = self._idle.setdefault(upstream.target, deque())
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
