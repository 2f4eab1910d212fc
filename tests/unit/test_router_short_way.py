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
