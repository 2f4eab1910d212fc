"""Request heads: what llhttp collected, looked at once, and written anew for the upstream.

A browser sends the same header lines again and again, with another request line. `Fields` is what those lines say,
whatever the request line; it never changes once made, so that it can be remembered by its bytes (`KnownHeads`), and a
head that was seen before, byte by byte, needs no second look.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from orrery_router.lines import Header, Line, line_of, listed_of, plain_lines_of

from . import limits
from .remembered import Remembered

if TYPE_CHECKING:
    from orrery_router.domain import Path
    from orrery_router.plan import Leave

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})

UNNAMED_HOST: Final = b"localhost"
"""An HTTP/1.0 client may name no host; what goes on is HTTP/1.1 and must."""
LENGTH_DIGITS_MAX: Final = 18
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
        "_credentials", "chunked", "error", "has_length", "host", "host_name", "keep_alive", "leave", "length", "lines",
        "listed", "passed", "safe_to_know", "text", "to_server",
    )  # fmt: skip

    def __init__(self, lines: list[Line], *, http10: bool = False, keep_alive: bool = True) -> None:
        self.lines = lines
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
        self.to_server: tuple[bytes, bytes] | None = None
        """For a server whose secret comes by that header: the lines that it gets."""
        self._credentials: tuple[bytes, str] | None = None
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
        if False in [line.clean for line in self.lines]:
            raise BadRequest(400, "A header holds control characters.")

    def values_of(self, name: bytes) -> list[bytes]:
        """Of a header that may come more than once; `name` in lower case."""
        return [line.value for line in self.lines if line.name.lower == name]

    def _is_repeated(self, name: bytes) -> bool:
        return len(self.text) < len(self.lines) and len(self.values_of(name)) > 1

    def credentials(self) -> tuple[bytes, str]:
        """`Authorization`, and the session cookie's value; nothing where there is none."""
        if self._credentials is None:
            sessions = [line.session for line in self.lines if line.session is not None]
            self._credentials = (self.text.get(b"authorization", b""), sessions[0] if sessions else "")
        return self._credentials


def fields_of(headers: list[Header], *, http10: bool = False, keep_alive: bool = True) -> Fields:
    """From a parser's findings."""
    return Fields([line_of(name, value) for name, value in headers], http10=http10, keep_alive=keep_alive)


class Head:
    """One request's head."""

    __slots__ = ("fields", "host", "host_name", "http10", "method", "path", "target", "upgrade", "varying")

    def __init__(
        self, method: bytes, target: bytes, fields: Fields, path: Path | None = None, varying: Sequence[Line] = ()
    ) -> None:
        self.method, self.target, self.fields = method, target, fields
        self.path = path
        """Of the target, if it was looked at already."""
        self.host, self.host_name = fields.host, fields.host_name
        self.varying = varying
        """Lines that were set aside (`KnownHeads.read`): they go on after those of `fields`."""
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


class KnownHeads(Remembered[Fields]):
    """Fields by the bytes that they came in: from the end of the request line to the empty line, both line ends
    included."""

    def learn(self, key: bytes, value: Fields) -> bool:
        """Only for what the parser took for one whole head, and for what is whole without a body. False: it is not to
        be known."""
        return value.safe_to_know and super().learn(key, value)

    def read(self, block: bytes) -> tuple[Fields, list[Line]] | None:
        """A block that is not known, where every line is one that can be read in one way only (`plain_lines_of`) and
        the request is whole at their end: what its lines say, but for those that vary, and these. The others are known
        from now on. None: let llhttp look."""
        pieces = block[:-4].split(b"\r\n")
        if len(pieces) > limits.HEADERS_MAX or block[-4:] != b"\r\n\r\n":
            return None
        lines = plain_lines_of(pieces, len(block))
        if lines is None:
            return None
        varying = [line for line in lines if line.varies]
        if varying:
            lines = [line for line in lines if not line.varies]
            block = b"".join([line.whole for line in lines]) + b"\r\n"
            fields = self.find(block)
            if fields is not None:
                return fields, varying
        fields = Fields(lines)
        if not fields.safe_to_know:
            return None
        self.learn(block, fields)
        return fields, varying


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
