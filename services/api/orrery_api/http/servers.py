"""`/hub/api/users/{user}/server` and `/servers/{server}`: start, stop, look."""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec
from aiohttp import web

from orrery_api.domain import DISPLAY_NAME_LENGTH_MAX, OPTIONS_BYTES_MAX, NotNow, log_name
from orrery_api.operations import SLOW_SPAWN_S, SLOW_STOP_S, UnknownProfile
from orrery_events.catalog.server import Failed, server_id_of
from orrery_events.server_state import Phase
from orrery_runtime.http import HttpError, json_body, require_principal, set_position

from .common import OPERATIONS, existing_server, server_name_in_path, shown_server, state_of, user_in_path

KEY_NAMESPACE: Final = uuid.UUID("5f0c2f0e-5d0b-4d3c-9e43-6a1d1a6f6f10")
KEY_LENGTH_MAX: Final = 200


class Removal(msgspec.Struct):
    """Body of `DELETE …/servers/{server}`."""

    remove: bool = False


async def get_server(request: web.Request) -> web.Response:
    user = user_in_path(request, "read:servers")
    return web.json_response(await shown_server(request, existing_server(request, user)))


async def start_server(request: web.Request) -> web.Response:
    """201 when it is ready within ten seconds, else 202; the progress stream tells the rest."""
    principal = require_principal(request)
    user = user_in_path(request, "start:servers")
    name = server_name_in_path(request)
    profile, display_name, options = await _wishes(request)
    operations = request.app[OPERATIONS]
    try:
        outcome = await operations.start(
            user,
            name,
            profile=profile,
            display_name=display_name,
            options=options,
            actor=principal.user_id,
            key=_idempotency_key(request, principal.user_id),
        )
    except (NotNow, UnknownProfile) as error:
        raise HttpError(400, str(error)) from None
    server = outcome.server
    settled = None
    if outcome.position:
        settled = await operations.settled(server.server_id, server.generation, SLOW_SPAWN_S, asked_at=outcome.position)
    if settled is not None and settled.phase is not Phase.READY and settled.generation == server.generation:
        last = settled.last
        reason = f": {last.message}" if isinstance(last, Failed) else ""
        raise HttpError(500, f"{log_name(user.name, name)} failed to start{reason}")
    ready = settled is not None and settled.phase is Phase.READY
    response = web.Response(status=201 if ready else 202)
    if outcome.position:
        set_position(response, outcome.position)
    return response


async def stop_server(request: web.Request) -> web.Response:
    """204 when it is gone within ten seconds (or was not there), else 202."""
    principal = require_principal(request)
    user = user_in_path(request, "delete:servers")
    name = server_name_in_path(request)
    body = await json_body(request, Removal, default=Removal())
    remove = body.remove and bool(name)
    server_id, operations = server_id_of(user.user_id, name), request.app[OPERATIONS]
    # A start that was asked for a moment ago, perhaps of another replica, may be in the log and not known here yet.
    known = state_of(request).server(user.user_id, name) is not None
    if not known and (await operations.read_server(server_id)).phase in (Phase.NONE, Phase.REMOVED):
        if name:
            raise HttpError(404, f"{user.name} has no server named {name!r}")
        return web.Response(status=204)
    try:
        outcome = await operations.stop(server_id, remove=remove, actor=principal.user_id)
    except NotNow as error:
        raise HttpError(400, f"{log_name(user.name, name)}: {error}") from None
    ended = await operations.ended(server_id, SLOW_STOP_S, asked_at=outcome.position)
    response = web.Response(status=204 if ended is not None else 202)
    if outcome.position:
        set_position(response, outcome.position)
    return response


async def _wishes(request: web.Request) -> tuple[str, str, dict[str, Any]]:
    """Profile, display name and options. JupyterHub's old form, where the whole body is the options, is understood."""
    body = await json_body(request, dict[str, Any], default={})
    display_name = body.get("display_name") or ""
    options = body.get("user_options") or {} if "user_options" in body or "display_name" in body else body
    if not isinstance(options, dict) or not isinstance(display_name, str):
        raise HttpError(400, "user_options must be an object and display_name a text")
    if len(display_name) > DISPLAY_NAME_LENGTH_MAX:
        raise HttpError(400, f"display_name has at most {DISPLAY_NAME_LENGTH_MAX} characters")
    if len(msgspec.json.encode(options)) > OPTIONS_BYTES_MAX:
        raise HttpError(400, f"user_options have at most {OPTIONS_BYTES_MAX} bytes")
    profile = options.get("profile", "")
    if not isinstance(profile, str):
        raise HttpError(400, "profile must be the name of a profile")
    return profile, display_name, options


def _idempotency_key(request: web.Request, user_id: str) -> uuid.UUID | None:
    key = request.headers.get("Idempotency-Key", "")
    if not key:
        return None
    if len(key) > KEY_LENGTH_MAX:
        raise HttpError(400, f"an Idempotency-Key has at most {KEY_LENGTH_MAX} characters")
    return uuid.uuid5(KEY_NAMESPACE, f"{user_id}\x1f{request.path}\x1f{key}")


ROUTES: Final = [
    web.post("/hub/api/users/{user}/server", start_server),
    web.delete("/hub/api/users/{user}/server", stop_server),
    web.get("/hub/api/users/{user}/servers/{server}", get_server),
    web.post("/hub/api/users/{user}/servers/{server}", start_server),
    web.delete("/hub/api/users/{user}/servers/{server}", stop_server),
]
