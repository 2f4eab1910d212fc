"""An event as it stands in the log, and its form on the bus.

On the bus an event is a CloudEvents 1.0 message in binary mode: attributes in `ce-*` headers, the stored bytes as the
body. Header values outside U+0021..7E are percent-encoded (CloudEvents NATS binding §3.1.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from urllib.parse import quote, unquote

import msgspec

from .registry import Event, decode

SEQUENCE_DIGITS = 20
"""`ce-sequence` compares as text (CloudEvents sequence extension), so it is zero-padded."""


class Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who and what led to an event. Never a secret, never personal data."""

    actor: str = ""
    """User id, or `service:<name>`."""
    producer: str = ""
    """Instance that appended it."""
    correlation_id: str = ""
    causation_id: str = ""
    """Event id of the cause, if an event was the cause."""
    traceparent: str = ""
    """W3C trace context of the append (the creation context)."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the log."""

    position: int
    category: str
    category_seq: int
    stream_id: str
    stream_version: int
    event_id: str
    type: str
    schema_version: int
    data: bytes
    meta: Meta
    recorded_at: float
    """Unix seconds."""
    epoch: int

    def event(self) -> Event:
        """The typed event. Raises UnknownEventType."""
        return decode(self.type, self.schema_version, self.data)


def to_headers(r: Recorded) -> dict[str, str]:
    """The CloudEvents headers of a relayed event."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": r.event_id,
        "ce-source": "/orrery/" + (quote(r.meta.producer, safe="/-._~") or "unknown"),
        "ce-type": f"orrery.{r.type}.v{r.schema_version}",
        "ce-time": datetime.fromtimestamp(r.recorded_at, timezone.utc).isoformat(timespec="microseconds"),
        "ce-subject": quote(r.stream_id, safe="-._~"),
        "ce-sequence": str(r.position).zfill(SEQUENCE_DIGITS),
        "ce-orrerycatseq": str(r.category_seq),
        "ce-orreryver": str(r.stream_version),
        "ce-orreryepoch": str(r.epoch),
        "content-type": "application/json",
    }
    if r.meta.traceparent:
        headers["traceparent"] = r.meta.traceparent
    if r.meta.actor:
        headers["ce-authid"] = quote(r.meta.actor, safe="-._~:")
    if r.meta.correlation_id:
        headers["ce-correlationid"] = quote(r.meta.correlation_id, safe="-._~")
    if r.meta.causation_id:
        headers["ce-causationid"] = quote(r.meta.causation_id, safe="-._~")
    return headers


def from_message(headers: Mapping[str, str], data: bytes) -> Recorded:
    """The inverse of `to_headers`. Raises KeyError or ValueError for a message that the relay did not write."""
    family, _, version = headers["ce-type"].removeprefix("orrery.").rpartition(".v")
    return Recorded(
        position=int(headers["ce-sequence"]),
        category=family.partition(".")[0],
        category_seq=int(headers["ce-orrerycatseq"]),
        stream_id=unquote(headers["ce-subject"]),
        stream_version=int(headers["ce-orreryver"]),
        event_id=headers["ce-id"],
        type=family,
        schema_version=int(version),
        data=data,
        meta=Meta(
            actor=unquote(headers.get("ce-authid", "")),
            producer=unquote(headers["ce-source"].removeprefix("/orrery/")),
            correlation_id=unquote(headers.get("ce-correlationid", "")),
            causation_id=unquote(headers.get("ce-causationid", "")),
            traceparent=headers.get("traceparent", ""),
        ),
        recorded_at=datetime.fromisoformat(headers["ce-time"]).timestamp(),
        epoch=int(headers["ce-orreryepoch"]),
    )
