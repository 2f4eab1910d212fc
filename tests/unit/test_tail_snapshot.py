"""A projection on disk: what is read is what was written, or nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery_events.catalog.route import RouteSet, route_id_of
from orrery_events.catalog.user import UserCreated
from orrery_events.recorded import Meta, Recorded
from orrery_events.registry import Event, encode
from orrery_events.tail import snapshot
from orrery_events.tail.snapshot import Header, Restored, SnapshotFile, SnapshotRefused
from orrery_router.projections import CATEGORIES, RouterState

KEY = b"k" * 32
HEADER = Header(name="router", categories=CATEGORIES, log_id="log", epoch=3, position=100, seqs={"user": 7, "route": 9})


def recorded(event: Event, seq: int, position: int, epoch: int = 3) -> Recorded:
    return Recorded(
        position=position, category=event.CATEGORY, category_seq=seq, stream_id="s", stream_version=seq,
        event_id=str(position), type=event.TYPE, schema_version=event.VERSION, data=encode(event), meta=Meta(),
        recorded_at=1.5, epoch=epoch,
    )  # fmt: skip


def route(number: int) -> RouteSet:
    prefix = f"/user/u{number}/"
    return RouteSet(route_id=route_id_of(prefix), prefix=prefix, target="http://127.0.0.1:1", owner_id=f"id-{number}")


def filled(count: int = 450) -> RouterState:
    state = RouterState()
    for number in range(count):
        for event in (UserCreated(user_id=f"id-{number}", name=f"u{number}"), route(number)):
            state.apply(recorded(event, 1, 1), event)
    return state


SINCE = [recorded(route(1000 + n), 10 + n, 105 + n) for n in range(3)]
"""Applied after the state."""


def written(path: Path, *, state: RouterState | None = None, since: Sequence[Recorded] = SINCE) -> SnapshotFile:
    file = SnapshotFile(path, KEY)
    file.write_state(HEADER, (state or filled()).sections())
    file.take_over(since[:1])
    file.add_all(since[1:])
    file.close()
    return file


def opened(path: Path, key: bytes = KEY, name: str = "router") -> tuple[RouterState, Restored]:
    state = RouterState()
    return state, snapshot.read(path, key, name=name, categories=CATEGORIES, state=state)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshots" / "router" / "router-1.snapshot"


def test_what_was_written_is_read(path: Path) -> None:
    before = filled()
    file = written(path, state=before)
    state, found = opened(path)
    assert state.digest() == before.digest()
    assert state.identity.user_by_name("u7") == before.identity.user_by_name("u7")
    assert (found.header, found.events, found.position) == (HEADER, SINCE, 107)
    assert found.seqs == {"user": 7, "route": 12}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]
    assert file.bytes_written == path.stat().st_size
    one, two = state.table.get("", "/user/u1/"), state.identity.users["id-1"]
    assert one is not None
    assert one.owner_id is two.user_id, "shared as before"


@settings(max_examples=150, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(["cut", "flip", "insert"]))
def test_a_damaged_file_is_refused_or_ends_early(
    tmp_path_factory: pytest.TempPathFactory, share: float, how: str
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.snapshot"
    before = filled(3)
    file = written(path, state=before)
    data, at = path.read_bytes(), int(share * path.stat().st_size)
    middle = {"cut": b"", "flip": bytes([data[at] ^ 1]), "insert": b"\0" + data[at : at + 1]}[how]
    path.write_bytes(data[:at] + middle + (b"" if how == "cut" else data[at + 1 :]))
    try:
        state, found = opened(path)
    except SnapshotRefused:
        assert at < file.state_bytes, "the state was not touched"
    else:
        assert at >= file.state_bytes
        assert state.digest() == before.digest()
        assert found.events == SINCE[: len(found.events)] != SINCE


def test_a_piece_of_another_file_does_not_fit(path: Path, tmp_path: Path) -> None:
    first = written(path)
    other = tmp_path / "other.snapshot"
    second = written(other, since=[recorded(route(n), 10 + n, 200 + n) for n in range(3)])
    spliced = path.read_bytes()[: first.state_bytes] + other.read_bytes()[second.state_bytes :]
    assert first.state_bytes == second.state_bytes
    path.write_bytes(path.read_bytes()[: first.bytes_written] + other.read_bytes()[second.state_bytes :])
    assert opened(path)[1].events == SINCE
    path.write_bytes(spliced[:-1])
    assert len(opened(path)[1].events) == 2


@pytest.mark.parametrize(
    ("event", "reason"),
    [(recorded(route(1), 14, 110), "a gap"), (recorded(route(1), 13, 110, epoch=4), "another epoch")],
)
def test_events_that_do_not_follow_are_not_taken(path: Path, event: Recorded, reason: str) -> None:
    written(path, since=[*SINCE, event])
    assert opened(path)[1].events == SINCE, reason


def test_a_file_of_somebody_else_is_refused(path: Path) -> None:
    written(path)
    with pytest.raises(SnapshotRefused, match="another platform"):
        opened(path, key=b"x" * 32)
    with pytest.raises(SnapshotRefused, match="not of 'api'"):
        opened(path, name="api")
    link = path.with_name("link.snapshot")
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        opened(link)
    path.write_bytes(b"something else")
    with pytest.raises(SnapshotRefused, match="not a snapshot"):
        opened(path)


def test_a_new_field_has_its_default_and_a_broken_item_is_refused(path: Path) -> None:
    class Old(RouterState):
        """As a release wrote it whose backends knew less."""

        def sections(self) -> dict[str, list[object]]:
            backend = {"slot": "api-1", "instance_id": "i", "service": "api", "target": ["h", self.port]}
            return {"backends": [backend], "of_a_later_release": [1, 2]}

        port: object = 1

    written(path, state=Old(), since=[])
    assert opened(path)[0].backends["api-1"].draining is False
    Old.port = "none"
    written(path, state=Old(), since=[])
    with pytest.raises(SnapshotRefused, match="release"):
        opened(path)


def test_what_is_too_large_is_neither_written_nor_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path)
    size = path.stat().st_size
    monkeypatch.setattr(snapshot, "BYTES_MAX", size // 2)
    with pytest.raises(SnapshotRefused, match="larger"):
        written(path)
    assert list(path.parent.iterdir()) == [path], "nothing is left behind, and the old one stays"
    with pytest.raises(SnapshotRefused, match="larger"):
        opened(path)


def test_the_own_file_comes_first_then_the_newest_of_the_siblings(path: Path) -> None:
    assert snapshot.candidates(path) == []
    one, two = path.with_name("router-2.snapshot"), path.with_name("router-3.snapshot")
    for number, each in enumerate((two, one, path)):
        written(each, state=filled(1))
        os.utime(each, (number, number))
    (path.parent / ".router-4.snapshot.fresh").write_bytes(b"")
    assert snapshot.candidates(path) == [path, one, two]
    path.unlink()
    assert snapshot.candidates(path) == [one, two]
