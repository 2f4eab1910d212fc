"""What the relay tells Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

LEADING = Gauge("orrery_relay_leading", "1 while this instance holds the relay's lock.")
DIVERGED = Gauge("orrery_relay_diverged", "1 while the stream holds what Postgres lost and an operator must decide.")
POSITION = Gauge("orrery_relay_position", "Position up to which the log is on the stream.")
LAG = Gauge("orrery_relay_lag_events", "Events in the log that are not on the stream yet.")
RELAYED = Counter("orrery_relay_events", "Events published to the stream.")
RETRIES = Counter(
    "orrery_relay_retries", "Times that the relay had to look at the stream or Postgres anew.", ["reason"]
)
