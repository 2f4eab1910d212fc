"""Keys, targets and heads of `orrery proxy`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery_events.catalog.route import PROXY, RouteRemoved, RouteSet, proxy_route_id_of, route_id_of
from orrery_events.recorded import Meta, Recorded
from orrery_events.registry import Event, encode
from orrery_router.chp import domain
from orrery_router.chp.projections import ProxyState
from orrery_router.chp.routes import moment_of, timestamp
from orrery_router.domain import BadPath
from orrery_router.projections import RouterState


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/api/routes", "/"), ("/api/routes/", "/"), ("/api/routes?x=/y", "/"), ("/api/routes/user/ada", "/user/ada"),
        ("/api/routes/user/ada/", "/user/ada"), ("/api/routes/user/f%40o%2Fx", "/user/f@o/x"),
        ("/api/routes/../../api/routes/a", "/a"), ("/api/routes/a/%2E%2e/b", "/b"), ("/api/routes/a/..", "/"),
        ("/api/routes/.", "/"), ("/api", None), ("/", None), ("/api/routesx", None), ("/api/routes/../x", None),
    ],
)  # fmt: skip
def test_keys(path: str, key: str | None) -> None:
    assert domain.key_of(path) == key


@pytest.mark.parametrize("path", ["/api/routes/%", "/api/routes/%4", "/api/routes/%g0", "/api/routes/%ff"])
def test_escapes_that_are_none(path: str) -> None:
    with pytest.raises(BadPath):
        domain.key_of(path)


KEYS = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(KEYS, max_size=5), st.booleans())
def test_a_key_is_a_place_and_back(parts: list[str], host_routing: bool) -> None:
    if host_routing and parts:
        parts = [parts[0].lower(), *parts[1:]]
    key = "/" + "/".join(parts)
    host, prefix = domain.place_of(key, host_routing=host_routing)
    assert prefix.startswith("/")
    assert prefix.endswith("/")
    assert domain.key_at(host, prefix) == key
    assert len(domain.segments_of(prefix)) == len(parts) - bool(host)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:8888", (False, "127.0.0.1", 8888, b"/", b"")),
        ("http://hub/", (False, "hub", 80, b"/", b"")),
        ("https://[::1]:1/pre/x?a=b", (True, "::1", 1, b"/pre/x", b"a=b")),
        ("http://h:1/a b", (False, "h", 1, b"/a%20b", b"")),
        ("http+unix://%2Frun%2Fx.sock/pre", (False, "/run/x.sock", 0, b"/pre", b"")), ("http+unix://x", None),
        ("no url", None), ("ftp://h:1", None), ("http://", None), ("http://h:99999", None), ("http://h:x", None),
    ],
)  # fmt: skip
def test_targets(url: str, found: tuple[bool, str, int, bytes, bytes] | None) -> None:
    upstream = domain.upstream_of(url)
    if found is None:
        assert upstream is None
    else:
        assert upstream is not None
        target = upstream.target
        assert (target.tls, target.socket_path or target.host, target.port, upstream.path, upstream.query) == found


def path_for(raw: bytes, url: str, depth: int = 0, *, include: bool = True, prepend: bool = True) -> bytes:
    upstream = domain.upstream_of(url)
    assert upstream is not None
    return domain.path_for(domain.wanted_of(raw), upstream, depth, include_prefix=include, prepend_path=prepend)


def test_paths_for_targets() -> None:
    assert path_for(b"/user/f/x?q", "http://h:1") == b"/user/f/x?q"
    assert path_for(b"/user/f/x?q", "http://h:1/pre/") == b"/pre/user/f/x?q"
    assert path_for(b"/user/f/x?q", "http://h:1/pre?a=b") == b"/pre/user/f/x?a=b&q"
    assert path_for(b"/user/f/x?q", "http://h:1/pre", 2, include=False) == b"/pre/x?q"
    assert path_for(b"/user/f", "http://h:1/pre", 2, include=False) == b"/pre/"
    assert path_for(b"/user/f/x", "http://h:1/pre", 2, include=False, prepend=False) == b"/x"
    assert path_for(b"/user/f%40o/x", "http://h:1", 2, include=False) == b"/x"
    assert path_for(b"/user%2Ff/x", "http://h:1", 2, include=False) == b"/x"
    with pytest.raises(BadPath):
        path_for(b"/user/f%2Fx/y", "http://h:1", 2, include=False)


@pytest.mark.parametrize("path", [b"/a/../b", b"/a/%2e%2E/b", b"/a%2f..%2fb", b"/%", b"/%4", b"/%ff", b"x", b"/a#b"])
def test_paths_that_are_refused(path: bytes) -> None:
    with pytest.raises(BadPath):
        domain.wanted_of(path)


def test_a_redirect_is_rewritten_only_if_it_leads_to_the_target() -> None:
    upstream = domain.upstream_of("http://h:80/pre")
    assert upstream is not None
    for location, expected in (
        ("http://h/a?b", "https://pub:8000/a?b"), ("http://H:80/a", "https://pub:8000/a"),
        ("http://h", "https://pub:8000/"), ("http://h:81/a", "http://h:81/a"), ("/a", "/a"), ("", ""),
        ("//h/a", "//h/a"),
    ):  # fmt: skip
        found = domain.location_for(location, upstream, "pub:8000", auto_rewrite=True, protocol_rewrite="https")
        assert found == expected, location
    assert domain.location_for("http://h/a", upstream, "x", auto_rewrite=False, protocol_rewrite="") == "http://h/a"


def recorded(position: int, event: Event, actor: str = "") -> Recorded:
    return Recorded(
        position=position, category="route", category_seq=position, stream_id="route-x", stream_version=1, event_id="e",
        type=event.TYPE, schema_version=1, data=encode(event), meta=Meta(actor=actor), recorded_at=1000.0 + position,
        epoch=1,
    )  # fmt: skip


def route(key: str, target: str = "http://h:1") -> RouteSet:
    host, prefix = domain.place_of(key, host_routing=False)
    return RouteSet(
        route_id=proxy_route_id_of(prefix, host), prefix=prefix, target=target, policy=PROXY, data={"target": target}
    )


def fold(*events: Event) -> ProxyState:
    state = ProxyState()
    for position, event in enumerate(events, 1):
        state.apply(recorded(position, event), event)
    return state


def found(state: ProxyState, path: str) -> str | None:
    entry, _ = state.find("", tuple(path[1:].split("/")))
    return entry.key if entry else None


def test_the_longest_prefix_wins_and_what_is_removed_is_gone() -> None:
    top, user, lab = route("/"), route("/user/foo"), route("/user/foo/lab")
    state = fold(top, user, lab)
    assert found(state, "/user/foo/lab/x") == "/user/foo/lab"
    assert found(state, "/user/foo/labs") == "/user/foo"
    assert found(state, "/user/foobar") == "/"
    state = fold(top, user, lab, RouteRemoved(route_id=lab.route_id, prefix=lab.prefix, policy=PROXY))
    assert found(state, "/user/foo/lab/x") == "/user/foo"
    assert state.digest() == fold(user, top).digest()


def test_a_request_that_a_new_route_may_be_meant_for_is_worth_a_second_look() -> None:
    state = fold(route("/"), route("/team/a/b"))
    for path, newer in (
        ("/hub/login", False), ("/", False), ("/user/new/", True), ("/services/new/x", True), ("/team/a/c", True),
        ("/team/b/c", False), ("/team/a/b/x", False), ("/user", False),
    ):  # fmt: skip
        assert state.find("", tuple(path[1:].split("/")))[1] is newer, path


def test_platform_and_proxy_do_not_see_each_other_s_routes() -> None:
    theirs = RouteSet(
        route_id=route_id_of("/user/ada/"), prefix="/user/ada/", target="http://127.0.0.1:1", policy="public"
    )
    ours = route("/user/ada", "http://127.0.0.1:2/x")
    platform, proxy = RouterState(), ProxyState()
    gone = RouteRemoved(route_id=ours.route_id, prefix=ours.prefix, policy=PROXY)
    events: list[Event] = [theirs, ours, gone]
    for position, event in enumerate(events, 1):
        platform.apply(recorded(position, event), event)
        proxy.apply(recorded(position, event), event)
        assert [r.target.port for r in platform.table.routes()] == [1]
        assert len(proxy.entries) == (1 if position == 2 else 0)


def test_moments() -> None:
    assert timestamp(0.0015) == "1970-01-01T00:00:00.001Z"
    assert moment_of("1970-01-01T00:00:01Z") == 1.0
    assert moment_of("1970-01-01T02:00:00+02:00") == 0.0
    assert moment_of("1970-01-02") == 86_400.0
    assert moment_of("yesterday") is None
