"""Request heads: collected by llhttp's callbacks, checked, written anew for the upstream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from orrery_router.passing import Header

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})


UNNAMED_HOST: Final = b"localhost"
"""An HTTP/1.0 client may name no host; what goes on is HTTP/1.1 and must."""


class BadRequest(Exception):
    """The request is refused with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Head:
    """One request's head."""

    __slots__ = ("chunked", "headers", "host", "http10", "keep_alive", "length", "method", "target", "upgrade")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: list[Header] = []
        self.host = b""
        self.http10 = False
        self.keep_alive = True
        self.chunked = False
        self.length = 0
        """Of the body; 0 with `chunked` unknown."""
        self.upgrade = b""
        """Lower-case protocol that the client wants to change to."""

    @property
    def has_body(self) -> bool:
        return self.chunked or self.length > 0

    def get(self, name: bytes) -> bytes:
        """The first value of a header (name in lower case), or nothing."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return b""

    def check(self) -> None:
        """What llhttp leaves to us (RFC 9112 §3.2, §6.3). Raises BadRequest."""
        hosts = [value for name, value in self.headers if name.lower() == b"host"]
        if len(hosts) > 1 or (not hosts and not self.http10):
            raise BadRequest(400, "A request names exactly one host.")
        self.host = hosts[0].strip() if hosts else b""
        if any(c in self.host for c in b"/\\@?# \t,"):
            raise BadRequest(400, "The Host header is not a host.")
        lengths = [value.strip() for name, value in self.headers if name.lower() == b"content-length"]
        codings = [value.strip().lower() for name, value in self.headers if name.lower() == b"transfer-encoding"]
        if codings:
            if codings != [b"chunked"] or lengths or self.http10:
                raise BadRequest(400, "The request's length is told in more than one way.")
            self.chunked = True
        if lengths:
            if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
                raise BadRequest(400, "The request's length is not one number.")
            self.length = int(lengths[0])
        self._absolute_form()
        if self.method == b"CONNECT":
            raise BadRequest(405, "This is not a forward proxy.")
        if any(b"\x00" in value or b"\r" in value or b"\n" in value for _, value in self.headers):
            raise BadRequest(400, "A header holds control characters.")

    def _absolute_form(self) -> None:
        """`GET http://host/path`: the authority replaces Host (RFC 9112 §3.2.2)."""
        lower = self.target[:8].lower()
        if lower.startswith((b"http://", b"https://")):
            rest = self.target.partition(b"://")[2]
            cut = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
            self.host, path = rest[:cut], rest[cut:]
            if b"@" in self.host or not self.host:
                raise BadRequest(400, "The request target is not usable.")
            self.target = path if path.startswith(b"/") else b"/" + path


def request_bytes(head: Head, target: bytes, headers: Iterable[Header], *, upgrade: bool) -> bytes:
    """The head as the upstream gets it. The framing is ours: `chunked` or the one length that was checked."""
    lines = [head.method + b" " + target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in headers if name.lower() not in (b"content-length", b"host")]
    lines.insert(1, b"Host: " + (head.host or UNNAMED_HOST))
    if upgrade:
        lines += [b"Connection: Upgrade", b"Upgrade: " + head.upgrade]
    elif head.chunked:
        lines.append(b"Transfer-Encoding: chunked")
    elif head.length or head.get(b"content-length"):
        lines.append(b"Content-Length: %d" % head.length)
    elif head.method in (b"POST", b"PUT", b"PATCH"):
        lines.append(b"Content-Length: 0")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def response_bytes(status: int, reason: bytes, headers: Iterable[Header]) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, reason)]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"
