"""What the relay says once a second about the log's head, and what it adds to each message.

Both come from Postgres, never from JetStream: that is what turns a lost tail of the stream into something that a
consumer can see.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

HEADS_HEADER = "ce-orreryheads"
"""Category sequences of all categories as of the message's position: `auth=12,server=40`.

A filtered consumer cannot tell from its own category's number alone whether an earlier event of another category that
it follows was lost. With this it knows at each message that it has everything up to that position."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """Published on `subjects.HEAD` while the relay is healthy."""

    log_id: str
    """Of the log that the relay copies: NATS may be another's as well, and Postgres may have been replaced."""
    epoch: int
    position: int
    categories: dict[str, int]
    """Category to `category_seq` at `position`."""
    created: str
    """When the stream was created (RFC 3339): a new value means that every consumer of it is gone."""
    relayed: int
    """The stream's last sequence."""
    relay: str
    """Instance of the leading relay."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Heartbeat)


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    return _encoder.encode(heartbeat)


def decode_heartbeat(data: bytes) -> Heartbeat:
    """Raises msgspec.MsgspecError (a ValueError) for anything else."""
    return _decoder.decode(data)


def encode_heads(heads: Mapping[str, int]) -> str:
    return ",".join(f"{category}={seq}" for category, seq in sorted(heads.items()))


def decode_heads(text: str) -> dict[str, int]:
    """Raises ValueError."""
    heads = {}
    for pair in text.split(","):
        category, separator, seq = pair.partition("=")
        if not separator:
            raise ValueError(f"{HEADS_HEADER}: {pair!r} is not category=sequence")
        heads[category] = int(seq)
    return heads
