"""Every bound of the data plane, in one place."""

from __future__ import annotations

from typing import Final

HEAD_BYTES_MAX: Final = 32 * 1024
"""Request line and headers together; more is 431."""
HEADERS_MAX: Final = 128
RESPONSE_HEAD_BYTES_MAX: Final = 128 * 1024
CONTROL_BODY_BYTES_MAX: Final = 1 << 20
"""Bodies for auth and api; more is 413."""
PENDING_BYTES_MAX: Final = 256 * 1024
"""Body bytes that wait while an upstream is connected to; then the client is not read from."""
WRITE_HIGH_BYTES: Final = 256 * 1024
"""Bytes that wait for a slow reader; then the other side is not read from."""

CONNECTIONS_MAX: Final = 20_000
PIPELINED_MAX: Final = 8
"""Requests that a client may send ahead; then it is not read from."""

HEAD_TIMEOUT_S: Final = 20.0
"""From the first byte of a request to the end of its head."""
KEEPALIVE_TIMEOUT_S: Final = 75.0
BODY_IDLE_TIMEOUT_S: Final = 60.0
"""Between two pieces of a request's body."""
CONNECT_TIMEOUT_S: Final = 5.0
RESPONSE_TIMEOUT_S: Final = 3_600.0
"""From the end of a request to the first byte of its answer; long polls take their time."""
CONTROL_RESPONSE_TIMEOUT_S: Final = 60.0
TICK_S: Final = 1.0
"""Timeouts are this coarse: one timer for all connections."""

POOL_IDLE_MAX: Final = 64
"""Idle connections kept per upstream."""
POOL_IDLE_TIMEOUT_S: Final = 20.0
FRESH_IDLE_S: Final = 1.0
"""A request that may not be sent twice only goes out on a connection that was used this recently."""
