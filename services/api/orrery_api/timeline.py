"""A start's timeline: what each event of a server says to a person."""

from __future__ import annotations

from typing import Any

from orrery_events.catalog.server import (
    Failed,
    Progressed,
    Ready,
    StartCancelled,
    StartClaimed,
    StartExpired,
    StartRequested,
    StopClaimed,
    Stopped,
    StopRequested,
    server_url_path,
)
from orrery_events.recorded import Recorded
from orrery_events.registry import Event

from .models import iso

ENDS = (Ready, Failed, StartCancelled, StartExpired, Stopped)
"""After one of these a start's story is told."""


def entry_of(recorded: Recorded, event: Event, base_url: str) -> dict[str, Any] | None:
    """JupyterHub's progress message (`progress`, `message`, `ready`, `failed`, `url`) and more; None: not a step."""
    step = _step(event, base_url)
    if step is None:
        return None
    return {**step, "time": iso(recorded.recorded_at), "position": recorded.position}


def _step(event: Event, base_url: str) -> dict[str, Any] | None:  # noqa: PLR0911 (one answer per event)
    match event:
        case StartRequested():
            return {"progress": 0, "message": "Server requested", "step": "requested"}
        case StartClaimed():
            return {"progress": 5, "message": "A spawner takes care of it", "step": "claimed"}
        case Progressed():
            return {"progress": min(99, event.progress), "message": event.message, "step": event.step}
        case Ready():
            url = base_url.rstrip("/") + server_url_path(event.user_name, event.name)
            return {
                "progress": 100,
                "ready": True,
                "message": f"Server ready at {url}",
                "html_message": f'Server ready at <a href="{url}">{url}</a>',
                "url": url,
                "step": "ready",
            }
        case Failed():
            return {
                "progress": 100,
                "failed": True,
                "message": event.message or "The start failed.",
                "reason": event.reason,
                "exit_code": event.exit_code,
                "log_tail": event.log_tail,
                "step": "failed",
            }
        case StartCancelled():
            return _failed("The start was cancelled.", "cancelled")
        case StartExpired():
            return _failed("No spawner took it in time. Try again in a moment.", "expired")
        case StopRequested():
            return {"progress": 100, "message": "Stop requested", "step": "stop_requested"}
        case StopClaimed():
            return {"progress": 100, "message": "Stopping", "step": "stopping"}
        case Stopped():
            text = event.message or ("Stopped." if event.reason == "requested" else f"It ended: {event.reason}.")
            return {**_failed(text, "stopped"), "reason": event.reason, "log_tail": event.log_tail}
    return None


def _failed(message: str, step: str) -> dict[str, Any]:
    return {"progress": 100, "failed": True, "message": message, "reason": step, "step": step}
