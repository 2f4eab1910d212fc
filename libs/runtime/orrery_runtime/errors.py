"""Errors of a process's own life and of its HTTP face.

OrreryError
├── StartupError     the process cannot start; the message is one sentence that names the next step
│   └── ConfigError  a setting is missing, unknown or out of range
└── HttpError        answer the request with this status and message
"""

from __future__ import annotations

from collections.abc import Mapping

from orrery_events.errors import OrreryError

__all__ = ["ConfigError", "HttpError", "OrreryError", "StartupError"]


class StartupError(OrreryError):
    """The process cannot start. See the sentence that follows."""


class ConfigError(StartupError):
    """A setting is not usable. Correct it and start again."""


class HttpError(OrreryError):
    """The request cannot be answered as asked."""

    def __init__(self, status: int, message: str, *, title: str = "", headers: Mapping[str, str] | None = None) -> None:
        """`message` is shown to the person who asked: it says what to do and holds no secret."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.title = title
        self.headers = dict(headers or {})
