"""Finding out where the stream stands, and making it right where that destroys nothing that cannot be made again.

The stream is a copy: it may be deleted and made anew whenever it contradicts the log. The one exception is when it may
be the log that is wrong: Postgres lost its tail (an asynchronous failover, a restored backup). Then nobody but an
operator can know which history counts, and says so by raising the epoch.
"""

from __future__ import annotations

import asyncio

import msgspec
import nats.js.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg, StreamInfo

from .. import subjects
from ..errors import OrreryError
from ..log import EventLog, Head
from ..stream import Owner, apply_drift, create_stream, find_stream, owner_of, recreate_stream, stream_config
from .publisher import PIPELINE_MAX

BACKFILL = 10_000
"""Events that a stream made anew begins with; older ones are read from Postgres."""

_log = structlog.get_logger("orrery.relay")


class Diverged(OrreryError):
    """The stream holds events that Postgres does not have."""


class Settled(msgspec.Struct, frozen=True):
    """Where the relay goes on."""

    owner: Owner
    last_seq: int
    created: str


class Settler:
    """Looks at the stream and makes it fit the log."""

    def __init__(self, log: EventLog, *, replicas: int, max_bytes: int) -> None:
        self._events = log
        self._replicas = replicas
        self._max_bytes = max_bytes

    async def settle(self, js: JetStreamContext) -> Settled:
        """Raises Diverged, LogUnavailable, nats.errors.Error."""
        info = await find_stream(js)
        # The head is read after the stream: whatever is on the stream was in the log before it was published.
        head = await self._events.head()
        owner = Owner(head.system_id, head.epoch)
        if info is None:
            config = stream_config(
                owner, first_seq=_first_seq(head), replicas=self._replicas, max_bytes=self._max_bytes
            )
            info = await create_stream(js, config)
            _log.info("relay.stream_created", first_seq=info.state.first_seq, position=head.position)
            return _settled(owner, info)
        wrong = self._owner_fault(owner, info) or await self._content_fault(js, info, head)
        if wrong:
            return await self.recreate(js, _first_seq(head), wrong)
        wanted = stream_config(owner, first_seq=1, max_bytes=self._max_bytes)
        return _settled(owner, await apply_drift(js, info, wanted))

    async def recreate(self, js: JetStreamContext, first_seq: int, reason: str) -> Settled:
        """Deletes the stream and makes it anew from `first_seq` on."""
        head = await self._events.head()
        owner = Owner(head.system_id, head.epoch)
        _log.warning("relay.stream_recreated", reason=reason, first_seq=first_seq)
        config = stream_config(owner, first_seq=first_seq, replicas=self._replicas, max_bytes=self._max_bytes)
        return _settled(owner, await recreate_stream(js, config))

    def _owner_fault(self, ours: Owner, info: StreamInfo) -> str:
        theirs = owner_of(info)
        if theirs is None:
            return "it was not made by a relay"
        if theirs == ours:
            return ""
        if ours.epoch > theirs.epoch:
            return f"the log's epoch went from {theirs.epoch} to {ours.epoch}"
        raise Diverged(
            f"the stream {subjects.STREAM} is the copy of another log (system {theirs.system_id}, epoch {theirs.epoch};"
            f" ours: system {ours.system_id}, epoch {ours.epoch}). If this Postgres is the one to keep, raise its epoch"
            f" above {theirs.epoch}; consumers read Postgres meanwhile"
        )

    async def _content_fault(self, js: JetStreamContext, info: StreamInfo, head: Head) -> str:
        """Compares the stream's end with the log. Empty: they agree."""
        first, last = info.state.first_seq, info.state.last_seq
        if last < first - 1:
            return f"its last sequence {last} lies before its first, {first}"
        if last == 0:
            return ""
        if last > head.position:
            message = await _get(js, last)
            if message is None or _is_ours(message, last, head.epoch):
                raise Diverged(
                    f"the stream {subjects.STREAM} ends at {last}, the log at {head.position}: Postgres lost its tail."
                    " Recover it, or accept the loss by raising the log's epoch; consumers read Postgres meanwhile"
                )
            return f"somebody else published at sequence {last}"
        # Somebody else's message that took the place of one of ours may be followed by the rest of what was sent.
        rows = await self._events.read_all(after_position=max(first - 1, last - PIPELINE_MAX), limit=PIPELINE_MAX)
        rows = [row for row in rows if row.position <= last]
        for row, message in zip(rows, await asyncio.gather(*(_get(js, row.position) for row in rows)), strict=True):
            if message is None or (message.headers or {}).get("ce-id") == row.event_id:
                continue
            if _is_ours(message, row.position, head.epoch):
                raise Diverged(
                    f"the stream {subjects.STREAM} and the log hold different events at position {row.position}:"
                    " Postgres was restored to an earlier state. Accept that by raising the log's epoch; consumers"
                    " read Postgres meanwhile"
                )
            return f"somebody else published at sequence {row.position}"
        return ""


def _first_seq(head: Head) -> int:
    return max(1, head.position - BACKFILL + 1)


def _settled(owner: Owner, info: StreamInfo) -> Settled:
    created = info.created.isoformat() if info.created else ""
    return Settled(owner, info.state.last_seq, created)


async def _get(js: JetStreamContext, sequence: int) -> RawStreamMsg | None:
    """None: expired, deleted or lost."""
    try:
        return await js.get_msg(subjects.STREAM, sequence)
    except nats.js.errors.NotFoundError:
        return None


def _is_ours(message: RawStreamMsg, sequence: int, epoch: int) -> bool:
    headers = message.headers or {}
    try:
        return int(headers["ce-sequence"]) == sequence and int(headers["ce-orreryepoch"]) == epoch
    except (KeyError, ValueError):
        return False
