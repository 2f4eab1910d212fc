"""Header lines of requests: each is taken apart once, and remembered by its bytes with what of it goes on to whom.

Browsers repeat themselves: of two requests of one page most lines are the same. What is remembered depends on nothing
but the line, so that it can never be out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, cast
from urllib.parse import unquote_to_bytes

import msgspec

from orrery_events.principal import SESSION_COOKIE, TOKEN_PREFIX

Header = tuple[bytes, bytes]
"""Name as sent, value."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110 §7.6.1 and what is treated like it."""
OURS_TO_SET: Final = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-request-id",
    }
)
"""Nobody but us tells an upstream where a request came from."""
OUR_PREFIX: Final = b"x-orrery-"
WRITTEN_ANEW: Final = frozenset({b"content-length", b"host"})
"""By the router, after it has checked them."""
VARYING: Final = frozenset(
    {
        b"cache-control",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"pragma",
        b"priority",
        b"purpose",
        b"range",
        b"referer",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"sec-fetch-user",
        b"sec-purpose",
        b"x-request-id",
        b"x-requested-with",
    }
)
"""Of two requests from one page these differ most; no decision of ours asks for them."""
PLATFORM_COOKIES: Final = frozenset({SESSION_COOKIE.encode(), b"orrery-position"})
TOKEN_BYTES: Final = TOKEN_PREFIX.encode()
TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context/#traceparent-header"""
NAME_BYTES_KNOWN: Final = 64
LINE_BYTES_KNOWN: Final = 2048
"""Longer ones are not remembered."""


class Name(msgspec.Struct, frozen=True, gc=False):
    """A header's name, taken apart."""

    lower: bytes
    canonical: bytes
    """As CGI and WSGI programs read it: to them `X_Real_IP` is `X-Real-IP`."""
    ours: bool
    """Nobody but us says it."""


def _name(name: bytes) -> Name:
    lower = name.lower()
    canonical = lower.replace(b"_", b"-")
    return Name(lower, canonical, canonical in OURS_TO_SET or canonical.startswith(OUR_PREFIX))


_known_name = lru_cache(maxsize=2048)(_name)


def name_of(name: bytes) -> Name:
    return _known_name(name) if len(name) <= NAME_BYTES_KNOWN else _name(name)


class Line(msgspec.Struct, frozen=True, gc=False):
    """One header line of a request."""

    name: Name
    value: bytes
    whole: bytes
    """As it came, with its line end."""
    to_server: bytes
    """What of it a user's server gets, with its line end: nothing that would let the server act for its visitor."""
    to_control_plane: bytes
    """What of it auth and api get: credentials stay, nobody's word about where a request came from does."""
    clean: bool
    """Its value holds no control characters that would mean something to somebody."""
    session: str | None
    """The session cookie in it; None: it names none."""
    varies: bool
    """It says something of one request, and nothing that we decide by."""


def _line(name: bytes, value: bytes) -> Line:
    known = name_of(name)
    ends_here = known.ours or known.lower in HOP_BY_HOP or known.lower in WRITTEN_ANEW
    whole = b"%b: %b\r\n" % (name, value)
    clean, varies = _CONTROL.search(value) is None, known.lower in VARYING
    if ends_here or (known.lower == b"traceparent" and not TRACEPARENT.fullmatch(value)):
        return Line(known, value, whole, b"", b"", clean, None, varies)
    harmless = _without_credentials(known.lower, value)
    to_server = whole if harmless == value else b"%b: %b\r\n" % (name, harmless) if harmless else b""
    session = session_in(value) if known.lower == b"cookie" else None
    return Line(known, value, whole, to_server, whole, clean, session, varies)


_CONTROL: Final = re.compile(rb"[\x00\r\n]")


def session_in(cookies: bytes) -> str | None:
    """The session cookie of a Cookie header's value."""
    wanted = SESSION_COOKIE.encode()
    if wanted in cookies:
        for pair in cookies.split(b";"):
            key, _, text = pair.strip().partition(b"=")
            if key == wanted:
                return text.decode("latin-1")
    return None


_known_line = lru_cache(maxsize=2048)(_line)


def line_of(name: bytes, value: bytes) -> Line:
    return _known_line(name, value) if len(name) + len(value) <= LINE_BYTES_KNOWN else _line(name, value)


def _plain_line(line: bytes) -> Line | None:
    found = _PLAIN.fullmatch(line)
    if found is None:
        return None
    name, value = found.groups()
    known = line_of(name, value)
    if known.name.lower in FRAMING or (known.name.lower == b"connection" and value.lower() != b"keep-alive"):
        return None
    return known


_PLAIN: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([!-~](?:[ -~]*[!-~])?)")
FRAMING: Final = frozenset(
    {
        b"content-length",
        b"expect",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""What says how a message is framed, or what becomes of its connection."""
_known_plain_line = lru_cache(maxsize=2048)(_plain_line)


def plain_lines_of(lines: list[bytes], size: int) -> list[Line] | None:
    """Lines as they come, without their ends, if each can be read in one way only: name, colon, space, and visible
    ASCII; and has no say in how the request is framed. llhttp would find the same names and values. None: let it look.
    `size`: of all together."""
    if size <= LINE_BYTES_KNOWN:
        found = list(map(_known_plain_line, lines))
    else:
        found = [_known_plain_line(line) if len(line) <= LINE_BYTES_KNOWN else _plain_line(line) for line in lines]
    return cast("list[Line]", found) if all(found) else None


def _without_credentials(lower: bytes, value: bytes) -> bytes:
    """What of a value may go on to a user's server; empty: nothing."""
    match lower:
        case b"cookie":
            return cookies_without(value, PLATFORM_COOKIES) if _may_hold_ours(value) else value
        case b"authorization" | b"x-xsrftoken":
            return b"" if TOKEN_BYTES in value else value
        case b"referer":
            return b"" if TOKEN_BYTES in unquote_to_bytes(value) else value
        case _:
            return value


def _may_hold_ours(cookies: bytes) -> bool:
    return any(name in cookies for name in PLATFORM_COOKIES)


def cookies_without(value: bytes, dropped: frozenset[bytes]) -> bytes:
    """A Cookie header's value without some cookies; empty if none is left."""
    kept = [pair for pair in value.split(b";") if pair.strip().partition(b"=")[0].strip() not in dropped]
    return b";".join(kept).strip()


def listed_of(values: Iterable[bytes]) -> frozenset[bytes]:
    """The names that `Connection` lists: they end here, too."""
    return frozenset(name.strip().lower() for value in values for name in value.split(b","))
