"""Prometheus metrics that every process has. All names begin with `orrery_`; `docs/reference/metrics.md` is generated.

Services define their own beside these, on the default registry, with labels whose values are few and known: never a
user's or server's name or id.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The buckets that OpenTelemetry's HTTP conventions advise."""

BUILD_INFO = Gauge("orrery_build_info", "Always 1; the version is in the label.", ["version", "service"])
EVENT_LOOP_LAG = Gauge(
    "orrery_event_loop_lag_seconds", "How late the event loop last ran a timer that was due.", ["service"]
)
READY = Gauge("orrery_ready", "1 while the process takes work.", ["service"])
BUS_CONNECTED = Gauge("orrery_bus_connected", "1 while there is a connection to NATS.")
LEASE_FRESH = Gauge("orrery_lease_fresh", "1 while this process's lease was refreshed in time.")
TASK_FAILURES = Counter("orrery_task_failures_total", "Background tasks that ended with an error.", ["task"])
HTTP_DURATION = Histogram(
    "orrery_http_request_duration_seconds",
    "Time from a request's head to its answer's end.",
    ["method", "route", "code"],
    buckets=DURATION_BUCKETS_S,
)
HTTP_IN_PROGRESS = Gauge("orrery_http_requests_in_progress", "Requests that are being answered.")


def exposition() -> bytes:
    """All metrics in Prometheus's text format."""
    return generate_latest(REGISTRY)
