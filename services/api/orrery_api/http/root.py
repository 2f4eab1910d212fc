"""Who we are, whether we live, who you are."""

from __future__ import annotations

import sys
from typing import Final

from aiohttp import web

from orrery_runtime import scopes
from orrery_runtime.http import HttpError, require_principal
from orrery_runtime.version import JUPYTERHUB_API_VERSION, version

from .common import shown_users, state_of


async def root(_request: web.Request) -> web.Response:
    """`version` is the JupyterHub whose API this is: clients look at it."""
    return web.json_response(
        {"version": JUPYTERHUB_API_VERSION, "orrery_version": version()},
        headers={"Access-Control-Allow-Origin": "*"},
    )


async def health(_request: web.Request) -> web.Response:
    return web.Response()


async def info(request: web.Request) -> web.Response:
    scopes.require(require_principal(request), "read:hub")
    return web.json_response(
        {
            "version": JUPYTERHUB_API_VERSION,
            "orrery_version": version(),
            "python": sys.version,
            "sys_executable": sys.executable,
            "spawner": {"class": "orrery_spawner.drivers.process", "version": version()},
            "authenticator": {"class": "orrery_auth", "version": version()},
        }
    )


async def whoami(request: web.Request) -> web.Response:
    principal = require_principal(request)
    user = state_of(request).identity.users.get(principal.user_id)
    if user is None:
        raise HttpError(403, "This account does not exist any more.")
    (model,) = await shown_users(request, principal, [user], stopped_servers=_stopped_too(request))
    model["scopes"] = sorted(scopes.expand(principal))
    model["session_id"] = principal.id if principal.kind == "session" else None
    model["token_id"] = principal.id if principal.kind == "token" else None
    return web.json_response(model)


async def nothing_here(request: web.Request) -> web.Response:
    raise HttpError(404, f"There is no {request.method} {request.path[:200]} in this API.")


def _stopped_too(request: web.Request) -> bool:
    return "include_stopped_servers" in request.query


ROUTES: Final = [
    web.get("/hub/api", root),
    web.get("/hub/api/", root),
    web.get("/hub/api/health", health),
    web.get("/hub/health", health),
    web.get("/hub/api/info", info),
    web.get("/hub/api/user", whoami),
]
LAST: Final = [web.route("*", "/hub/api/{rest:.*}", nothing_here)]
