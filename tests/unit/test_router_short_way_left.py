"""The short way of a request: whatever else happens while it is under way puts it on the long way."""

from __future__ import annotations

import asyncio
import time

import pytest

from orrery_router.dataplane import limits
from orrery_router.dataplane.upstream import Upstream
from orrery_router.target import Target
from tests.support.traffic import GET, OK, Traffic


def test_an_answer_in_pieces() -> None:
    for place in range(1, len(OK)):
        traffic = Traffic()
        traffic.ask()
        traffic.say(OK[:place])
        assert not traffic.is_short()
        traffic.say(OK[place:])
        traffic.ask()
        traffic.say(OK[:place])
        assert not traffic.client.quiet
        traffic.say(OK[place:])
        assert traffic.wire.sent == OK + OK
        assert len(traffic.pool.opened) == 1


@pytest.mark.parametrize("more", [b"x", OK, b"HTTP/1.1 200 OK\r\n\r\nanother"])
def test_more_than_was_announced_reaches_nobody(more: bytes) -> None:
    traffic = Traffic()
    traffic.ask()
    traffic.say(OK + more)
    assert traffic.wire.sent == OK
    assert traffic.server_wire.closed


@pytest.mark.parametrize(
    "answer", [b"", b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"HTTP/1.1 099 x\r\n\r\n"]
)
async def test_no_answer_or_none_that_is_one(answer: bytes) -> None:
    traffic = Traffic()
    traffic.ask()
    if answer:
        traffic.say(answer)
    if not traffic.server_wire.closed:
        assert traffic.client._current is not None or traffic.is_short()
    assert b"ok" not in traffic.wire.sent


def test_a_word_from_a_server_that_nobody_asked() -> None:
    traffic = Traffic()
    traffic.say(OK)
    assert traffic.wire.sent == b""
    assert traffic.server_wire.closed


def test_two_answers_to_one_request() -> None:
    traffic = Traffic()
    traffic.ask()
    traffic.say(OK)
    traffic.say(OK)
    assert traffic.wire.sent == OK
    assert traffic.server_wire.closed


async def test_a_server_that_is_gone_is_gone_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered of it, least of all by the plan of the request."""

    async def refuse(_target: Target, _timeout_s: float = 0.0) -> Upstream:
        raise ConnectionRefusedError

    traffic = Traffic(warm=0)
    monkeypatch.setattr(traffic.pool, "take", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(traffic.pool, "connect", refuse)
    for _ in range(4):
        traffic.ask()
        await asyncio.sleep(0)
        assert traffic.wire.sent.startswith(b"HTTP/1.1 503 ")
        traffic.wire.sent = b""


async def test_a_server_that_leaves_is_asked_again_on_a_new_connection() -> None:
    traffic = Traffic()
    traffic.ask()
    first = traffic.server_wire
    first.closed = True
    traffic.server.connection_lost(None)
    await asyncio.sleep(0)
    assert len(traffic.pool.opened) == 2
    assert traffic.server_wire.sent == first.sent != b""
    traffic.say(OK)
    assert traffic.wire.sent == OK


def test_a_client_that_leaves_takes_its_request_along() -> None:
    traffic = Traffic()
    traffic.ask()
    traffic.client.connection_lost(None)
    assert traffic.server_wire.closed
    assert traffic.counted()[0][4] == 1
    traffic.say(OK)
    assert traffic.wire.sent == b""


def test_a_second_request_waits_for_the_first() -> None:
    traffic = Traffic()
    for _ in range(3):
        traffic.ask()
    assert traffic.server_wire.sent.count(b"GET ") == 1
    for _ in range(3):
        traffic.say(OK)
    assert traffic.wire.sent == OK * 3
    assert traffic.client.quiet


def test_two_requests_in_one_piece_are_two() -> None:
    traffic = Traffic()
    traffic.ask(GET + GET)
    traffic.say(OK)
    traffic.say(OK)
    assert traffic.wire.sent == OK * 2
    assert traffic.server_wire.sent.count(b"GET ") == 2


def test_half_a_request_after_one_that_is_under_way() -> None:
    traffic = Traffic()
    traffic.ask()
    traffic.ask(GET[:20])
    traffic.say(OK)
    traffic.ask(GET[20:])
    traffic.say(OK)
    assert traffic.wire.sent == OK * 2


def test_what_is_no_request_after_one_that_is_under_way() -> None:
    traffic = Traffic()
    traffic.ask()
    traffic.ask(b"\x00\r\n\r\n")
    traffic.say(OK)
    assert traffic.wire.sent.startswith(OK + b"HTTP/1.1 400 ")


def test_a_slow_reader_gets_the_next_answer_no_faster() -> None:
    traffic = Traffic()
    paused = []
    traffic.server_wire.pause_reading = lambda: paused.append(True)  # type: ignore[method-assign]
    traffic.client.pause_writing()
    traffic.ask()
    assert not traffic.is_short()
    assert paused == [True]


def test_a_reader_that_becomes_slow_meanwhile() -> None:
    traffic = Traffic()
    paused = []
    traffic.server_wire.pause_reading = lambda: paused.append(True)  # type: ignore[method-assign]
    traffic.ask()
    traffic.client.pause_writing()
    assert paused == [True]
    traffic.client.resume_writing()
    traffic.say(OK)
    assert traffic.wire.sent == OK


def test_an_answer_that_does_not_come_in_time() -> None:
    traffic = Traffic()
    traffic.ask()
    traffic.client.tick(time.monotonic() + 1)
    assert not traffic.is_short()
    traffic.client.tick(time.monotonic() + traffic.plane.bounds.response_timeout_s + 1)
    assert traffic.wire.sent.startswith(b"HTTP/1.1 503 ")
    assert traffic.server_wire.closed


def test_an_answer_after_the_clock_has_ticked() -> None:
    traffic = Traffic()
    traffic.ask()
    traffic.client.tick(time.monotonic() + limits.TICK_S)
    traffic.say(OK)
    assert traffic.wire.sent == OK
    assert traffic.counted() == ([0, 0, 4, 0, 0, 0], [0, 0, 4, 0, 0, 0])


def test_the_router_ends_after_the_request_came() -> None:
    traffic = Traffic()
    traffic.ask()
    traffic.plane.draining = True
    traffic.say(OK)
    assert b"\r\nConnection: close\r\n" in traffic.wire.sent
    assert traffic.wire.closed


def test_a_client_that_says_it_is_the_last_one() -> None:
    request = GET[:-2] + b"Connection: close\r\n\r\n"
    traffic = Traffic(request=request, warm=1)
    seen = []
    for _ in range(4):
        traffic.client, traffic.wire = traffic.connect()
        traffic.ask(request)
        seen.append(traffic.is_short())
        traffic.say(OK)
        assert traffic.wire.sent == OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert traffic.wire.closed
        assert not traffic.client.quiet
        traffic.client.connection_lost(None)
    assert seen == [True] * 4
    assert len(traffic.pool.opened) == 1


def test_a_server_that_says_it_is_the_last_answer_is_not_asked_again() -> None:
    answer = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    traffic = Traffic()
    for opened in (1, 2):
        traffic.ask()
        traffic.say(answer)
        assert traffic.server_wire.closed
        assert len(traffic.pool.opened) == opened
    assert traffic.wire.sent == OK + OK
