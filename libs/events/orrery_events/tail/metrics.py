"""What a tail tells Prometheus. One label, `tail`: the name given by the process, never anything from an event."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

STALENESS = Gauge(
    "orrery_tail_staleness_seconds", "Time since it was last proven that the projection misses nothing.", ["tail"]
)
POSITION = Gauge("orrery_tail_position", "Position of the log up to which everything is applied.", ["tail"])
LAG = Gauge("orrery_tail_lag_events", "Events between the highest head heard of and the position.", ["tail"])
MODE = Gauge("orrery_tail_mode", "1 for the way by which the tail is fed at present.", ["tail", "mode"])
GAPS = Counter("orrery_tail_gap_repaired", "Times that JetStream missed events and Postgres was read.", ["tail"])
SKIPPED = Counter(
    "orrery_tail_events_skipped", "Events that this release does not know or could not apply.", ["tail", "reason"]
)
REPLAY_DURATION = Gauge("orrery_replay_duration_seconds", "Duration of the last rebuild.", ["tail"])
REPLAY_EVENTS = Counter("orrery_replay_events", "Events applied in rebuilds.", ["tail"])


def update(tail: str, *, mode: str, position: int, lag: int, staleness_s: float, gaps: int) -> None:
    """`gaps`: how many were found since the last update."""
    STALENESS.labels(tail).set(staleness_s)
    POSITION.labels(tail).set(position)
    LAG.labels(tail).set(lag)
    GAPS.labels(tail).inc(gaps)
    for other in ("jetstream", "pg_poll", "stale"):
        MODE.labels(tail, other).set(1 if other == mode else 0)
