"""What api's handlers share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web

from orrery_api.handlers import Activity
from orrery_api.models import server_model, user_model
from orrery_api.operations import Operations
from orrery_api.projections import ApiState, Entry
from orrery_events.errors import LogUnavailable
from orrery_events.names import InvalidName, check_server_name, normalise_user_name
from orrery_events.principal import Principal
from orrery_runtime import scopes
from orrery_runtime.http import HttpError, public_origin, require_principal
from orrery_runtime.identity import User
from orrery_runtime.request import BASE_URL

OPERATIONS: Final = web.AppKey("operations", Operations)
ACTIVITY: Final = web.AppKey("activity", Activity)

NO_ACCESS: Final = "No access to resources or resources not found"


def state_of(request: web.Request) -> ApiState:
    return request.app[OPERATIONS].state


def user_in_path(request: web.Request, scope: str) -> User:
    """The user that the path names, if the principal holds the scope over them. Raises HttpError 403 and 404."""
    principal = require_principal(request)
    name = request.match_info["user"]
    scopes.require(principal, scope, user_name=name, server_name=request.match_info.get("server", ""))
    try:
        user = state_of(request).identity.user_by_name(normalise_user_name(name))
    except InvalidName:
        user = None
    if user is None:
        raise HttpError(404, f"No such user: {name[:64]}" if principal.admin else NO_ACCESS)
    return user


def server_name_in_path(request: web.Request) -> str:
    """The server that the path names; empty is the default one. Raises InvalidName (400)."""
    return check_server_name(request.match_info.get("server", ""))


def existing_server(request: web.Request, user: User) -> Entry:
    """Raises HttpError 404."""
    name = server_name_in_path(request)
    entry = state_of(request).server(user.user_id, name)
    if entry is None:
        raise HttpError(404, f"No such server: {user.name}/{name}" if name else f"{user.name} has no server yet")
    return entry


async def activity_of(request: web.Request, server_ids: Iterable[str]) -> dict[str, float]:
    """When servers were last used. Activity is worth no error: without Postgres it is simply not known."""
    with contextlib.suppress(LogUnavailable):
        return await request.app[ACTIVITY].latest(list(server_ids))
    return {}


async def shown_users(
    request: web.Request, principal: Principal, users: list[User], *, stopped_servers: bool
) -> list[dict[str, Any]]:
    """The models of these users, with what the principal may see of each."""
    state = state_of(request)
    ids = [entry.server.server_id for user in users for entry in state.servers_of(user.user_id)]
    activity = await activity_of(request, ids)
    models = []
    for user in users:
        model = user_model(
            user,
            state,
            base_url=request.app[BASE_URL],
            origin=public_origin(request),
            activity=activity,
            stopped_servers=stopped_servers,
            server_state=scopes.allows(principal, "admin:server_state", user_name=user.name),
        )
        models.append(_visible(principal, user, model))
    return models


FIELD_SCOPES: Final = {
    "admin": "read:users",
    "server": "read:users",
    "pending": "read:users",
    "created": "read:users",
    "user_info": "read:users",
    "roles": "read:roles:users",
    "groups": "read:users:groups",
    "last_activity": "read:users:activity",
    "servers": "read:servers",
    "auth_state": "admin:auth_state",
}
"""Which scope shows which field; the others are always shown."""


def _visible(principal: Principal, user: User, model: dict[str, Any]) -> dict[str, Any]:
    held = {scope: scopes.allows(principal, scope, user_name=user.name) for scope in set(FIELD_SCOPES.values())}
    return {key: value for key, value in model.items() if key not in FIELD_SCOPES or held[FIELD_SCOPES[key]]}


async def shown_server(request: web.Request, entry: Entry) -> dict[str, Any]:
    principal = require_principal(request)
    last = entry.server.last
    activity = await activity_of(request, [entry.server.server_id])
    return server_model(
        entry,
        base_url=request.app[BASE_URL],
        origin=public_origin(request),
        last_activity=activity.get(entry.server.server_id),
        with_state=scopes.allows(principal, "admin:server_state", user_name=last.user_name if last else ""),
    )
