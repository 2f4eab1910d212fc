"""Errors of the log and the bus.

    OrreryError                     everything this project raises on purpose
    ├── Conflict                    the stream moved on since the caller looked: reload and decide again
    ├── LogUnavailable              Postgres did not answer; nothing was decided, or the outcome is unknown
    │   └── AppendQueueFull         too many appends wait in this process
    ├── BusUnavailable              NATS did not answer
    ├── EventTooLarge               an event's data exceeds the log's limit
    └── UnknownEventType            this version of the code does not know the type (a newer one wrote it)

A class's docstring is its message when none is given; messages name the next action.
"""

from __future__ import annotations


class OrreryError(Exception):
    """Something went wrong."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class Conflict(OrreryError):
    """The stream changed since it was read. Read it again and decide anew."""

    def __init__(self, stream_id: str, expected_version: int | None, current_version: int) -> None:
        super().__init__(
            f"stream {stream_id} is at version {current_version}, not {expected_version}: read it again and decide anew"
        )
        self.stream_id = stream_id
        self.expected_version = expected_version
        self.current_version = current_version


class LogUnavailable(OrreryError):
    """The event log (Postgres) does not answer. Retry in a few seconds."""


class AppendQueueFull(LogUnavailable):
    """Too many appends are waiting in this process. Retry in a few seconds."""


class BusUnavailable(OrreryError):
    """NATS does not answer. Consumers poll Postgres meanwhile."""


class EventTooLarge(OrreryError):
    """The event's data is larger than the log accepts (64 KiB). Shorten it."""


class UnknownEventType(OrreryError):
    """This version of the code does not know the event type."""
