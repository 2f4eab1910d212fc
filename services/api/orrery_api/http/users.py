"""`/hub/api/users`."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from orrery_api.domain import Exists
from orrery_events.names import normalise_user_name
from orrery_events.server_state import ENDED, Phase
from orrery_runtime import scopes
from orrery_runtime.http import HttpError, json_body, public_origin, require_principal, set_position
from orrery_runtime.identity import User

from .common import ACTIVITY, OPERATIONS, activity_of, shown_users, state_of, user_in_path

PAGE_MAX: Final = 200
PAGE_DEFAULT: Final = 50
PAGINATION: Final = "application/jupyterhub-pagination+json"
NAMES_MAX: Final = 1000
AT_ONCE: Final = 50
"""Users whose creation is under way at the same time: they share commits."""
SORTS: Final = ("id", "name", "last_activity")


class NewUsers(msgspec.Struct):
    """Body of `POST /users`."""

    usernames: list[str]
    admin: bool = False


class NewUser(msgspec.Struct):
    """Body of `POST /users/{name}`."""

    admin: bool = False


class UserChange(msgspec.Struct):
    """Body of `PATCH /users/{name}`."""

    admin: bool | None = None
    name: str | None = None


class ServerActivity(msgspec.Struct):
    last_activity: str


class ActivityReport(msgspec.Struct):
    """Body of `POST /users/{name}/activity`."""

    last_activity: str | None = None
    servers: dict[str, ServerActivity] = msgspec.field(default_factory=dict)


async def list_users(request: web.Request) -> web.Response:
    """Never silently cut off: without the pagination header up to 200 come as a plain list, and a `Link` header tells
    where the rest is."""
    principal = require_principal(request)
    if not scopes.holds_somewhere(principal, "list:users"):
        scopes.require(principal, "list:users")
    users = [u for u in _matching(request) if scopes.allows(principal, "list:users", user_name=u.name)]
    users = await _sorted(request, users)
    paginated = PAGINATION in request.headers.get("Accept", "")
    offset = _number(request, "offset", 0, 2**53)
    limit = min(PAGE_MAX, _number(request, "limit", PAGE_DEFAULT if paginated else PAGE_MAX, 2**53) or 1)
    page = users[offset : offset + limit]
    stopped = "include_stopped_servers" in request.query
    models = await shown_users(request, principal, page, stopped_servers=stopped)
    following = _next_page(request, offset + limit, limit) if offset + limit < len(users) else None
    headers = {"Link": f'<{following["url"]}>; rel="next"'} if following else {}
    if not paginated:
        return web.json_response(models, headers=headers)
    pagination = {"offset": offset, "limit": limit, "total": len(users), "next": following}
    body = {"items": models, "_pagination": pagination}
    return web.json_response(body, headers=headers, content_type=PAGINATION)


def _matching(request: web.Request) -> list[User]:
    state = state_of(request)
    users = list(state.identity.users.values())
    part = request.query.get("name_filter", "")
    if part:
        users = [user for user in users if part in user.name]
    wanted = request.query.get("state")
    if wanted is None:
        return users
    if wanted not in ("active", "ready", "inactive"):
        raise HttpError(400, f"Unrecognized state filter: {wanted[:64]!r}")

    def fits(user: User) -> bool:
        phases = {entry.server.phase for entry in state.servers_of(user.user_id)}
        if wanted == "ready":
            return Phase.READY in phases
        return bool(phases - ENDED) == (wanted == "active")

    return [user for user in users if fits(user)]


async def _sorted(request: web.Request, users: list[User]) -> list[User]:
    key = request.query.get("sort", "id")
    reverse, key = key.startswith("-"), key.removeprefix("-")
    if key not in SORTS:
        raise HttpError(400, f"Cannot sort by {key[:64]!r}: use one of {', '.join(SORTS)}")
    if key == "name":
        return sorted(users, key=lambda u: u.name, reverse=reverse)
    if key == "id":
        return sorted(users, key=lambda u: (u.created_at, u.user_id), reverse=reverse)
    state = state_of(request)
    ids = {u.user_id: [e.server.server_id for e in state.servers_of(u.user_id)] for u in users}
    seen = await activity_of(request, [server_id for own in ids.values() for server_id in own])
    return sorted(users, key=lambda u: max((seen.get(i, 0.0) for i in ids[u.user_id]), default=0.0), reverse=reverse)


def _next_page(request: web.Request, offset: int, limit: int) -> dict[str, Any]:
    query = {**request.query, "offset": str(offset), "limit": str(limit)}
    return {
        "offset": offset,
        "limit": limit,
        "url": f"{public_origin(request)}{request.path}?{urlencode(query)}",
    }


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise HttpError(400, f"Invalid argument type: {name} must be a number of 0 or more")
    return int(text)


async def create_users(request: web.Request) -> web.Response:
    principal = require_principal(request)
    scopes.require(principal, "admin:users")
    body = await json_body(request, NewUsers)
    if not body.usernames:
        raise HttpError(400, "usernames must name at least one user")
    if len(body.usernames) > NAMES_MAX:
        raise HttpError(400, f"at most {NAMES_MAX} users can be created at once")
    names = list(dict.fromkeys(normalise_user_name(name) for name in body.usernames))
    operations, position, created = request.app[OPERATIONS], 0, []
    for some in (names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)):
        creating = (operations.create_user(name, admin=body.admin, actor=principal.user_id) for name in some)
        for name, done in zip(some, await asyncio.gather(*creating, return_exceptions=True), strict=True):
            if isinstance(done, Exists):
                continue
            if isinstance(done, BaseException):
                raise done
            position = max(position, done)
            created.append(name)
    if not created:
        raise HttpError(409, f"All {len(names)} users already exist")
    return await _users_response(request, created, position, 201, many=True)


async def create_user(request: web.Request) -> web.Response:
    principal = require_principal(request)
    scopes.require(principal, "admin:users")
    body = await json_body(request, NewUser, default=NewUser())
    name = normalise_user_name(request.match_info["user"])
    try:
        position = await request.app[OPERATIONS].create_user(name, admin=body.admin, actor=principal.user_id)
    except Exists as error:
        raise HttpError(409, str(error)) from None
    return await _users_response(request, [name], position, 201)


async def get_user(request: web.Request) -> web.Response:
    user = user_in_path(request, "read:users:name")
    stopped = "include_stopped_servers" in request.query
    (model,) = await shown_users(request, require_principal(request), [user], stopped_servers=stopped)
    return web.json_response(model)


async def change_user(request: web.Request) -> web.Response:
    principal = require_principal(request)
    scopes.require(principal, "admin:users")
    user = user_in_path(request, "admin:users")
    body = await json_body(request, UserChange)
    if body.name is not None and body.name != user.name:
        raise HttpError(400, "Users cannot be renamed: create a new one")
    position = 0
    if body.admin is not None:
        position = await request.app[OPERATIONS].set_admin(user.name, admin=body.admin, actor=principal.user_id)
    return await _users_response(request, [user.name], position, 200)


async def delete_user(request: web.Request) -> web.Response:
    principal = require_principal(request)
    user = user_in_path(request, "delete:users")
    if user.user_id == principal.user_id:
        raise HttpError(400, "Cannot delete yourself!")
    position = await request.app[OPERATIONS].delete_user(user, actor=principal.user_id)
    response = web.Response(status=204)
    set_position(response, position)
    return response


async def report_activity(request: web.Request) -> web.Response:
    """What `jupyterhub-singleuser` sends every five minutes."""
    user = user_in_path(request, "users:activity")
    body = await json_body(request, ActivityReport)
    state, seen = state_of(request), {}
    for name, report in body.servers.items():
        entry = state.server(user.user_id, name)
        if entry is None:
            raise HttpError(400, f"No such server {name[:64]!r} for user {user.name}")
        seen[entry.server.server_id] = _moment(report.last_activity)
    if body.last_activity is not None:
        _moment(body.last_activity)
    await request.app[ACTIVITY].record(seen)
    return web.json_response({})


def _moment(text: str) -> float:
    """Unix seconds of an ISO 8601 time. Raises HttpError 400."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise HttpError(400, f"Not a valid ISO 8601 time: {text[:64]!r}") from None
    at = moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()
    if at > time.time() + 59 * 60:
        raise HttpError(400, f"Activity {text[:64]} is in the future: check the clock of the server")
    return at


async def _users_response(
    request: web.Request, names: list[str], position: int, status: int, *, many: bool = False
) -> web.Response:
    identity = state_of(request).identity
    users = [user for user in (identity.user_by_name(name) for name in names) if user]
    models = await shown_users(request, require_principal(request), users, stopped_servers=False)
    response = web.json_response(models if many else (models[0] if models else {}), status=status)
    if position:
        set_position(response, position)
    return response


ROUTES: Final = [
    web.get("/hub/api/users", list_users),
    web.post("/hub/api/users", create_users),
    web.get("/hub/api/users/{user}", get_user),
    web.post("/hub/api/users/{user}", create_user),
    web.patch("/hub/api/users/{user}", change_user),
    web.delete("/hub/api/users/{user}", delete_user),
    web.post("/hub/api/users/{user}/activity", report_activity),
]
