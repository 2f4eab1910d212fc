"""Users and servers as JupyterHub's API shows them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from orrery_events.server_state import ENDED, STARTING, STOPPING, Phase, Server
from orrery_runtime.identity import User

from .projections import ApiState, Entry


def iso(seconds: float | None) -> str | None:
    """ISO 8601 in UTC with a `Z`; None stays None, and so does "never" (0)."""
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def pending_of(server: Server) -> str | None:
    """`spawn`, `stop` or None."""
    if server.phase in STARTING:
        return "spawn"
    return "stop" if server.phase in STOPPING else None


def progress_path(base_url: str, user_name: str, name: str) -> str:
    tail = f"servers/{name}/progress" if name else "server/progress"
    return f"{base_url}hub/api/users/{user_name}/{tail}"


def server_model(
    entry: Entry, *, base_url: str, origin: str, last_activity: float | None = None, with_state: bool = False
) -> dict[str, Any]:
    """One server. `with_state`: for those who hold `admin:server_state`."""
    server = entry.server
    last = server.last
    if last is None:
        raise ValueError("a server in the projection has a history")
    url = base_url.rstrip("/") + server.url_path
    progress = progress_path(base_url, last.user_name, last.name)
    ready = server.phase is Phase.READY
    model = {
        "name": last.name,
        "display_name": last.display_name,
        "full_name": f"{last.user_name}/{last.name}",
        "last_activity": iso(max(last_activity or 0.0, last.started_at or 0.0, last.requested_at)),
        "started": iso(last.started_at or last.requested_at) if server.phase not in ENDED else None,
        "pending": pending_of(server),
        "ready": ready,
        "stopped": server.phase in ENDED,
        "url": url,
        "full_url": origin + url,
        "user_options": last.user_options,
        "progress_url": progress,
        "full_progress_url": origin + progress,
        "profile": last.profile,
    }
    if with_state:
        model["state"] = {
            "phase": server.phase.value,
            "generation": server.generation,
            "server_id": server.server_id,
            "instance_id": last.instance_id,
        }
    return model


def user_model(
    user: User,
    state: ApiState,
    *,
    base_url: str,
    origin: str,
    activity: Mapping[str, float],
    stopped_servers: bool = False,
    server_state: bool = False,
) -> dict[str, Any]:
    """One person with their servers. `activity`: Unix seconds by server id."""
    entries = list(state.servers_of(user.user_id))
    servers = {}
    for entry in entries:
        last = entry.server.last
        if last is None or (entry.server.phase in ENDED and not stopped_servers):
            continue
        servers[last.name] = server_model(
            entry,
            base_url=base_url,
            origin=origin,
            last_activity=activity.get(entry.server.server_id),
            with_state=server_state,
        )
    default = servers.get("")
    seen = [activity.get(entry.server.server_id, 0.0) for entry in entries]
    seen += [entry.server.last.requested_at for entry in entries if entry.server.last]
    return {
        "kind": "user",
        "name": user.name,
        "admin": user.admin,
        "roles": ["admin", "user"] if user.admin else ["user"],
        "groups": [],
        "server": default["url"] if default and default["ready"] else None,
        "pending": default["pending"] if default else None,
        "created": iso(user.created_at),
        "last_activity": iso(max(seen, default=0.0)),
        "servers": servers,
        "auth_state": None,
        "user_info": {},
    }
