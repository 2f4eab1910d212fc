"""What a tail tells Prometheus. One label, `tail`: the name given by the process, never anything from an event."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from .machine import TailMachine

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
RESTORED = Gauge(
    "orrery_tail_restored", "1 while the projection is one from disk that nobody has confirmed since.", ["tail"]
)
SNAPSHOT_BYTES = Gauge("orrery_tail_snapshot_bytes", "Size of the projection's snapshot on disk.", ["tail"])
SNAPSHOT_FAILURES = Counter("orrery_tail_snapshot_failures", "Snapshots that could not be written.", ["tail"])


def update(tail: str, machine: TailMachine, now: float, *, gaps: int, restored: bool) -> None:
    """`gaps`: how many were found since the last update."""
    STALENESS.labels(tail).set(now - machine.proof_at)
    POSITION.labels(tail).set(machine.position)
    LAG.labels(tail).set(machine.lag)
    GAPS.labels(tail).inc(gaps)
    RESTORED.labels(tail).set(restored)
    mode = machine.mode(now)
    for other in ("jetstream", "pg_poll", "stale"):
        MODE.labels(tail, other).set(other == mode)
