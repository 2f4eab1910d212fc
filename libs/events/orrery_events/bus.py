"""The connection to NATS: there when NATS is there, silent when it is not.

nats-py's own reconnection is switched off. A connection that breaks, whatever the reason, is thrown away and a new
client is built, because nats-py keeps a client whose read loop died (`is_connected` stays true, nothing is ever
received) and mixes buffered publishes of the old connection into the new one. One supervisor task per process does it,
for ever, with jitter; everything that wants to live longer than a connection subscribes through `Bus`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as ClientSubscription

from . import subjects
from .quick_client import QuickClient
from .tasks import end_tasks

CONNECT_TIMEOUT_S = 3
PING_INTERVAL_S = 5
PINGS_OUTSTANDING_MAX = 2
CHECK_INTERVAL_S = 2.0
"""How often a round trip proves that the read loop lives."""
CHECK_TIMEOUT_S = 3.0
CLOSE_TIMEOUT_S = 2.0
RETRY_MIN_S = 0.1
RETRY_MAX_S = 2.0
PENDING_BYTES_MAX = 16 * 2**20
"""Outgoing bytes that wait for the socket, at most."""
SUBSCRIPTION_MESSAGES_MAX = 65_536
SUBSCRIPTION_BYTES_MAX = 64 * 2**20

Callback = Callable[[Msg], Awaitable[None]]

_log = structlog.get_logger("orrery.bus")


class Subscription:
    """Interest in a subject that outlives connections. Made by `Bus.subscribe`."""

    def __init__(self, bus: Bus, subject: str, queue: str, callback: Callback, *, inline: bool) -> None:
        self.subject = subject
        self.queue = queue
        self._bus = bus
        self._inline = inline
        self._callback = callback
        self._live: ClientSubscription | None = None

    async def attach(self, client: QuickClient) -> None:
        """Subscribes on a fresh connection. Raises nats.errors.Error and OSError."""
        if self._inline:
            self._live = await client.subscribe_inline(self.subject, self._receive, queue=self.queue)
            return
        self._live = await client.subscribe(
            self.subject,
            queue=self.queue,
            cb=self._receive,
            pending_msgs_limit=SUBSCRIPTION_MESSAGES_MAX,
            pending_bytes_limit=SUBSCRIPTION_BYTES_MAX,
        )

    async def unsubscribe(self) -> None:
        """Ends it, on this and all later connections."""
        self._bus.forget(self)
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await live.unsubscribe()

    async def _receive(self, message: Msg) -> None:
        await self._callback(message)


class Bus:
    """One process's connection to NATS. None of its methods raises because NATS is away."""

    def __init__(self, url: str, *, name: str, inbox_prefix: str = "") -> None:
        """`url`: one or several comma-separated `nats://user:password@host:port`. `name`: shown in NATS's monitoring;
        the inbox prefix is derived from it unless given, so that NATS permissions can keep replies apart."""
        self.name = name
        self.last_error = ""
        """Why there is no connection, as a sentence for an operator; empty while connected."""
        self.inbox_prefix = inbox_prefix or "_INBOX_" + re.sub(r"[^A-Za-z0-9_-]", "-", name)
        self._url = url
        self._client: QuickClient | None = None
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._on_connect: list[Callable[[QuickClient], None]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def client(self) -> QuickClient | None:
        """The live nats-py client, or None. Never keep it: after a reconnect it is another one."""
        return self._client

    async def start(self) -> None:
        """Returns at once; connects in the background, for ever."""
        if self._task is None:
            self._task = asyncio.create_task(self._supervise(), name="bus")

    async def stop(self) -> None:
        """Ends the supervisor and the connection, flushing what was published."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks(task)

    async def wait_connected(self, timeout_s: float) -> bool:
        """True as soon as there is a connection, False when there is none after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> bool:
        """Publishes on core NATS, at most once. False: dropped, because there is no connection (nothing is buffered
        for later: a notification that arrives minutes late helps nobody)."""
        client = self._client
        if client is None:
            return False
        try:
            await client.publish(subject, data, headers=dict(headers) if headers else None)
        except (nats.errors.Error, OSError) as error:
            _log.warning("bus.publish_dropped", reason=str(error))
            return False
        return True

    async def nudge(self, position: int) -> None:
        """Tells the relay that the log has grown to `position`."""
        await self.publish(subjects.NUDGE, str(position).encode())

    async def subscribe(
        self, subject: str, callback: Callback, *, queue: str = "", inline: bool = False
    ) -> Subscription:
        """Core NATS subscription that survives reconnects and a NATS that comes up later. `inline`: see
        `QuickClient.subscribe_inline`."""
        subscription = Subscription(self, subject, queue, callback, inline=inline)
        self._subscriptions.append(subscription)
        client = self._client
        if client is not None:
            # A failure here means that the connection just broke; the next one attaches it.
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.attach(client)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Not attached again on later connections. Used by `Subscription.unsubscribe`."""
        with contextlib.suppress(ValueError):
            self._subscriptions.remove(subscription)

    def on_connect(self, callback: Callable[[QuickClient], None]) -> Callable[[], None]:
        """Calls back on every new connection, and at once when there is one. Returns the way to end that."""
        self._on_connect.append(callback)
        if self._client is not None:
            callback(self._client)
        return lambda: self._on_connect.remove(callback)

    async def _supervise(self) -> None:
        delay_s = RETRY_MIN_S
        while True:
            client = await self._connect()
            if client is not None:
                delay_s = RETRY_MIN_S
                try:
                    await self._watch(client)
                finally:
                    self._client = None
                    self._connected.clear()
                    await _close(client)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def _connect(self) -> QuickClient | None:
        client = QuickClient()
        self._lost = asyncio.Event()
        try:
            await _open(client, self._url, name=self.name, inbox_prefix=self.inbox_prefix, lost=self._lost)
            for subscription in self._subscriptions[:]:
                await subscription.attach(client)
        except asyncio.CancelledError:
            await _close(client)
            raise
        except Exception as error:  # noqa: BLE001 (nats-py raises bare exceptions for a broken handshake)
            await _close(client)
            self._note(explain(self._url, error))
            return None
        self._client = client
        self.last_error = ""
        self._connected.set()
        _log.info("bus.connected", server=place(self._url))
        for callback in self._on_connect[:]:
            callback(client)
        return client

    async def _watch(self, client: Client) -> None:
        """Returns when the connection is no good any more."""
        lost = asyncio.create_task(self._lost.wait())
        try:
            while True:
                done, _ = await asyncio.wait([lost], timeout=CHECK_INTERVAL_S)
                if done or client.is_closed:
                    self._note(f"the connection to NATS at {place(self._url)} broke")
                    return
                # rtt, not flush: flush pretends success when the read loop is dead.
                await client.rtt(timeout=CHECK_TIMEOUT_S)  # type: ignore[arg-type]
        except (TimeoutError, nats.errors.Error, OSError):
            self._note(f"NATS at {place(self._url)} stopped answering on an open connection")
        finally:
            lost.cancel()

    def _note(self, sentence: str) -> None:
        if sentence != self.last_error:
            _log.warning("bus.not_connected", reason=sentence)
        self.last_error = sentence


def place(url: str) -> str:
    """Host and port of each server, without the credentials."""
    servers = []
    for part in url.split(","):
        split = urlsplit(part.strip() if "://" in part else f"nats://{part.strip()}")
        servers.append(f"{split.hostname}:{split.port or 4222}")
    return ", ".join(servers)


def explain(url: str, error: BaseException) -> str:
    """A sentence for an operator; it never holds the password."""
    text = str(error).lower()
    if "authorization" in text or "authentication" in text:
        return (
            f"NATS refused the user or password given in ORRERY_NATS_URL: {place(url)} answered"
            " 'authorization violation'; correct the URL or the server's users"
        )
    if isinstance(error, asyncio.TimeoutError):
        reason = f"no answer within {CONNECT_TIMEOUT_S} s"
    elif isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
    else:
        reason = type(error).__name__
    return f"NATS at {place(url)} cannot be reached ({reason}): start it or correct ORRERY_NATS_URL"


async def check(url: str, timeout_s: float = 3.0) -> str | None:
    """One attempt to connect. None: NATS answers and accepts us; otherwise what is wrong, as a sentence (a refused
    password and an unreachable server read differently)."""
    client = Client()
    try:
        await asyncio.wait_for(_open(client, url, name="orrery-check", inbox_prefix="_INBOX_check"), timeout_s)
        await client.rtt(timeout=timeout_s)  # type: ignore[arg-type]
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the answer)
        return explain(url, error)
    finally:
        await _close(client)
    return None


async def _open(client: Client, url: str, *, name: str, inbox_prefix: str, lost: asyncio.Event | None = None) -> None:
    """Connects once. Raises what stood in the way, not nats-py's summary of it."""
    reasons: list[Exception] = []

    async def on_error(error: Exception) -> None:
        if client.is_connected:
            _log.warning("bus.error", reason=str(error) or type(error).__name__)
        else:
            reasons.append(error)

    async def on_closed() -> None:
        if lost is not None:
            lost.set()

    try:
        await asyncio.wait_for(
            client.connect(
                servers=[part.strip() for part in url.split(",")],
                name=name,
                error_cb=on_error,
                closed_cb=on_closed,
                disconnected_cb=on_closed,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.05,  # type: ignore[arg-type]
                connect_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=PINGS_OUTSTANDING_MAX,
                pending_size=PENDING_BYTES_MAX,
                flush_timeout=CHECK_TIMEOUT_S,
                inbox_prefix=inbox_prefix,
            ),
            CONNECT_TIMEOUT_S * 2,
        )
    except nats.errors.NoServersError:
        if reasons:
            raise reasons[-1] from None
        raise


async def _close(client: Client) -> None:
    # A half-open connection can block the last flush; nothing in a failed close is worth an exception.
    with contextlib.suppress(Exception):
        await asyncio.wait_for(client.close(), CLOSE_TIMEOUT_S)
