"""Every bound of the data plane, in one place: what an admin may set, then what nobody needs to."""

from __future__ import annotations

from typing import Final

import msgspec

from orrery_runtime.config import Settings


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """From the settings."""

    head_bytes_max: int
    """Request line and headers together; more is 431."""
    body_bytes_max: int
    """Of a request to a user's server; more is 413; 0 is without limit."""
    connections_max: int
    head_timeout_s: float
    """From the first byte of a request to the end of its head."""
    keepalive_timeout_s: float
    body_timeout_s: float
    """Between two pieces of a request's body."""
    connect_timeout_s: float
    response_timeout_s: float
    """From the end of a request to the first byte of its answer; long polls take their time."""

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            head_bytes_max=settings.head_bytes_max,
            body_bytes_max=settings.max_body_bytes,
            connections_max=settings.connections_max,
            head_timeout_s=settings.header_timeout_s,
            keepalive_timeout_s=settings.idle_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            connect_timeout_s=settings.upstream_connect_timeout_s,
            response_timeout_s=settings.upstream_response_timeout_s,
        )


HEADERS_MAX: Final = 128
RESPONSE_HEAD_BYTES_MAX: Final = 128 * 1024
INTERIM_RESPONSES_MAX: Final = 32
"""1xx responses to one request."""
TRAILER_BYTES_MAX: Final = 16 * 1024
TRAILERS_MAX: Final = 64
CONTROL_BODY_BYTES_MAX: Final = 1 << 20
"""Bodies for auth and api; more is 413."""
CONTROL_RESPONSE_TIMEOUT_S: Final = 60.0
PENDING_BYTES_MAX: Final = 256 * 1024
"""Body bytes that wait while an upstream is connected to; then the client is not read from."""
WRITE_HIGH_BYTES: Final = 256 * 1024
"""Bytes that wait for a slow reader; then the other side is not read from."""
PIPELINED_MAX: Final = 8
"""Requests that a client may send ahead; then it is not read from."""
REPEATS_MAX: Final = 512
ANSWERS_MAX: Final = 512
"""Requests, and heads of answers, that are remembered to take the short way when they come again."""
REMEMBERED_S: Final = 5.0
"""A connection that brings nothing for as long does not remember its last request by itself."""
BACKLOG: Final = 1024
"""Connections that wait to be accepted, of each listener."""
TICK_S: Final = 1.0
"""Timeouts are this coarse: one timer for all connections."""

COMPLAINT_INTERVAL_S: Final = 60.0
"""Between two lines in the log about the TLS of one upstream."""
COMPLAINTS_MAX: Final = 1000
"""Upstreams about whose TLS it is remembered when the log was told."""
QUIET_DRAIN_S: Final = 2.0
"""At the end, how long connections between two requests may bring one more, which is answered and ends them."""
WEBSOCKET_PAUSE_S: Final = 0.1
"""Between the ends of two WebSockets at the most."""
FRAMES_PER_PIECE_MAX: Final = 256
"""Frames of a WebSocket that are followed in one piece of it."""

POOL_IDLE_MAX: Final = 256
"""Idle connections kept per upstream."""
POOL_IDLE_TIMEOUT_S: Final = 20.0
FRESH_IDLE_S: Final = 1.0
"""A request that may not be sent twice only goes out on a connection that was used this recently."""
