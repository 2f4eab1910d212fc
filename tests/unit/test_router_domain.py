"""The router's decisions against plain descriptions of what they should be."""

from __future__ import annotations

from ipaddress import ip_network
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orrery_events.principal import Principal
from orrery_router import domain, lines, passing
from orrery_router.domain import BadPath, parse_target
from orrery_router.passing import Peer


@settings(max_examples=500)
@given(st.binary(max_size=60).map(lambda raw: b"/" + raw))
@example(b"/user/%2e%2e/x")
@example(b"/a/%252e%252e/b")
@example(b"/a/%5c..%5c/b")
def test_what_is_routed_is_what_is_forwarded(target: bytes) -> None:
    """Whatever an upstream makes of the raw path, it cannot leave the prefix that was matched."""
    try:
        path = parse_target(target)
    except BadPath:
        return
    assert path is not None
    assert path.raw == target, "not one byte is changed"
    raw = target.partition(b"?")[0]
    for reading in (raw, unquote_to_bytes(raw), unquote_to_bytes(unquote_to_bytes(raw))):
        parts = reading.replace(b"\\", b"/").split(b"/")
        assert b"." not in parts
        assert b".." not in parts
    if not path.ambiguous:
        decoded = [part.decode() for part in unquote_to_bytes(raw).split(b"/")[1:]]
        assert list(path.segments) == decoded[: domain.SEGMENTS_MAX]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1), min_size=1, max_size=5))
def test_segments_are_decoded(parts: list[str]) -> None:
    if any(part in (".", "..") or "%" in part for part in parts):
        return
    path = parse_target(("/" + "/".join(quote(part, safe="") for part in parts)).encode())
    assert path is not None
    assert path.segments == tuple(parts)


@pytest.mark.parametrize(
    ("target", "base", "text"),
    [
        (b"/x", "/", "/x"), (b"/hub-a/x", "/hub-a/", "/x"), (b"/hub-a", "/hub-a/", "/"), (b"/hub-a/", "/hub-a/", "/"),
        (b"/hub-ab/x", "/hub-a/", None), (b"/", "/hub-a/", None), (b"/hub-a?x=1", "/hub-a/", "/"),
    ],
)  # fmt: skip
def test_below_a_base_path(target: bytes, base: str, text: str | None) -> None:
    path = parse_target(target, base)
    assert (path.text if path else None) == text


def principal(user: str = "u", *, admin: bool = False, kind: str = "session", scopes: str = "") -> Principal:
    return Principal(
        user_id=user, name=user, admin=admin, kind="session" if kind == "session" else "token", id="i",
        scopes=frozenset(scopes.split()), expires_at=None, issued_at=0.0,
    )  # fmt: skip


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    ("who", "policy", "verdict"),
    [
        (None, "public", "pass"),
        (None, "owner", "sign_in"),
        (None, "authenticated", "sign_in"),
        (None, "made-up", "sign_in"),
        (principal("other"), "authenticated", "pass"),
        (principal("other"), "owner", "forbidden"),
        (principal("u"), "owner", "pass"),
        (principal("u"), "made-up", "forbidden"),
        (principal("root", admin=True), "owner", "pass"),
        (principal("root", admin=True), "made-up", "forbidden"),
        (principal("u", kind="token", scopes="inherit"), "owner", "pass"),
        (principal("u", kind="token", scopes="access:servers!user=u"), "owner", "pass"),
        (principal("u", kind="token", scopes="read:users"), "owner", "forbidden"),
        (principal("u", kind="token"), "owner", "forbidden"),
        (principal("root", admin=True, kind="token", scopes="read:users"), "owner", "forbidden"),
    ],
)
def test_access(who: Principal | None, policy: str, verdict: str) -> None:
    assert domain.decide_access(policy, "u", who) == verdict


def test_what_a_trusted_proxy_says() -> None:
    sent = [(b"X-Forwarded-For", b"1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2"), (b"X-Forwarded-Proto", b"https"),
            (b"X-Forwarded-Host", b"hub.example.org:8443, inner")]  # fmt: skip
    said = [lines.line_of(name, value) for name, value in sent]
    stranger = passing.came_from(said, b"inner:1", Peer("9.9.9.9", trusted=False, port=b"8000"))
    assert stranger == passing.Came(b"9.9.9.9", b"http", b"inner:1", b"8000")
    proxy = passing.came_from(said, b"inner:1", Peer("9.9.9.9", trusted=True, port=b"8000"))
    assert proxy == passing.Came(b"1.1.1.1, 2.2.2.2, 9.9.9.9", b"https", b"hub.example.org:8443", b"8443")
    assert passing.came_from([], b"x", Peer("9.9.9.9", trusted=True, port=b"8000")).port == b"80"
    assert passing.same_origin(b"https://HUB.example.org:8443", proxy)
    assert not passing.same_origin(b"http://hub.example.org:8443", proxy)
    assert not passing.same_origin(b"https://hub.example.org", proxy)


def test_networks() -> None:
    networks = passing.networks_of("10.0.0.0/8, ::1,")
    assert networks == (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert passing.is_in("10.9.8.7", networks)
    assert passing.is_in("::1%lo", networks)
    assert not passing.is_in("11.0.0.1", networks)
    assert not passing.is_in("", networks)
    assert not passing.is_in("10.9.8.7", ())
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/99"):
        passing.networks_of("10.0.0.0/99")


def test_the_default_port_is_no_other_origin() -> None:
    came = passing.Came(b"", b"http", b"hub:80", b"80")
    assert passing.same_origin(b"http://hub", came)
    assert passing.origin_of("https://Hub.example.org/lab") == b"https://hub.example.org"
    assert passing.origin_of("") == b""


@pytest.mark.parametrize(
    ("cookie", "left"),
    [
        (b"a=1; orrery-session=x; b=2", b"a=1; b=2"), (b"orrery-session=x", b""), (b" orrery-position=1;a=1", b"a=1"),
        (b"orrery-sessions=x", b"orrery-sessions=x"), (b"a=orrery-session", b"a=orrery-session"),
        (b'orrery-session="x"; a', b"a"),
    ],
)  # fmt: skip
def test_cookies(cookie: bytes, left: bytes) -> None:
    assert lines.cookies_without(cookie, lines.PLATFORM_COOKIES) == left


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("Set-Cookie", "own=1; Path=/user/ada/", True), ("Set-Cookie", "_xsrf=1; Path=/user/ada/", True),
        ("Set-Cookie", "_xsrf=1; Path=/", False), ("Set-Cookie", "_xsrf=1; path=/hub/login", False),
        ("set-cookie", "orrery-session=1; Path=/user/ada/", False), ("Set-Cookie", " orrery-session =1", False),
        ("Set-Cookie", "_xsrf=1", False), ("Connection", "X-Hop", False), ("X-Hop", "1", False), ("X-Own", "1", True),
    ],
)  # fmt: skip
def test_what_a_server_may_answer(name: str, value: str, kept: bool) -> None:
    line = f"{name}: {value}".encode()
    head = b"\r\n".join([b"HTTP/1.1 200 OK", line, b"Connection: x-hop", b"X-Last: 1"])
    passed = passing.from_upstream(head, trusted=False, base_url="/").lines
    assert passed == b"HTTP/1.1 200 OK\r\n" + (line + b"\r\n" if kept else b"") + b"X-Last: 1\r\n"


@pytest.mark.parametrize(
    ("head", "line", "length"),
    [
        ("HTTP/1.1 200 OK\r\nContent-Length: 7", "HTTP/1.1 200 OK", 7), ("HTTP/1.0 404 No", "HTTP/1.1 404 No", -1),
        ("HTTP/1.1 204 x\r\ncontent-length:0", "HTTP/1.1 204 x", 0), ("HTTP/1.1 299", "HTTP/1.1 299 ", -1),
    ],
)  # fmt: skip
def test_the_first_line_of_an_answer(head: str, line: str, length: int) -> None:
    passed = passing.from_upstream(head.encode(), trusted=False, base_url="/")
    assert (passed.lines.split(b"\r\n")[0].decode(), passed.length) == (line, length)
    assert (b"ontent-" in passed.lines) == (length > 0), "204 has no length (RFC 9110, section 8.6)"
