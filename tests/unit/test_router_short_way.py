"""The short way of a request: what it does is what the long way does, and what it does not know goes the long way."""

from __future__ import annotations

import asyncio
import re
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery_events.catalog.auth import SessionRevoked
from orrery_events.catalog.server import Stopped
from orrery_router.dataplane import limits
from orrery_router.dataplane.answers import known_answer
from orrery_router.dataplane.arrival import Arrival, Trust
from orrery_router.dataplane.upstream import Upstream
from orrery_router.target import Target
from tests.support.inprocess import PEER, TOKEN
from tests.support.smuggling.answers import read_answers
from tests.support.traffic import GET, OK, Session, Traffic
from tests.unit.test_router_heads import ANSWERS, cut


def without_id(head: bytes) -> bytes:
    return b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"X-Request-Id: "))


# What goes the short way


def test_what_came_before_takes_the_short_way_and_so_does_its_answer() -> None:
    traffic = Traffic()
    traffic.ask()
    assert traffic.is_short()
    traffic.say(OK)
    assert not traffic.is_short()
    assert traffic.client._current is None
    assert traffic.wire.sent == OK


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 200 OK\r\nServer: x\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: orrery-session=x\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    ],
)
@pytest.mark.parametrize("secure", [False, True])
def test_both_ways_say_and_count_the_same(answer: bytes, secure: bool) -> None:
    """Byte by byte, to the server and to the client; activity and metrics alike."""
    arrival = Arrival(Trust(""), secure=secure, port=80, hsts_max_age_s=60)
    traffic = Traffic(warm=0, arrival=arrival)
    seen = []
    for _ in range(5):
        before, used = [list(counts) for counts in traffic.counted()], len(traffic.used)
        traffic.ask()
        asked = without_id(traffic.server_wire.sent)
        traffic.say(answer)
        counts = [[n - m for n, m in zip(*pair, strict=True)] for pair in zip(traffic.counted(), before, strict=True)]
        seen.append((asked, traffic.wire.sent, counts, traffic.used[used:]))
        traffic.wire.sent = traffic.server_wire.sent = b""
    assert len(traffic.pool.opened) == 1
    assert seen == [seen[0]] * 5
    status = int(answer[9:10])
    assert seen[0][2] == [[int(n == status) for n in range(6)]] * 2
    assert seen[0][3] == (["ada"] if status == 2 else [])
    assert [a.status for a in read_answers(seen[0][1], ["GET"])] == [int(answer[9:12])]


def test_every_request_has_an_id_of_its_own() -> None:
    traffic = Traffic()
    for _ in range(3):
        traffic.ask()
        traffic.say(OK)
    sent = traffic.server_wire.sent.split(b"\r\n")
    ids = [line for line in sent if line.startswith(b"X-Request-Id: ")]
    assert len(set(ids)) == len(ids) == 3
    assert len({len(one) for one in ids}) == 1


@pytest.mark.parametrize("method", [b"HEAD", b"POST", b"DELETE", b"OPTIONS"])
def test_other_methods_take_the_long_way(method: bytes) -> None:
    request, answer = GET.replace(b"GET", method), OK[:-2] if method == b"HEAD" else OK
    traffic = Traffic(request=request, answer=answer, warm=2)
    traffic.ask(request)
    assert not traffic.is_short()
    traffic.say(answer)
    assert traffic.wire.sent == answer


def test_a_known_answer_to_get_is_none_to_head() -> None:
    """The same head ends at another place."""
    traffic = Traffic()
    traffic.ask(GET.replace(b"GET", b"HEAD"))
    traffic.say(OK[:-2])
    traffic.ask()
    traffic.say(OK)
    assert traffic.wire.sent == OK[:-2] + OK


def test_a_connection_that_idles_remembers_nothing_by_itself() -> None:
    traffic = Traffic()
    traffic.client.tick(time.monotonic() + limits.REMEMBERED_S + 1)
    assert traffic.client._repeat is None
    traffic.ask()
    assert traffic.is_short(), "the router remembers it"


# What is looked at again


async def test_a_route_that_is_removed_lets_nobody_pass() -> None:
    traffic = Session()
    traffic.state.table.remove("", "/user/ada/")
    traffic.ask(traffic.request)
    assert not traffic.is_short()
    assert traffic.server_wire.sent == b""


async def test_a_route_that_leads_elsewhere_leads_the_next_request_there() -> None:
    traffic = Session()
    traffic.route(policy="owner", target="http://127.0.0.1:10", generation=2)
    traffic.ask(traffic.request)
    (first, before), (second, after) = traffic.pool.opened
    assert (first.target.port, before.sent) == (9, b"")
    assert (second.target.port, after.sent[:4]) == (10, b"GET ")


async def test_a_longer_route_takes_what_is_below_it() -> None:
    traffic = Traffic()
    traffic.route(prefix="/user/ada/x/", target="http://127.0.0.1:11", server_name="x")
    traffic.ask(GET.replace(b"/x ", b"/x/y "))
    traffic.ask()
    assert traffic.pool.opened[0][1].sent == b""


def test_other_routes_may_change() -> None:
    traffic = Session()
    traffic.route("carol")
    traffic.ask(traffic.request)
    assert traffic.is_short()


async def test_a_new_server_of_that_name_takes_its_path_from_the_default_one() -> None:
    traffic = Traffic(request=GET)
    traffic.apply(Stopped(server_id="n", user_id="ada", user_name="ada", name="x", generation=1))
    traffic.ask()
    assert not traffic.is_short()
    assert traffic.server_wire.sent == b""


async def test_a_policy_that_changed_asks_who_it_is() -> None:
    traffic = Traffic()
    traffic.route(policy="owner")
    traffic.ask()
    assert traffic.wire.sent.startswith(b"HTTP/1.1 302 ")
    assert traffic.server_wire.sent == b""


async def test_a_revoked_session_does_not_pass() -> None:
    traffic = Session()
    traffic.apply(SessionRevoked(session_id="j1", user_id="ada", issued_at=0.0, expires_at=time.time() + 3600))
    traffic.ask(traffic.request)
    assert traffic.wire.sent.startswith(b"HTTP/1.1 302 ")
    assert traffic.server_wire.sent == b""


async def test_an_expired_session_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Session(life_s=60)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    traffic.ask(traffic.request)
    assert traffic.wire.sent.startswith(b"HTTP/1.1 302 ")
    assert traffic.server_wire.sent == b""


def test_the_same_bytes_from_another_place_are_said_to_come_from_there() -> None:
    traffic = Traffic()
    traffic.client, _ = traffic.connect(Arrival(Trust(""), port=81))
    traffic.ask()
    assert b"X-Forwarded-Port: 81\r\n" in traffic.server_wire.sent


# What else may happen meanwhile


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


def test_what_goes_on_of_cookies_depends_on_who_sets_them() -> None:
    head = b"HTTP/1.1 200 OK\r\nset-Cookie: a=b\r\nContent-Length: 2"
    assert known_answer(head, 200, head + b"\r\n", 2) is None


@pytest.mark.parametrize("trusted", [False, True])
def test_each_host_and_each_word_of_a_trusted_proxy_goes_on(trusted: bool) -> None:
    traffic = Traffic(warm=1, arrival=Arrival(Trust(PEER if trusted else ""), port=80))
    for host, before in (("x", "10.0.0.1"), ("y", "10.0.0.1"), ("y", "10.0.0.2"), ("x", "10.0.0.1")):
        traffic.ask(f"GET /user/ada/ HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: {before}\r\n\r\n".encode())
        traffic.say(OK)
        told = f"X-Forwarded-For: {f'{before}, ' * trusted}{PEER}\r\nX-Forwarded-Host: {host}\r\n"
        assert told.encode() in traffic.server_wire.sent
        traffic.server_wire.sent = b""


def test_leave_is_a_value() -> None:
    """A plan that is used again is never changed by one of the requests that use it."""
    traffic = Traffic()
    repeat = traffic.client._repeat
    assert repeat is not None
    before = msgspec.structs.astuple(repeat.plan)
    traffic.ask()
    traffic.client.tick(0.0)
    traffic.say(OK)
    assert msgspec.structs.astuple(repeat.plan) == before


def test_lines_that_vary_go_on_as_they_came_each_time() -> None:
    """And those that are nobody's but ours to say do not."""
    traffic = Traffic()
    for tag in (b"1", b"1", b"2", b"1"):
        traffic.ask(GET[:-2] + b"If-None-Match: %b\r\nX-Request-Id: mine\r\nReferer: http://x/%b\r\n\r\n" % (tag, tag))
        assert traffic.is_short()
        traffic.say(OK)
        head = traffic.server_wire.sent
        assert head.count(b"\r\nIf-None-Match: %b\r\n" % tag) == head.count(b"\r\nReferer: http://x/%b\r\n" % tag) == 1
        assert b"mine" not in head
        traffic.server_wire.sent = b""
    traffic.ask(GET[:-2] + b"Referer: http://x/?token=" + TOKEN.encode() + b"\r\n\r\n")
    assert b"Referer" not in traffic.server_wire.sent
    traffic.say(OK)
    traffic.server_wire.sent = b""
    traffic.ask()
    assert b"If-None-Match" not in traffic.server_wire.sent


def test_a_line_that_varies_may_carry_a_servers_secret() -> None:
    """Then nobody else's goes on."""
    traffic = Traffic(warm=0)
    traffic.route(secret_header="X-Request-Id")
    for _ in range(3):
        traffic.ask(GET[:-2] + b"X-Request-Id: mine\r\nPragma: no-cache\r\n\r\n")
        traffic.say(OK)
    traffic.route(secret_header="Pragma")
    for number in range(3):
        traffic.ask(GET[:-2] + b"Pragma: mine\r\nRange: bytes=%d-\r\n\r\n" % number)
        traffic.say(OK)
    assert b"mine" not in traffic.server_wire.sent


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ANSWERS | st.sampled_from([OK, OK + OK]), st.lists(st.integers(0, 2000), max_size=2))
def test_both_ways_make_the_same_of_whatever_a_server_says(answer: bytes, places: list[int]) -> None:
    async def run() -> None:
        seen = []
        for short in (True, False):
            traffic = Traffic()
            if not short:
                traffic.client._send = lambda *_: False  # type: ignore[method-assign]
            for _ in range(2):
                if traffic.wire.closed:
                    break
                traffic.ask()
                assert traffic.is_short() == short or not traffic.client.quiet
                for piece in cut(answer, places):
                    if piece and not traffic.server_wire.closed:
                        traffic.say(piece)
                    await asyncio.sleep(0)
            told = [wire.closed for _, wire in traffic.pool.opened]
            seen.append((REQUEST_ID.sub(b"", traffic.wire.sent), traffic.wire.closed, told, traffic.counted()))
        assert seen[0] == seen[1]

    asyncio.run(run())


REQUEST_ID = re.compile(rb"[0-9a-z]{18}[0-9a-f]{8}")
