"""Our reading of a message's headers is nats-py's, only quicker."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from orrery_events.quick_client import QuickClient

PIECES = st.sampled_from([b"ce-id", b": ", b":", b" ", b"\t", b"\r\n", b"\x1c", b"\xc3\xa9", b"\xff", b"a b", b"x"])


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=30).map(b"".join))
@example(b"ce-id: 1\r\nce-time:2026-11-21T09:00:00+00:00\r\nce-subject:\tcaf\xc3\xa9\r\n\r\n")
@example(b"a\x1c: 1\r\n\x1c: 2\r\na b: 3")
@example(b": no name\r\n")
def test_headers(raw: bytes) -> None:
    assert QuickClient._parse_header_lines(raw) == Client._parse_header_lines(raw)
