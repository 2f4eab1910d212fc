"""The JetStream stream and its durable consumers: how they must be, and making them so.

nats-py and FastStream bind to whatever exists and never look whether it is configured as wanted; the functions here
do.
"""

from __future__ import annotations

from typing import Any

import msgspec
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import NotFoundError

from . import subjects

MAX_AGE_S = 7 * 86_400.0
MAX_BYTES = 512 * 2**20
MAX_MESSAGE_BYTES = 128 * 1024
DUPLICATE_WINDOW_S = 0.1
"""The least that NATS takes: message ids are not used, the expected sequence is stricter."""
SYSTEM_ID = "orrery_pg_system_id"
EPOCH = "orrery_epoch"

ACK_WAIT_S = 30.0
MAX_DELIVER = 10
MAX_ACK_PENDING = 256


class Owner(msgspec.Struct, frozen=True):
    """Which log a stream is the copy of."""

    system_id: str
    """Postgres's system identifier."""
    epoch: int


def owner_of(info: StreamInfo) -> Owner | None:
    """None: not made by a relay."""
    metadata = info.config.metadata or {}
    try:
        return Owner(metadata[SYSTEM_ID], int(metadata[EPOCH]))
    except (KeyError, ValueError):
        return None


def stream_config(owner: Owner, *, first_seq: int, replicas: int = 1, max_bytes: int = MAX_BYTES) -> StreamConfig:
    return StreamConfig(
        name=subjects.STREAM,
        description="Copy of the recent part of Orrery's event log; sequence = position. Only the relay publishes.",
        subjects=[subjects.ALL_EVENTS],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        num_replicas=replicas,
        max_age=MAX_AGE_S,
        max_bytes=max_bytes,
        max_msg_size=MAX_MESSAGE_BYTES,
        duplicate_window=DUPLICATE_WINDOW_S,
        deny_purge=True,
        allow_direct=True,
        allow_atomic=True,
        first_seq=first_seq,
        metadata={SYSTEM_ID: owner.system_id, EPOCH: str(owner.epoch)},
    )


async def find_stream(js: JetStreamContext) -> StreamInfo | None:
    """None: there is none. Raises nats.errors.Error."""
    try:
        return await js.stream_info(subjects.STREAM)
    except NotFoundError:
        return None


async def create_stream(js: JetStreamContext, config: StreamConfig) -> StreamInfo:
    """Raises nats.errors.Error."""
    return await js.add_stream(config)


async def recreate_stream(js: JetStreamContext, config: StreamConfig) -> StreamInfo:
    """Deletes whatever there is under the name and makes it anew. Every consumer of it is gone."""
    if await find_stream(js) is not None:
        await js.delete_stream(subjects.STREAM)
    return await js.add_stream(config)


async def apply_drift(js: JetStreamContext, info: StreamInfo, wanted: StreamConfig) -> StreamInfo:
    """Updates the settings in which the stream differs from `wanted`; its first sequence and replicas stay."""
    names = (
        "subjects", "max_age", "max_bytes", "max_msg_size", "duplicate_window", "deny_purge", "allow_direct",
        "allow_atomic", "discard",
    )  # fmt: skip
    if not _differences(info.config, wanted, names):
        return info
    config = info.config.evolve(**{name: getattr(wanted, name) for name in names})
    return await js.update_stream(config)


def durable_config(name: str, filters: list[str], *, start: int, ack_wait_s: float = ACK_WAIT_S) -> ConsumerConfig:
    """A durable pull consumer for commands. `start`: first sequence that a consumer made now gets.

    BackOff would apply to ack time-outs only, so there is none: a handler that fails names its delay.
    """
    return ConsumerConfig(
        name=name,
        durable_name=name,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=max(1, start),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=MAX_DELIVER,
        max_ack_pending=MAX_ACK_PENDING,
        filter_subjects=sorted(filters),
    )


async def ensure_consumer(js: JetStreamContext, wanted: ConsumerConfig) -> ConsumerInfo:
    """The durable consumer, made when it is missing (after a wipe of the stream, say) and updated when its settings
    differ. Where an existing one stands is never changed. Raises nats.errors.Error; NotFoundError without a stream."""
    assert wanted.durable_name  # noqa: S101 (a programming error)
    names = ("filter_subjects", "ack_wait", "max_deliver", "max_ack_pending")
    try:
        info: ConsumerInfo = await js.consumer_info(subjects.STREAM, wanted.durable_name)
    except NotFoundError:
        return await js.add_consumer(subjects.STREAM, wanted)
    have = info.config
    if have.filter_subject and not have.filter_subjects:
        have = have.evolve(filter_subjects=[have.filter_subject], filter_subject=None)
    if not _differences(have, wanted, names):
        return info
    config = have.evolve(**{name: getattr(wanted, name) for name in names})
    return await js.add_consumer(subjects.STREAM, config)


def _differences(have: Any, want: Any, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if _plain(getattr(have, name)) != _plain(getattr(want, name))]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value
