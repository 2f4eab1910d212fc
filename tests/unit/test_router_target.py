"""Which target URLs are understood, and as what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery_events.catalog.route import RouteSet
from orrery_router.domain import Options, route_of
from orrery_router.target import Target, parse


@pytest.mark.parametrize(
    ("url", "target", "prepend"),
    [
        ("http://127.0.0.1:41234", Target("127.0.0.1", 41234), ""),
        ("http://127.0.0.1:41234/", Target("127.0.0.1", 41234), ""),
        ("http://name/pre/fix/", Target("name", 80), "/pre/fix"),
        ("http://name:1/a%20b", Target("name", 1), "/a%20b"),
        ("https://name", Target("name", 443, tls=True), ""),
        ("https://[2001:db8::1]:8443/x", Target("2001:db8::1", 8443, tls=True), "/x"),
        ("http://[::1]", Target("::1", 80), ""),
        ("http+unix://%2Frun%2Fx.sock", Target("", 0, socket_path="/run/x.sock"), ""),
        ("http+unix://%2Frun%2Fx.sock/pre", Target("", 0, socket_path="/run/x.sock"), "/pre"),
    ],
)
def test_what_is_understood(url: str, target: Target, prepend: str) -> None:
    assert parse(url) == (target, prepend)
    assert parse(target.url) == (target, ""), "and spelled again"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "name:80",
        "http://",
        "http:///x",
        "ftp://name",
        "http://:80",
        "http://name:",
        "http://name:0",
        "http://name:65536",
        "http://name:+1",
        "http://name:1:2",
        "http://user:secret@name",
        "http://::1:80",
        "http://[::1",
        "http://[::1]80",
        "http://[name]:80",
        "http://name:80?x",
        "http://name:80#x",
        "http://na me",
        "http://name\\x",
        "http://name/\r\nX: y",
        "http://name/../x",
        "http://name/a//b",
        "http://name/%2e%2e/x",
        "http://n%61me",
        "http://n\u00e4me",
        "http+unix://run/x.sock",
        "http+unix://%2Frun%00",
        "http+unix://%2F" + "x" * 107,
        "https+unix://%2Frun",
    ],
)
def test_what_is_not(url: str) -> None:
    with pytest.raises(ValueError, match=r"target|host:port|port between"):
        parse(url)


@given(st.text(max_size=40).map(lambda text: "http://" + text))
def test_whatever_is_taken_can_stand_in_a_request(url: str) -> None:
    try:
        target, prepend = parse(url)
    except ValueError:
        return
    assert target.host
    assert 0 < target.port < 65_536
    assert not prepend or (prepend.startswith("/") and not prepend.endswith("/") and prepend.isascii())
    assert not any(c <= " " for c in prepend)


def test_a_plain_route_does_not_pay_for_what_it_does_not_have() -> None:
    plain = RouteSet(route_id="r", prefix="/x/", target="http://name:1")
    assert route_of(plain).options is None
    rich = RouteSet(route_id="r", prefix="/x/", target="http://name:1/pre", identity_headers=True)
    assert route_of(rich).options == Options(prepend="/pre", identity_headers=True)
    secure = RouteSet(route_id="r", prefix="/x/", target="https://name:1")
    assert route_of(secure).target == Target("name", 1, tls=True)
