"""The supervised connection against a real nats-server that dies, hangs and refuses."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from orrery_events import bus as module
from orrery_events.bus import Bus, check, place
from tests.support.backbone import NatsServer
from tests.support.wait import eventually


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    bus = Bus(nats_server.relay_url, name="test.bus 1")
    await bus.start()
    assert await bus.wait_connected(10)
    yield bus
    await bus.stop()


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(module, "CHECK_TIMEOUT_S", 0.5)


class Inbox:
    def __init__(self) -> None:
        self.received: list[bytes] = []

    async def __call__(self, message: Msg) -> None:
        self.received.append(message.data)


async def echoes(bus: Bus, inbox: Inbox, text: bytes) -> bool:
    await bus.publish("test.a", text)
    return text in inbox.received


async def test_it_starts_without_nats_and_works_once_it_is_there(nats_server: NatsServer) -> None:
    await nats_server.kill()
    bus, inbox = Bus(nats_server.relay_url, name="early"), Inbox()
    await bus.start()
    await bus.subscribe("test.>", inbox)
    try:
        await eventually(lambda: bus.last_error)
        assert not bus.connected
        assert bus.client is None
        assert "cannot be reached" in bus.last_error
        await nats_server.restart()
        assert await bus.wait_connected(10)
        assert bus.last_error == ""
        await eventually(lambda: echoes(bus, inbox, b"1"))
    finally:
        await bus.stop()


async def test_subscriptions_survive_a_killed_and_restarted_nats(bus: Bus, nats_server: NatsServer) -> None:
    inbox = Inbox()
    seen: list[Client] = []
    subscription = await bus.subscribe("test.>", inbox)
    detach = bus.on_connect(seen.append)
    await eventually(lambda: echoes(bus, inbox, b"1"))
    for text in (b"2", b"3"):
        await nats_server.kill()
        await eventually(lambda: not bus.connected)
        await nats_server.restart()
        assert await bus.wait_connected(10)
        await eventually(partial(echoes, bus, inbox, text))
    assert len(seen) == 3, "once at registration, once per new connection"
    assert len(set(map(id, seen))) == 3
    detach()
    await subscription.unsubscribe()
    count = len(inbox.received)
    await bus.publish("test.a", b"4")
    client = bus.client
    assert client is not None
    await client.flush()
    assert len(inbox.received) == count


async def test_n8_a_publish_without_connection_is_dropped_not_delivered_late(bus: Bus, nats_server: NatsServer) -> None:
    inbox = Inbox()
    await bus.subscribe("test.>", inbox)
    assert await bus.publish("test.a", b"before", {"x": "y"})
    await eventually(lambda: b"before" in inbox.received)
    await nats_server.kill()
    await eventually(lambda: not bus.connected)
    assert not await bus.publish("test.a", b"while away")
    await bus.nudge(7)
    await nats_server.restart()
    assert await bus.wait_connected(10)
    await eventually(lambda: echoes(bus, inbox, b"after"))
    assert b"while away" not in inbox.received


@pytest.mark.usefixtures("quick_checks")
async def test_n3_n4_a_dead_read_loop_is_found_and_replaced(bus: Bus) -> None:
    inbox = Inbox()
    await bus.subscribe("test.>", inbox)
    client = bus.client
    assert client is not None
    reader = client._reading_task
    assert reader is not None
    reader.cancel()
    await eventually(reader.done)
    assert client.is_connected, "nats-py itself does not notice"
    await eventually(lambda: bus.connected and bus.client is not client)
    await eventually(lambda: echoes(bus, inbox, b"again"))


@pytest.mark.usefixtures("quick_checks")
async def test_a_server_that_hangs_on_an_open_connection_is_left(bus: Bus, nats_server: NatsServer) -> None:
    os.kill(nats_server.pid, signal.SIGSTOP)
    try:
        await eventually(lambda: not bus.connected)
    finally:
        os.kill(nats_server.pid, signal.SIGCONT)
    assert await bus.wait_connected(20)


async def test_f7_a_transient_authorization_failure_heals(bus: Bus, nats_server: NatsServer) -> None:
    file = nats_server.root / "nats" / "relay.password"
    password = file.read_text().strip()
    await nats_server.kill()
    file.write_text("another")
    await nats_server.restart()
    await eventually(lambda: bus.last_error.startswith("NATS refused"))
    assert not bus.connected
    assert len(password) > 10
    assert password not in bus.last_error
    file.write_text(password)
    await nats_server.restart()
    assert await bus.wait_connected(10)


async def test_a_wrong_password_and_an_absent_server_read_differently(nats_server: NatsServer) -> None:
    refused = await check(nats_server.wrong_url)
    assert refused is not None
    assert refused.startswith("NATS refused the user or password given in ORRERY_NATS_URL")
    assert "wrong" not in refused
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"nats://u:secret-password@127.0.0.1:{unused.getsockname()[1]}"
        away = await check(url)
    assert away is not None
    assert "cannot be reached" in away
    assert "secret-password" not in away
    assert await check(nats_server.url) is None


async def test_a_server_that_never_answers_is_told_within_the_time_limit() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        answer = await check(f"nats://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)
    assert answer is not None
    assert "cannot be reached" in answer


async def test_waiting_for_a_connection_ends_in_time() -> None:
    bus = Bus("nats://127.0.0.1:1", name="nobody")
    assert not await bus.wait_connected(0.01)
    await bus.start()
    await bus.stop()
    await bus.stop()


def test_credentials_never_show_in_places() -> None:
    assert place("nats://u:pw@a:1, nats://b") == "a:1, b:4222"


def test_the_inbox_prefix_is_the_processs_own_and_safe() -> None:
    assert Bus("nats://x", name="router.a *").inbox_prefix == "_INBOX_router-a--"
    assert Bus("nats://x", name="n", inbox_prefix="_INBOX_router").inbox_prefix == "_INBOX_router"
