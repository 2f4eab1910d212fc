"""The registry of event types: type string and version to class.

An event is an immutable msgspec Struct. Additive changes keep the version (unknown fields are ignored on decoding, new
fields have defaults); a breaking change is a new version beside the old one. `docs/reference/events.md` is generated
from what is registered here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

import msgspec

from .errors import EventTooLarge, UnknownEventType

DATA_BYTES_MAX = 65_536
"""Upper bound of one event's encoded data; the log's table has the same check."""

CATEGORIES: tuple[str, ...] = ("user", "auth", "server", "route", "instance", "profile")
"""Every category, the unit by which a consumer filters and proves that it missed nothing."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all events. Subclasses are registered with `@event`."""

    TYPE: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1
    CATEGORY: ClassVar[str] = ""
    TOMBSTONE: ClassVar[bool] = False
    PUBLIC: ClassVar[bool] = False

    def aggregate_id(self) -> str:
        """The opaque id of the thing that this is about: the `<id>` part of the subject."""
        raise NotImplementedError(f"{type(self).__name__} must name its aggregate")

    def compaction_key(self) -> str | None:
        """Events with the same key in one category replace each other in `es.latest`; None stays out of it.

        The last event of a key must therefore say everything that a projection needs to know of that key.
        """
        return None


E = TypeVar("E", bound=Event)

_types: dict[str, type[Event]] = {}
_encoder = msgspec.json.Encoder()


def event(
    type_: str, *, version: int = 1, tombstone: bool = False, public: bool = True
) -> Callable[[type[E]], type[E]]:
    """Registers an event class under `<category>.<past_tense_fact>`.

    `tombstone`: the key is gone after this event. `public`: external subscribers may see it.
    """
    category = type_.split(".", 1)[0]
    if category not in CATEGORIES:
        raise ValueError(f"{type_}: unknown category {category!r}; add it to CATEGORIES first")

    def register(cls: type[E]) -> type[E]:
        if type_ in _types:
            raise ValueError(f"event type {type_} is registered twice")
        cls.TYPE, cls.VERSION, cls.CATEGORY, cls.TOMBSTONE, cls.PUBLIC = type_, version, category, tombstone, public
        _types[type_] = cls
        return cls

    return register


def encode(value: Event) -> bytes:
    """The event's data as JSON bytes, exactly as stored and relayed. Raises EventTooLarge."""
    data = _encoder.encode(value)
    if len(data) > DATA_BYTES_MAX:
        raise EventTooLarge(f"{value.TYPE}: {len(data)} bytes of data, at most {DATA_BYTES_MAX} are taken: shorten it")
    return data


def decode(type_: str, version: int, data: bytes) -> Event:
    """The typed event. Raises UnknownEventType for a type or a higher version that this code does not know."""
    cls = _types.get(type_)
    if cls is None or version > cls.VERSION:
        raise UnknownEventType(f"{type_} v{version} is not known here: a newer release wrote it; upgrade this process")
    decoder = _decoders.get(type_)
    if decoder is None:
        decoder = _decoders[type_] = msgspec.json.Decoder[Event](cls)
    return decoder.decode(data)


_decoders: dict[str, msgspec.json.Decoder[Event]] = {}


def registered() -> dict[str, type[Event]]:
    """All registered types, by type string, sorted."""
    return dict(sorted(_types.items()))
