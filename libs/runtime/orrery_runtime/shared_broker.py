"""FastStream on a connection that it does not own, with a pull subscription that waits.

What it keeps away, as measured with FastStream 0.7.8: its error callback ends nats-py's reconnection after a transient
authorization failure; `stop()` raises while NATS is away; its defaults give up after 60 attempts and notice a half-open
connection after minutes; its fetch loop spins thousands of times a second while the stream or consumer is missing, and
never makes the consumer anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import nats.errors
from fast_depends.msgspec import MsgSpecSerializer
from faststream import AckPolicy
from faststream.nats import NatsBroker
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

GRACE_S = 5.0
"""Handlers under way have so long when a broker stops."""
TROUBLE_PAUSE_S = 0.5
MORE_TIMEOUT_S = 0.25
PENDING_MESSAGES_MAX = 1024
EXPIRY_MARGIN_S = 0.1
"""A request expires at the server this much before we give it up, so that no message goes to nobody."""

STATUS = "Status"
NO_MESSAGES = "404"
REQUEST_TIMEOUT = "408"


class SharedBroker(NatsBroker):
    """A FastStream broker on the process's own connection."""

    def __init__(self, client: Client, on_trouble: Callable[[], None]) -> None:
        """`on_trouble`: the consumer cannot be fetched from; it must be looked at."""
        super().__init__(
            "nats://shared",
            ack_policy=AckPolicy.MANUAL,
            serializer=MsgSpecSerializer(),
            graceful_timeout=GRACE_S,
            logger=None,
        )
        self._view = _ClientView(client, on_trouble)

    async def _connect(self) -> Any:
        self.config.connect(self._view)
        return self._view

    async def stop(self, exc_type: Any = None, exc_val: Any = None, exc_tb: Any = None) -> None:
        """Ends the subscriptions; the connection is not ours to close. Never raises."""
        self._connection = None
        # With the connection gone, unsubscribing fails; there is nothing left to end then.
        with contextlib.suppress(Exception):
            await super().stop(exc_type, exc_val, exc_tb)


class _ClientView:
    """The shared client, save that its JetStream context is patient."""

    def __init__(self, client: Client, on_trouble: Callable[[], None]) -> None:
        self._client = client
        self._on_trouble = on_trouble

    def jetstream(self, **options: Any) -> JetStreamContext:
        return _PatientJetStream(self._client, self._on_trouble, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class _PatientJetStream(JetStreamContext):
    def __init__(self, client: Client, on_trouble: Callable[[], None], **options: Any) -> None:
        super().__init__(client, **options)
        self._client = client
        self._on_trouble = on_trouble

    async def pull_subscribe(  # type: ignore[override]
        self,
        subject: str,  # noqa: ARG002 (the signature is nats-py's)
        *,
        durable: str,
        stream: str,
        **_options: Any,
    ) -> PatientPull:
        """Binds to the durable consumer as it is; making it is `ensure_consumer`'s business."""
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, pending_msgs_limit=PENDING_MESSAGES_MAX)
        return PatientPull(self._client, subscription, inbox, f"{stream}.{durable}", self._on_trouble)


class PatientPull:
    """What FastStream's fetch loop fetches from."""

    def __init__(
        self, client: Client, subscription: Subscription, inbox: str, consumer: str, on_trouble: Callable[[], None]
    ) -> None:
        self._client = client
        self._subscription = subscription
        self._inbox = inbox
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{consumer}"
        self._on_trouble = on_trouble

    async def fetch(self, batch: int = 1, timeout: float | None = 5.0) -> list[Msg]:
        """Waits for one message, then takes what else is there at once. Raises nats.errors.TimeoutError for none.

        (Asking for several at once would make the first wait for the others.) FastStream calls this again at once,
        whatever it raises, so a connection that is gone must cost time here: without the pause its loop would never
        let anything else run.
        """
        try:
            return await self._fetch(batch, timeout or 5.0)
        except nats.errors.TimeoutError:
            raise
        except (nats.errors.Error, OSError) as error:
            self._on_trouble()
            await asyncio.sleep(TROUBLE_PAUSE_S)
            raise nats.errors.TimeoutError from error

    async def _fetch(self, batch: int, wait_s: float) -> list[Msg]:
        if self._subscription.pending_msgs == 0:
            await self._ask(batch=1, expires_s=max(EXPIRY_MARGIN_S, wait_s - EXPIRY_MARGIN_S))
        first = await self._subscription.next_msg(timeout=wait_s)
        status = _status(first)
        if status in (NO_MESSAGES, REQUEST_TIMEOUT):
            raise nats.errors.TimeoutError
        if status:
            # 503: nobody answers for this consumer. 409: it was deleted, or its limits are reached.
            self._on_trouble()
            await asyncio.sleep(TROUBLE_PAUSE_S)
            raise nats.errors.TimeoutError
        messages = [first]
        if batch > 1:
            messages += await self._more(batch - 1)
        return messages

    async def unsubscribe(self) -> None:
        await self._subscription.unsubscribe()

    async def _more(self, count: int) -> list[Msg]:
        await self._ask(batch=count, expires_s=None)
        messages: list[Msg] = []
        with contextlib.suppress(nats.errors.TimeoutError):
            while len(messages) < count:
                message = await self._subscription.next_msg(timeout=MORE_TIMEOUT_S)
                if _status(message):
                    break
                messages.append(message)
        return messages

    async def _ask(self, *, batch: int, expires_s: float | None) -> None:
        request: dict[str, object] = {"batch": batch}
        if expires_s is None:
            request["no_wait"] = True
        else:
            request["expires"] = int(expires_s * 1e9)
        await self._client.publish(self._subject, json.dumps(request).encode(), reply=self._inbox)


def _status(message: Msg) -> str:
    """Empty for an event; a control message's status otherwise."""
    if message.data or not message.headers:
        return ""
    return message.headers.get(STATUS, "")
