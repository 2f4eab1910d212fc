"""The routing table against a plain description of what it should find, and what a router holds against the log."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orrery_events.catalog.route import RouteRemoved, RouteSet, route_id_of
from orrery_events.catalog.server import Ready, Removed, Stopped, server_id_of
from orrery_events.catalog.user import UserCreated
from orrery_events.recorded import Meta, Recorded
from orrery_events.registry import Event, encode
from orrery_router.domain import SEGMENTS_MAX, Route, parse_target, route_of
from orrery_router.projections import NAMES_IN_A_TUPLE, RouterState
from orrery_router.table import Table

NAMES = st.sampled_from(["user", "ada", "bob", "app", "a", "hub", ""])
PREFIX = st.lists(NAMES.filter(bool), max_size=4).map(lambda parts: "/" + "".join(f"{p}/" for p in parts))
HOSTS = st.sampled_from(["", "a.example.org", "b.example.org"])


def set_event(prefix: str, host: str = "", target: str = "http://127.0.0.1:1", **more: Any) -> RouteSet:
    return RouteSet(route_id=route_id_of(prefix, host), prefix=prefix, host=host, target=target, **more)


def route(prefix: str, host: str = "") -> Route:
    return route_of(set_event(prefix, host))


def longest(routes: dict[tuple[str, str], Route], host: str, path: str) -> Route | None:
    """What the table should find, said as simply as possible."""
    for name in (host, ""):
        fits = [r for r in routes.values() if r.host == name and (path + "/").startswith(r.prefix)]
        if fits:
            return max(fits, key=lambda r: len(r.prefix))
    return None


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(["set", "set", "remove"]), PREFIX, HOSTS), max_size=30),
    st.lists(NAMES, min_size=1, max_size=6),
    HOSTS,
)
@example([("set", "/user/ada/", "")], ["user", "ada"], "")
@example([("set", "/", ""), ("remove", "/", "")], ["user"], "")
def test_the_longest_prefix_of_whole_segments_wins(
    changes: list[tuple[str, str, str]], parts: list[str], host: str
) -> None:
    table, model = Table(), dict[tuple[str, str], Route]()
    for what, prefix, name in changes:
        if what == "set":
            one = route(prefix, name)
            table.set(one)
            model[name, prefix] = one
        else:
            table.remove(name, prefix)
            model.pop((name, prefix), None)
    path = "/" + "/".join(parts)
    assert table.find(host, tuple(parts)) == longest(model, host, path)
    if "//" not in path:
        assert table.find_plain(host, path) == longest(model, host, path)
    assert {(r.host, r.prefix) for r in table.routes()} == set(model)
    assert len(table) == len(model)
    assert all(table.get(*place) == one for place, one in model.items())


@pytest.mark.parametrize(
    ("target", "prefix"),
    [
        (b"/user/ada", "/user/ada/"), (b"/user/ada/", "/user/ada/"), (b"/user/ada?x=/y/", "/user/ada/"),
        (b"/user/adam/", None), (b"/user/", None), (b"/User/ada/", None), (b"//user/ada/", None),
        (b"/user//ada/", None), (b"/user/ada//x", "/user/ada/"),
        (b"/%75ser/%61da/x", "/user/ada/"), (b"/user%2Fada/", None), (b"/user/ada%2Fapp/x", None),
        (b"/user/ada/app%2Fx", "/user/ada/"), (b"/user/ada/app/x", "/user/ada/app/"),
        (b"/user/my%20lab/", "/user/my lab/"), (b"/user/my+lab/", None), (b"/user/100%25/x", "/user/100%/"),
        (b"/user/100%2525/x", None), (b"/user/%C3%A9/", "/user/\N{LATIN SMALL LETTER E WITH ACUTE}/"),
        (b"/user/e%CC%81/", None), (b"/user/a%5Cb/", "/user/a\\b/"),
    ],
)  # fmt: skip
def test_how_a_path_is_decoded(target: bytes, prefix: str | None) -> None:
    table = Table()
    places = ["/user/ada/", "/user/ada/app/", "/user/my lab/", "/user/100%/", "/user/\u00e9/", "/user/a\\b/"]
    for place in places:
        table.set(route(place))
    path = parse_target(target)
    assert path is not None
    found = table.find("", path.segments)
    assert (found.prefix if found else None) == prefix


@pytest.mark.parametrize(
    ("host", "prefix"),
    [
        ("", "user/ada/"), ("", "/user/ada"), ("", "//"), ("", "/user//ada/"), ("", ""), ("A.example.org", "/"),
        ("", "/" + "a/" * SEGMENTS_MAX),
    ],
)  # fmt: skip
def test_a_place_has_one_spelling(host: str, prefix: str) -> None:
    with pytest.raises(ValueError, match="is no place in the table"):
        route(prefix, host)
    state = folded([set_event("/user/ada/"), set_event(prefix, host), removed(prefix, host)])
    assert [r.prefix for r in state.table.routes()] == ["/user/ada/"]


def test_the_deepest_prefix_is_found() -> None:
    table, prefix = Table(), "/" + "a/" * (SEGMENTS_MAX - 1)
    table.set(route(prefix))
    assert table.find_plain("", prefix + "b") is table.find("", tuple(["a"] * SEGMENTS_MAX)) is table.get("", prefix)


def removed(prefix: str, host: str = "") -> RouteRemoved:
    return RouteRemoved(route_id=route_id_of(prefix, host), prefix=prefix, host=host)


def folded(events: list[Event]) -> RouterState:
    state = RouterState()
    for position, event in enumerate(events, 1):
        recorded = Recorded(
            position=position, category=event.CATEGORY, category_seq=position, stream_id="s", stream_version=position,
            event_id=str(position), type=event.TYPE, schema_version=event.VERSION, data=encode(event),
            meta=Meta(traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"), recorded_at=0.0, epoch=1,
        )  # fmt: skip
        state.apply(recorded, recorded.event())
    return state


def compacted(events: list[Event]) -> list[Event]:
    """As es.latest has it."""
    last = {(event.CATEGORY, event.compaction_key()): event for event in events}
    return [event for event in events if last[event.CATEGORY, event.compaction_key()] is event and not event.TOMBSTONE]


PEOPLE = st.sampled_from(["ada", "bob"])
SERVERS = st.sampled_from(["", *(f"s{n}" for n in range(NAMES_IN_A_TUPLE + 2))])


@pytest.mark.invariant(3)
@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["ready", "ready", "ready", "stopped", "gone"]), PEOPLE, SERVERS), max_size=60)
)
def test_what_is_latest_says_as_much_as_everything(changes: list[tuple[str, str, str]]) -> None:
    events: list[Event] = []
    has: dict[str, set[str]] = {}
    for what, person, name in changes:
        prefix = f"/user/{person}/{name}/" if name else f"/user/{person}/"
        facts: dict[str, Any] = {
            "server_id": server_id_of(person, name),
            "user_id": person,
            "user_name": person,
            "name": name,
        }
        if what == "ready":
            events += [Ready(**facts, generation=1), set_event(prefix, owner_id=person)]
        else:
            events += [(Stopped if what == "stopped" else Removed)(**facts, generation=1), removed(prefix)]
        (has.setdefault(person, set()).discard if what == "gone" else has.setdefault(person, set()).add)(name)
    state = folded(events)
    assert state.digest() == folded(compacted(events)).digest()
    named = {person: names - {""} for person, names in has.items() if names - {""}}
    assert {person: set(names) for person, names in state.server_names.items()} == named


def test_a_route_shares_what_others_hold() -> None:
    events: list[Event] = [UserCreated(user_id="u" * 26, name="ada lovelace", created_at=1.0)]
    for name in ("a", "b"):
        prefix = f"/user/ada/{name}/"
        events.append(set_event(prefix, owner_id="u" * 26, owner_name="ada lovelace", secret_header="X-Own-Header"))
    state = folded(events)
    one, two = state.table.routes()
    user = state.identity.users["u" * 26]
    assert one.owner_id is two.owner_id is user.user_id
    assert one.owner_name is two.owner_name is user.name
    assert one.secret_header is two.secret_header
    assert one.target_host is two.target_host
    assert one.traceparent == "", "kept only where traces are sent"
