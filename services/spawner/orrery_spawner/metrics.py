"""The spawner's own metrics. Labels have few, known values: never a user's or a server's name."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

STEP_DURATION = Histogram(
    "orrery_spawn_step_duration_seconds",
    "Time that one step of a start took.",
    ["backend", "step", "outcome"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
STARTS_IN_PROGRESS = Gauge("orrery_spawns_in_progress", "Starts that this process has claimed.", ["backend"])
STARTS_WAITING = Gauge("orrery_spawns_waiting", "Start requests that wait for a free slot here.")
STARTS = Counter("orrery_spawns_total", "Starts that came to an end here.", ["backend", "outcome"])
STOPS = Counter("orrery_server_stops_total", "Servers that ended, by reason.", ["reason"])
DRIFT = Gauge(
    "orrery_reconcile_drift_servers",
    "Servers whose actual state differed from the wished-for one in the last pass.",
    ["kind"],
)
RECONCILE_DURATION = Histogram(
    "orrery_reconcile_duration_seconds",
    "Time that one pass of the reconciler took.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
DRIVER_FAILURES = Counter("orrery_driver_unavailable_total", "Times that a driver could not answer.", ["backend"])
