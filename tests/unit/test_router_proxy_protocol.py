"""PROXY protocol headers: which are taken, as what, and that nothing behind them is touched."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery_router.dataplane.proxy_protocol import HEADER_BYTES_MAX, SIGNATURE, Malformed, Source, parse

V4 = socket.inet_aton("198.51.100.7") + socket.inet_aton("10.0.0.1") + (51000).to_bytes(2, "big") + b"\x01\xbb"
V6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "::1")
    + (51000).to_bytes(2, "big")
    + b"\x01\xbb"
)
SSL = b"\x20\x00\x05\x01\x00\x00\x00\x00"
"""The client came by TLS and showed no certificate."""


def v2(family: int, body: bytes, *, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(body).to_bytes(2, "big") + body


GOOD: list[tuple[bytes, Source]] = [
    (b"PROXY TCP4 198.51.100.7 10.0.0.1 51000 443\r\n", Source("198.51.100.7", 443)),
    (b"PROXY TCP6 2001:db8::7 ::1 51000 443\r\n", Source("2001:db8::7", 443)),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Source("255.255.255.255", 65535)),
    (b"PROXY UNKNOWN\r\n", Source()),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", Source()),
    (v2(0x11, V4), Source("198.51.100.7", 443)),
    (v2(0x21, V6), Source("2001:db8::7", 443)),
    (v2(0x11, V4 + SSL), Source("198.51.100.7", 443, tls=True)),
    (v2(0x11, V4 + b"\x01\x00\x02h2" + b"\x04\x00\x00"), Source("198.51.100.7", 443)),
    (v2(0x31, bytes(216)), Source()),
    (v2(0x00, b""), Source()),
    (v2(0x00, b"", command=0x20), Source()),
    (v2(0x11, V4, command=0x20), Source()),
    (v2(0x00, b"what is said of nobody", command=0x20), Source()),
]
BAD = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"PROXI",
    b"proxy TCP4",
    b"PROXY\r\n",
    b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
    b"PROXY TCP4 ::1 ::2 1 2\r\n",
    b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n",
    b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY UNKNOWNX\r\n",
    b"PROXY " + b"x" * 101,
    b"PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY UNKNOWN " + b"x" * 93,
    v2(0x11, V4, command=0x11),
    v2(0x11, V4, command=0x22),
    v2(0x41, V4),
    v2(0x13, V4),
    v2(0x12, V4),
    v2(0x11, V4[:-1]),
    v2(0x21, V4),
    v2(0x11, V4 + b"\x20\x00"),
    v2(0x11, V4 + b"\x20\x00\x05\x01"),
    v2(0x11, V4 + b"\x20\x00\x01\x01"),
    SIGNATURE + b"\x21\x11" + (HEADER_BYTES_MAX).to_bytes(2, "big"),
    SIGNATURE[:5] + b"x",
]


@pytest.mark.parametrize(("header", "source"), GOOD)
@pytest.mark.parametrize("rest", [b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01"])
def test_a_header_is_taken_and_what_follows_is_left(header: bytes, source: Source, rest: bytes) -> None:
    assert parse(header + rest) == (source, len(header))


@pytest.mark.parametrize("header", [header for header, _ in GOOD])
def test_half_a_header_is_waited_for(header: bytes) -> None:
    assert [parse(header[:size]) for size in range(1, len(header))] == [None] * (len(header) - 1)


@pytest.mark.parametrize("data", BAD)
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse(data)


@settings(max_examples=500)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda rest: b"PROXY " + rest),
        st.binary(max_size=300).map(lambda rest: SIGNATURE + rest),
        st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=250)).map(
            lambda parts: v2(parts[1], parts[2], command=parts[0])
        ),
    )
)
def test_it_reads_no_further_than_the_header_whatever_comes(data: bytes) -> None:
    """What is `None` is certainly all of the header: the reader may take it off the socket."""
    try:
        found = parse(data) if data else None
    except Malformed:
        return
    if found is None:
        assert len(data) < HEADER_BYTES_MAX
    else:
        assert 0 < found[1] <= len(data)
        assert parse(data[: found[1]]) == found
