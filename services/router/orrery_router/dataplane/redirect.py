"""The listener that only says: come again, by HTTPS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import httptools

from orrery_router.lines import Header
from orrery_router.replies import Reply
from orrery_router.target import split_authority
from orrery_runtime.config import Settings
from orrery_runtime.errors import ConfigError

from . import limits
from .addresses import Place
from .head import BadRequest, Head, fields_of, response_bytes

if TYPE_CHECKING:
    from .server import DataPlane

HTTPS_PORT: Final = 443


def https_port(settings: Settings, places: Sequence[Place]) -> int:
    """Where to redirect to. `places`: what this router listens on. Raises ConfigError if nobody speaks HTTPS."""
    scheme, _, rest = settings.public_url.partition("://")
    if settings.redirect_to_port:
        return settings.redirect_to_port
    if scheme == "https":
        return split_authority(rest.partition("/")[0])[1] or HTTPS_PORT
    for place in places:
        if place.address.tls:
            return place.port
    raise ConfigError("redirect_port is set, and nothing speaks HTTPS: set tls_cert_files, or public_url to https://…")


class Redirector(asyncio.Protocol):
    """One connection: one request, one redirect, the end."""

    spliced = False
    quiet = False
    """An answer is always under way: it takes no longer than the request's head."""

    def __init__(self, plane: DataPlane, port: int) -> None:
        """`port`: where HTTPS is spoken."""
        self._plane, self._port = plane, port
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: list[Header] = []
        self._bytes = 0
        self._since = time.monotonic()
        self._answered_at = 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if not self._plane.connected(self):
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._plane.disconnected(self)

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        if self._answered_at:
            return
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._answered_at:
                self._refuse(error.__context__)
        else:
            if not self._answered_at and self._bytes > self._plane.bounds.head_bytes_max:
                self._refuse(BadRequest(431, "The request's head is too large."))

    # llhttp

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > self._plane.bounds.head_bytes_max:
            raise BadRequest(431, "The request's head is too large.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if len(self._headers) > limits.HEADERS_MAX:
            raise BadRequest(431, f"The request has more than {limits.HEADERS_MAX} headers.")

    def on_headers_complete(self) -> None:
        if self._answered_at:
            return
        head = self._head(self._parser.get_method(), http10=self._parser.get_http_version() == "1.0")
        head.check()
        if not head.host or not head.target.startswith(b"/"):
            raise BadRequest(400, "The request names no host or no path.")
        plain = head.method in (b"GET", b"HEAD")
        status, reason = (301, b"Moved Permanently") if plain else (308, b"Permanent Redirect")
        location = b"https://" + with_port(head.host, self._port) + head.target
        self._answer(response_bytes(status, reason, [(b"Location", location), *_ENDING]))

    def _head(self, method: bytes = b"", *, http10: bool = False) -> Head:
        return Head(method, self._target, fields_of(self._headers, http10=http10))

    # The end

    def _refuse(self, cause: BaseException | None) -> None:
        error = cause if isinstance(cause, BadRequest) else BadRequest(400, "The request is not valid HTTP.")
        self._plane.refused(error.status)
        page = self._plane.gateway.replies.page(self._head(), error.status, error.message, close=True)
        self._answer(page.content if isinstance(page, Reply) else b"")

    def _answer(self, content: bytes) -> None:
        """What still comes is thrown away for a moment: closing on unread bytes could lose the answer."""
        self._answered_at = time.monotonic()
        if self._transport is not None:
            self._transport.write(content)
            if self._transport.can_write_eof():
                self._transport.write_eof()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def tick(self, now: float) -> None:
        bounds = self._plane.bounds
        if self._answered_at:
            if now - self._answered_at > limits.TICK_S * 2:
                self.close()
        elif now - self._since > bounds.head_timeout_s:
            self.close()


_ENDING: Final = [(b"Content-Length", b"0"), (b"Connection", b"close")]


def with_port(host: bytes, port: int) -> bytes:
    """`Host` as the client sent it, with another port; none where it is the usual one."""
    end = host.find(b"]") + 1 if host.startswith(b"[") else host.find(b":")
    name = host if end < 0 else host[:end]
    return name if port == HTTPS_PORT else b"%b:%d" % (name, port)
