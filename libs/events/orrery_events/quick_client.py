"""nats-py's client, quicker where every event passes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

Receive = Callable[[Msg], Awaitable[None]]

_log = structlog.get_logger("orrery.bus")


class QuickClient(Client):
    """Two things cost nats-py most of a message's time: looking for white space in the names of its headers, and
    handing it through a queue to a task."""

    def __init__(self) -> None:
        super().__init__()
        self._inline: dict[int, Receive] = {}
        """By subscription."""

    async def subscribe_inline(self, subject: str, receive: Receive, *, queue: str = "") -> Subscription:
        """A subscription whose messages are received within the loop that reads the connection: at once, one after
        another, with nothing between that could overflow. `receive` must be brief, and may not wait for anything that
        comes by this connection. Raises nats.errors.Error and OSError."""
        # The number that it is about to get: the first message may be there before `subscribe` returns.
        self._inline[self._sid + 1] = receive
        return await self.subscribe(subject, queue=queue)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        receive = self._inline.get(sid)
        if receive is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            message = self._build_message(sid, subject, reply, data, await self._process_headers(headers))
            await receive(message)
        except Exception:  # noqa: BLE001 (it would end the loop that reads)
            _log.exception("bus.receive_failed", subject=subject.decode(errors="replace"))

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._inline.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        found: dict[str, Any] = {}
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            name = name.strip()
            if not colon or not name.isascii():
                continue
            key = name.decode()
            if not key or key.split() == [key]:
                found[key] = value.strip().decode(errors="replace")
        return found
