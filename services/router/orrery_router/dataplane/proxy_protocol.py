"""PROXY protocol, versions 1 and 2: what a proxy in front says about a connection before its first byte. Pure.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. Strict: a header is understood wholly or the
connection is refused, because whatever is guessed here becomes the address that people are known by. No byte behind the
header is ever touched: those belong to TLS or HTTP.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
V1_BEGIN: Final = b"PROXY "
V1_BYTES_MAX: Final = 107
V2_HEAD_BYTES: Final = 16
HEADER_BYTES_MAX: Final = 4096
"""Both versions; version 2 allows 64 KiB, which nobody needs for addresses and a few names."""

_V1 = re.compile(rb"PROXY (TCP4|TCP6) ([0-9a-fA-F.:]{2,39}) ([0-9a-fA-F.:]{2,39}) (\d{1,5}) (\d{1,5})\r\n")
_LOCAL, _PROXY = 0x20, 0x21
_ADDRESS_BYTES: Final = {0x0: 0, 0x1: 12, 0x2: 36, 0x3: 216}
"""By address family: unspecified, IPv4, IPv6, unix."""
_TLV_SSL = 0x20
_CLIENT_SSL = 0x01


class Malformed(ValueError):
    """Not a PROXY protocol header."""


class Source(NamedTuple):
    """Whom the connection is for."""

    address: str = ""
    """Empty: the proxy speaks for itself (LOCAL, UNKNOWN) or names no address; the connection's own address counts."""
    port: int = 0
    """That the client connected to; 0: not told."""
    tls: bool = False
    """The proxy says that the client came by TLS, which ended there."""


def parse(data: bytes) -> tuple[Source, int] | None:
    """The source and the header's length; None if the header goes on after `data`. Raises Malformed."""
    if data[:1] == b"P":
        return _parse_v1(data)
    if data[:12] == SIGNATURE[: len(data)]:
        return _parse_v2(data)
    raise Malformed("the connection does not begin with a PROXY protocol header")


def _parse_v1(data: bytes) -> tuple[Source, int] | None:
    if data[:6] != V1_BEGIN[: len(data)]:
        raise Malformed("the connection does not begin with a PROXY protocol header")
    end = data.find(b"\r\n", 0, V1_BYTES_MAX)
    if end < 0:
        if len(data) >= V1_BYTES_MAX or b"\n" in data:
            raise Malformed(f"its first line does not end within {V1_BYTES_MAX} bytes")
        return None
    line = data[: end + 2]
    if line == b"PROXY UNKNOWN\r\n" or line.startswith(b"PROXY UNKNOWN "):
        return Source(), len(line)
    match = _V1.fullmatch(line)
    if match is None:
        raise Malformed("its line is not `PROXY TCP4|TCP6 source destination port port`")
    family, *addresses = (part.decode() for part in match.groups())
    wanted = IPv4Address if family == "TCP4" else IPv6Address
    source, _destination = (_address(text, wanted) for text in addresses[:2])
    _source_port, port = (_port(text) for text in addresses[2:])
    return Source(source, port), len(line)


def _address(text: str, wanted: type[IPv4Address | IPv6Address]) -> str:
    try:
        return str(wanted(text))
    except ValueError:
        raise Malformed(f"{text!r} is not an address of the family that it names") from None


def _port(text: str) -> int:
    if int(text) > 65_535 or (text[0] == "0" and text != "0"):
        raise Malformed(f"{text!r} is not a port")
    return int(text)


def _parse_v2(data: bytes) -> tuple[Source, int] | None:
    if len(data) < V2_HEAD_BYTES:
        return None
    command, family, protocol = data[12], data[13] >> 4, data[13] & 0x0F
    size = V2_HEAD_BYTES + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise Malformed(f"command {command:#x} is none of version 2")
    if family not in _ADDRESS_BYTES or protocol > 2:
        raise Malformed(f"address family {data[13]:#x} is not known")
    if size > HEADER_BYTES_MAX:
        raise Malformed(f"its {size} bytes are more than {HEADER_BYTES_MAX}")
    if len(data) < size:
        return None
    if command == _LOCAL:
        return Source(), size
    if protocol == 2:
        raise Malformed("it is about datagrams, and this is a stream")
    body = data[V2_HEAD_BYTES:size]
    length = _ADDRESS_BYTES[family]
    if len(body) < length:
        raise Malformed("it is too short for its addresses")
    tls = _tls_of(body[length:])
    if family == 0x1:
        return Source(str(ip_address(body[0:4])), int.from_bytes(body[10:12], "big"), tls), size
    if family == 0x2:
        return Source(str(ip_address(body[0:16])), int.from_bytes(body[34:36], "big"), tls), size
    return Source(tls=tls), size


def _tls_of(values: bytes) -> bool:
    """True if one of the type-length-value triples says that the client came by TLS. Raises Malformed."""
    tls = False
    while values:
        if len(values) < 3:
            raise Malformed("its last value is cut off")
        kind, length = values[0], int.from_bytes(values[1:3], "big")
        value, values = values[3 : 3 + length], values[3 + length :]
        if len(value) < length:
            raise Malformed("its last value is cut off")
        if kind == _TLV_SSL:
            if length < 5:
                raise Malformed("what it says about TLS is cut off")
            tls = bool(value[0] & _CLIENT_SSL)
    return tls
