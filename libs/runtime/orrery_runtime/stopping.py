"""How long a process may take to end. Imports nothing, because whoever starts processes needs it, too."""

from __future__ import annotations

from typing import Final

DRAIN_NOTICE_S: Final = 0.5
DRAIN_TIMEOUT_S: Final = 10.0
WEBSOCKET_DRAIN_S: Final = 5.0
"""What the settings of these names are when nobody sets them."""
STEP_TIMEOUT_S: Final = 10.0
"""Bound of every step of the stop, listeners aside (they have `drain_timeout_s`)."""


def stop_timeout_s(*, drain_notice_s: float, drain_timeout_s: float, websocket_drain_s: float) -> float:
    """After which a process that was told to end will not do so any more. Takes the settings."""
    return drain_notice_s + max(drain_timeout_s, websocket_drain_s) + 2 * STEP_TIMEOUT_S
