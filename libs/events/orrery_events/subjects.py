"""The only module that spells NATS subjects and the stream's name."""

from __future__ import annotations

from collections.abc import Iterable

STREAM = "ORRERY_EVENTS"
EVENT_ROOT = "orrery.v1.evt"
ALL_EVENTS = f"{EVENT_ROOT}.>"

HEAD = "orrery.v1.sys.head"
"""The relay's heartbeat, once a second: epoch, position and category sequences as Postgres has them."""
NUDGE = "orrery.v1.sys.nudge"
"""Sent by an appender after its commit, so that the relay need not wait for its next poll."""
ACTIVITY_ROOT = "orrery.v1.act"
"""`orrery.v1.act.<slot>`: routers report when servers were last used."""
PROXY_ACTIVITY = "orrery.v1.proxy.activity"
"""Replicas of `orrery proxy` tell one another when routes were last used."""


def event_subject(type_: str, aggregate_id: str) -> str:
    """`orrery.v1.evt.<category>.<aggregate_id>.<fact>`, e.g. `orrery.v1.evt.server.01j9.ready`."""
    category, _, fact = type_.partition(".")
    return f"{EVENT_ROOT}.{category}.{aggregate_id}.{fact}"


def fact_filter(type_: str) -> str:
    """All events of one type: `orrery.v1.evt.server.*.start_requested`."""
    category, _, fact = type_.partition(".")
    return f"{EVENT_ROOT}.{category}.*.{fact}"


def category_filters(categories: Iterable[str]) -> list[str]:
    """One filter per category: with exactly these a consumer can prove completeness by `category_seq`."""
    return [f"{EVENT_ROOT}.{category}.>" for category in sorted(categories)]


def activity_subject(slot: str) -> str:
    return f"{ACTIVITY_ROOT}.{slot.replace('.', '-').replace(' ', '-')}"
