"""Request heads: what llhttp collected, looked at once, and written anew for the upstream.

A browser sends the same header lines again and again, with another request line. `Fields` is what those lines say,
whatever the request line; it never changes once made, so that it can be remembered by its bytes (`KnownHeads`), and a
head that was seen before, byte by byte, needs no second look.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from orrery_events.principal import SESSION_COOKIE
from orrery_router.lines import Header, line_of, listed_of

if TYPE_CHECKING:
    from orrery_router.domain import Path
    from orrery_router.plan import Leave

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})

UNNAMED_HOST: Final = b"localhost"
"""An HTTP/1.0 client may name no host; what goes on is HTTP/1.1 and must."""
LENGTH_DIGITS_MAX: Final = 18
_CONTROL: Final = re.compile(rb"[\x00\r\n]")
HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
"""RFC 3986 §3.2.2 without what no name of a host needs: it goes on to upstreams and into their pages."""


class BadRequest(Exception):
    """The request is refused with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Fields:
    """The header lines of a request, taken apart. Shared by all requests that send the same bytes."""

    __slots__ = (
        "chunked", "error", "has_length", "host", "host_name", "keep_alive", "leave", "length", "lines", "listed",
        "passed", "safe_to_know", "text",
    )  # fmt: skip

    def __init__(self, headers: list[Header], *, http10: bool = False, keep_alive: bool = True) -> None:
        self.lines = [line_of(name, value) for name, value in headers]
        self.keep_alive = keep_alive
        self.error: BadRequest | None = None
        """What is wrong with them; the request is refused with it in its turn."""
        self.host = b""
        self.host_name = ""
        """Without its port, in lower case."""
        self.chunked = False
        self.length = 0
        """Of the body; 0 with `chunked` unknown."""
        self.has_length = False
        self.leave: Leave | None = None
        """The last leave to pass that a gateway gave them."""
        self.passed: tuple[str, bytes] | None = None
        """Where they came from and what of them went on, if that follows from nothing else (see `chp.gateway`)."""
        self.text = {line.name.lower: line.value for line in reversed(self.lines)}
        """First value of every header, by name in lower case."""
        self.listed: frozenset[bytes] = frozenset()
        """Names that end here because `Connection` lists them."""
        if b"connection" in self.text:
            self.listed = listed_of(self.values_of(b"connection"))
        try:
            self._check(http10=http10)
        except BadRequest as error:
            self.error = error
        self.safe_to_know = self.error is None and not (
            http10 or self.chunked or self.has_length or b"upgrade" in self.text or b"expect" in self.text
        )
        """True if a request with these lines is whole at their end."""

    def _check(self, *, http10: bool) -> None:
        """What llhttp leaves to us (RFC 9112 §3.2, §6.3). Raises BadRequest."""
        text = self.text
        host = text.get(b"host")
        if self._is_repeated(b"host") or (host is None and not http10):
            raise BadRequest(400, "A request names exactly one host.")
        self.host = host.strip() if host else b""
        if HOST.fullmatch(self.host) is None:
            raise BadRequest(400, "The Host header is not a host.")
        self.host_name = host_name(self.host)
        length, coding = text.get(b"content-length"), text.get(b"transfer-encoding")
        if coding is not None:
            told_twice = length is not None or self._is_repeated(b"transfer-encoding")
            if told_twice or http10 or coding.strip().lower() != b"chunked":
                raise BadRequest(400, "The request's length is told in more than one way.")
            self.chunked = True
        if length is not None:
            digits = length.strip()
            if self._is_repeated(b"content-length") or not digits.isdigit() or len(digits) > LENGTH_DIGITS_MAX:
                raise BadRequest(400, "The request's length is not one number.")
            self.length, self.has_length = int(digits), True
        for line in self.lines:
            if _CONTROL.search(line.value) is not None:
                raise BadRequest(400, "A header holds control characters.")

    def values_of(self, name: bytes) -> list[bytes]:
        """Of a header that may come more than once; `name` in lower case."""
        return [line.value for line in self.lines if line.name.lower == name]

    def _is_repeated(self, name: bytes) -> bool:
        return len(self.text) < len(self.lines) and len(self.values_of(name)) > 1

    def session_cookie(self) -> str:
        """The session cookie's value, or nothing."""
        wanted = SESSION_COOKIE.encode()
        for value in self.values_of(b"cookie") if b"cookie" in self.text else ():
            if wanted in value:
                for pair in value.split(b";"):
                    key, _, text = pair.strip().partition(b"=")
                    if key == wanted:
                        return text.decode("latin-1")
        return ""


class Head:
    """One request's head."""

    __slots__ = ("fields", "host", "host_name", "http10", "method", "path", "target", "upgrade")

    def __init__(self, method: bytes, target: bytes, fields: Fields, path: Path | None = None) -> None:
        self.method, self.target, self.fields = method, target, fields
        self.path = path
        """Of the target, if it was looked at already."""
        self.host, self.host_name = fields.host, fields.host_name
        self.http10 = False
        self.upgrade = b""
        """Lower-case protocol that the client wants to change to."""

    @property
    def chunked(self) -> bool:
        return self.fields.chunked

    @property
    def length(self) -> int:
        return self.fields.length

    @property
    def keep_alive(self) -> bool:
        return self.fields.keep_alive

    @property
    def is_last(self) -> bool:
        """True if the connection cannot take another request after this one."""
        return not self.fields.keep_alive or self.http10 or bool(self.upgrade)

    @property
    def has_body(self) -> bool:
        return self.fields.chunked or self.fields.length > 0

    def forget(self) -> None:
        """Keeps what a WebSocket's hours may still need."""
        self.fields, self.target, self.path = NO_FIELDS, b"", None

    def get(self, name: bytes) -> bytes:
        """The first value of a header (name in lower case), or nothing."""
        return self.fields.text.get(name, b"")

    def check(self) -> None:
        """Raises BadRequest for what cannot be forwarded as it is."""
        if self.fields.error is not None:
            raise self.fields.error
        if self.target[:1] != b"/":
            self._absolute_form()
        if self.method == b"CONNECT":
            raise BadRequest(405, "This is not a forward proxy.")

    def _absolute_form(self) -> None:
        """`GET http://host/path`: the authority replaces Host (RFC 9112 §3.2.2)."""
        if not self.target[:8].lower().startswith((b"http://", b"https://")):
            return
        rest = self.target.partition(b"://")[2]
        cut = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
        self.host, path = rest[:cut], rest[cut:]
        if not self.host or HOST.fullmatch(self.host) is None:
            raise BadRequest(400, "The request target is not usable.")
        self.host_name = host_name(self.host)
        self.target = path if path.startswith(b"/") else b"/" + path


class KnownHeads:
    """Fields by the bytes that they came in. Two generations: when the young one is full the old one is forgotten."""

    BLOCK_BYTES_MAX: Final = 8 * 1024
    GENERATION_MAX: Final = 512

    def __init__(self) -> None:
        self._young: dict[bytes, Fields] = {}
        self._old: dict[bytes, Fields] = {}

    def find(self, block: bytes) -> Fields | None:
        """`block`: from the end of the request line to the empty line, both line ends included."""
        fields = self._young.get(block)
        if fields is None:
            fields = self._old.get(block)
            if fields is not None:
                self.learn(block, fields)
        return fields

    def learn(self, block: bytes, fields: Fields) -> bool:
        """Only for what the parser took for one whole head, and for what is whole without a body. False: it is not to
        be known."""
        if not fields.safe_to_know or len(block) > self.BLOCK_BYTES_MAX:
            return False
        if len(self._young) >= self.GENERATION_MAX:
            self._old, self._young = self._young, {}
        self._young[block] = fields
        return True


def host_name(host: bytes) -> str:
    """The Host header without its port, in lower case."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text.partition("]")[0] + "]"
    return text.partition(":")[0]


def framing(head: Head) -> bytes:
    """The lines that say where the request ends, and the empty one: `chunked` or the one length that was checked."""
    if head.upgrade:
        return b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n\r\n"
    fields = head.fields
    if fields.chunked:
        return b"Transfer-Encoding: chunked\r\n\r\n"
    if fields.has_length:
        return b"Content-Length: %d\r\n\r\n" % fields.length
    return b"Content-Length: 0\r\n\r\n" if head.method in (b"POST", b"PUT", b"PATCH") else b"\r\n"


def lines_of(headers: list[Header]) -> bytes:
    """Headers as they are written, each with its line end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def response_bytes(status: int, reason: bytes, headers: list[Header]) -> bytes:
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, lines_of(headers))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: list[Header]) -> bytes:
    return b"0\r\n%b\r\n" % lines_of(trailers)


NO_FIELDS: Final = Fields([], http10=True)
