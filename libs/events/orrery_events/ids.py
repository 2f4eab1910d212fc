"""Opaque identifiers.

Everything that becomes part of a NATS subject or a file name is lower-case base32 without padding, so that no name a
person chose (which may hold `.`, `*`, `>` or `/`) ever gets there.
"""

from __future__ import annotations

import base64
import hashlib
import uuid

from uuid_utils import compat as uuid_compat

DERIVED_LENGTH = 26
"""Characters of a derived id: 130 bits of a SHA-256, far from any collision."""


def uuid7() -> uuid.UUID:
    """A time-ordered UUID (RFC 9562), for events and commands."""
    return uuid_compat.uuid7()


def new_id() -> str:
    """A fresh opaque id of 26 characters that sorts by creation time."""
    return _base32(uuid7().bytes)


def derived_id(*parts: str) -> str:
    """The same opaque id of 26 characters for the same parts, on every process.

    Two replicas that create the same thing at once thereby meet on one stream, where the expected version lets one
    win.
    """
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return _base32(digest)[:DERIVED_LENGTH]


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()
