"""`/hub/api/profiles`: everybody may read them, admins define them."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from orrery_events.catalog.profile import JUPYTERLAB, Profile
from orrery_runtime import scopes
from orrery_runtime.http import HttpError, json_body, require_principal, set_position

from .common import OPERATIONS, state_of


async def list_profiles(request: web.Request) -> web.Response:
    principal = require_principal(request)
    whole = scopes.allows(principal, "admin:servers")
    return web.json_response([_model(profile, whole=whole) for profile in state_of(request).profiles()])


async def put_profile(request: web.Request) -> web.Response:
    """201 for a new one, 200 for a changed one."""
    principal = require_principal(request)
    scopes.require(principal, "admin:servers")
    body = await json_body(request, dict[str, Any])
    name = request.match_info["profile"]
    try:
        profile = msgspec.convert({**body, "name": name}, Profile)
    except msgspec.ValidationError as error:
        raise HttpError(400, f"The profile is not as expected: {error}") from None
    known = state_of(request).profile(name) is not None
    try:
        position = await request.app[OPERATIONS].define_profile(profile, actor=principal.user_id)
    except ValueError as error:
        raise HttpError(400, f"{error}.") from None
    response = web.json_response(_model(profile, whole=True), status=200 if known else 201)
    set_position(response, position)
    return response


async def delete_profile(request: web.Request) -> web.Response:
    principal = require_principal(request)
    scopes.require(principal, "admin:servers")
    name = request.match_info["profile"]
    if state_of(request).profile(name) is None:
        raise HttpError(404, f"There is no profile {name[:64]!r}")
    if name == JUPYTERLAB.name and state_of(request).profile(name) == JUPYTERLAB:
        raise HttpError(400, "The built-in profile cannot be removed; define it anew to change it")
    response = web.Response(status=204)
    set_position(response, await request.app[OPERATIONS].remove_profile(name, actor=principal.user_id))
    return response


def _model(profile: Profile, *, whole: bool) -> dict[str, Any]:
    """`whole`: with the command, for admins."""
    shown = {"name": profile.name, "display_name": profile.display_name, "description": profile.description}
    return msgspec.to_builtins(profile) | shown if whole else shown


ROUTES: Final = [
    web.get("/hub/api/profiles", list_profiles),
    web.put("/hub/api/profiles/{profile}", put_profile),
    web.delete("/hub/api/profiles/{profile}", delete_profile),
]
