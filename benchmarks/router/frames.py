"""The one WebSocket message of the benchmarks, as bytes."""

from __future__ import annotations

import base64
import hashlib
import re

PAYLOAD = b'{"header": {"msg_type": "status"}, "content": {"state": "idle"}}'
"""Of the size of a kernel's smallest messages."""
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

SENT = bytes([0x81, 0x80 | len(PAYLOAD)]) + b"\0\0\0\0" + PAYLOAD
"""A client's text frame. A mask of zeros is a mask."""
REPLY = bytes([0x81, len(PAYLOAD)]) + PAYLOAD
"""A server's."""
MESSAGE = len(SENT)


def accept_key(head: bytes) -> bytes:
    """What a server answers to the key in a request's head (RFC 6455, 4.2.2)."""
    key = re.search(rb"\r\nsec-websocket-key: *(\S+)", head, re.IGNORECASE)
    assert key, head
    return base64.b64encode(hashlib.sha1(key[1] + GUID).digest())  # noqa: S324 (the protocol's own)
