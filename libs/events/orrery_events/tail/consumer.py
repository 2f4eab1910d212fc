"""The JetStream end of a tail: an ephemeral push consumer by hand.

nats-py's ordered consumer is not used: it loses messages silently when it falls behind, takes many seconds to notice a
deleted stream, and can kill the connection's read loop. Here every control message is answered in the same callback
that takes the events, in order, and whatever may still get lost is found by category sequences.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from .. import subjects
from ..errors import OrreryError
from ..ids import new_id
from ..quick_client import QuickClient
from ..stream import owner_of

IDLE_HEARTBEAT_S = 1.0
INACTIVE_THRESHOLD_S = 10.0
"""NATS removes the consumer of a process that is gone after this."""
REQUEST_TIMEOUT_S = 3.0

STATUS = "Status"
STALLED = "Nats-Consumer-Stalled"


class AnotherLog(OrreryError):
    """The stream is not the copy of the log that is followed."""


class PushConsumer:
    """One consumer on one connection. Make a new one rather than repair it."""

    def __init__(
        self, client: QuickClient, name: str, on_event: Callable[[Msg], None], on_alive: Callable[[], None]
    ) -> None:
        self._client = client
        self._name = f"{name}-{new_id()}"
        self._on_event = on_event
        self._on_alive = on_alive
        self._subscription: Subscription | None = None

    async def start(self, categories: Iterable[str], from_position: int, *, log_id: str) -> None:
        """Raises nats.errors.Error (the stream may not be there yet), OSError, and AnotherLog: by their numbers alone
        its events could pass for ours. (A stream that is made anew ends this consumer, and the next one looks again.)
        """
        js = self._client.jetstream(timeout=REQUEST_TIMEOUT_S)
        owner = owner_of(await js.stream_info(subjects.STREAM))
        if owner is not None and owner.system_id != log_id:
            raise AnotherLog("the stream is the copy of another log")
        inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe_inline(inbox, self._receive)
        config = ConsumerConfig(
            name=self._name,
            deliver_subject=inbox,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=from_position,
            ack_policy=AckPolicy.NONE,
            filter_subjects=subjects.category_filters(categories),
            flow_control=True,
            idle_heartbeat=IDLE_HEARTBEAT_S,
            inactive_threshold=INACTIVE_THRESHOLD_S,
            mem_storage=True,
            num_replicas=1,
        )
        await js.add_consumer(subjects.STREAM, config)

    async def stop(self) -> None:
        """Ends it; without a connection NATS forgets it by itself."""
        subscription, self._subscription = self._subscription, None
        if subscription is None or not self._client.is_connected:
            return
        with contextlib.suppress(nats.errors.Error, OSError):
            await subscription.unsubscribe()
            # No request: whether it worked does not matter, the inactivity threshold is behind it.
            await self._client.publish(f"$JS.API.CONSUMER.DELETE.{subjects.STREAM}.{self._name}")

    async def _receive(self, message: Msg) -> None:
        headers = message.headers
        if headers is not None and STATUS in headers and not message.data:
            # Flow control asks in `reply`; a heartbeat of a stalled consumer repeats the question in a header.
            answer = message.reply or headers.get(STALLED, "")
            if answer:
                with contextlib.suppress(nats.errors.Error, OSError):
                    await self._client.publish(answer)
            self._on_alive()
            return
        self._on_event(message)
