"""The contract of events: what was ever stored must decode for ever, and travel the bus unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery_events import catalog, recorded, subjects
from orrery_events.errors import EventTooLarge, UnknownEventType
from orrery_events.ids import derived_id, new_id
from orrery_events.recorded import Meta, Recorded
from orrery_events.registry import CATEGORIES, DATA_BYTES_MAX, Event, decode, encode, event, registered

CORPUS = Path(__file__).parent / "fixtures" / "events"
"""One stored JSON per (type, version) ever produced. Files are added, never changed."""

SAFE_ID = st.from_regex(r"[a-z2-7]{1,26}", fullmatch=True)


def sample(cls: type[Event]) -> Event:
    """An event of this class with every required field filled."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(cls):
        if field.name == "profile" and cls is catalog.profile.ProfileDefined:
            values["profile"] = catalog.profile.Profile(name="some-name", command=["x"])
        elif field.required:
            kind = field.type
            values[field.name] = {str: f"some-{field.name}", int: 7, float: 1_700_000_000.25}[kind]
    return cls(**values)


@pytest.mark.parametrize("type_", registered())
def test_every_event_ever_stored_still_decodes(type_: str) -> None:
    cls = registered()[type_]
    stored = CORPUS / f"{type_}.v{cls.VERSION}.json"
    assert stored.exists(), f"add {stored.name}: the JSON of one such event, as it will stand in logs for ever"
    assert decode(type_, cls.VERSION, stored.read_bytes().strip()) == sample(cls)


@pytest.mark.parametrize("type_", registered())
def test_every_event_survives_encoding(type_: str) -> None:
    original = sample(registered()[type_])
    assert decode(type_, original.VERSION, encode(original)) == original


@pytest.mark.parametrize("type_", registered())
def test_subjects_hold_no_character_with_a_meaning(type_: str) -> None:
    cls = registered()[type_]
    subject = subjects.event_subject(type_, new_id())
    assert subject.count(".") == subjects.EVENT_ROOT.count(".") + 3
    assert cls.CATEGORY in CATEGORIES
    assert not set("*> \t") & set(subject)


def test_unknown_fields_are_ignored_and_unknown_types_refused() -> None:
    data = json.loads(encode(sample(catalog.server.Ready))) | {"from_the_future": {"x": 1}}
    assert decode("server.ready", 1, json.dumps(data).encode()) == sample(catalog.server.Ready)
    with pytest.raises(UnknownEventType, match="upgrade"):
        decode("server.teleported", 1, b"{}")
    with pytest.raises(UnknownEventType):
        decode("server.ready", 2, json.dumps(data).encode())


def test_an_oversized_event_is_refused_before_it_is_queued() -> None:
    with pytest.raises(EventTooLarge, match="shorten"):
        encode(catalog.server.Failed(**_identity(), reason="exited", message="x" * DATA_BYTES_MAX))


def test_a_type_is_registered_once_and_in_a_known_category() -> None:
    with pytest.raises(ValueError, match="twice"):
        event("server.ready")(catalog.server.Ready)
    with pytest.raises(ValueError, match="unknown category"):
        event("planet.aligned")


def _identity() -> dict[str, Any]:
    return {"server_id": "s", "user_id": "u", "user_name": "ada", "generation": 1}


@given(
    position=st.integers(1, 2**62),
    category_seq=st.integers(1, 2**62),
    actor=st.text(max_size=40),
    producer=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    stream_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    micros=st.integers(0, 4_000_000_000 * 1_000_000),
)
def test_a_message_on_the_bus_is_the_row_in_the_log(
    *, position: int, category_seq: int, actor: str, producer: str, stream_id: str, micros: int
) -> None:
    row = Recorded(
        position=position,
        category="server",
        category_seq=category_seq,
        stream_id=stream_id,
        stream_version=3,
        event_id="0199f2d4-0000-7000-8000-000000000000",
        type="server.ready",
        schema_version=1,
        data=b'{"a":1}',
        meta=Meta(actor=actor, producer=producer, traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
        recorded_at=micros / 1_000_000,
        epoch=1,
    )
    headers = recorded.to_headers(row)
    for value in headers.values():
        assert all("\x21" <= c <= "\x7e" for c in value), value
    back = recorded.from_message(headers, row.data)
    assert msgspec.structs.replace(back, recorded_at=0) == msgspec.structs.replace(row, recorded_at=0)
    assert abs(back.recorded_at - row.recorded_at) < 2e-6


def test_ids_are_opaque_and_derived_ids_meet() -> None:
    assert derived_id("server", "u", "lab") == derived_id("server", "u", "lab")
    assert derived_id("server", "ul", "ab") != derived_id("server", "u", "lab")
    for value in (new_id(), derived_id("x", "../../*.>")):
        assert len(value) == 26
        assert value.isalnum()
        assert value == value.lower()
    ids = [new_id() for _ in range(100)]
    assert len(set(ids)) == 100
