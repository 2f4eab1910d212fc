"""`/hub/api/users/{name}/tokens`, as JupyterHub has it."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any, Final

from aiohttp import web

from orrery_auth.domain import TokenRequest
from orrery_auth.identities import Throttled
from orrery_events.catalog.auth import TokenIssued
from orrery_events.principal import Principal
from orrery_runtime import scopes
from orrery_runtime.http import (
    HttpError,
    client_address,
    json_body,
    principal_of,
    require_principal,
    set_position,
)
from orrery_runtime.identity import User

from .common import IDENTITIES, WRONG, too_many, user_named, user_of


async def list_tokens(request: web.Request) -> web.Response:
    user = _allowed(request, "read:tokens")
    tokens = request.app[IDENTITIES].state.tokens_of(user.user_id, time.time())
    return web.json_response({"api_tokens": [_model(token, user) for token in tokens]})


async def create_token(request: web.Request) -> web.Response:
    """With a token or session of one's own, or with name and password in the body."""
    body = await json_body(request, TokenRequest, default=TokenRequest())
    unknown = scopes.unknown(body.scopes or [])
    if unknown:
        raise HttpError(400, f"There is no scope {unknown[0][:64]!r}.")
    principal = principal_of(request)
    if principal is None and body.auth is not None:
        actor = await _by_password(request, body.auth)
        if user_named(request) != actor:
            raise HttpError(403, WRONG)
        user = actor
    else:
        user = _allowed(request, "tokens")
        principal = require_principal(request)
        actor = user_of(request, principal)
        _refuse_more_than_held(principal, body, user)
    try:
        issued, token, position = await request.app[IDENTITIES].issue_token(user, body, actor=actor)
    except ValueError as error:
        raise HttpError(400, f"{error}.") from None
    response = web.json_response({**_model(issued, user), "token": token}, status=201)
    response.headers["Cache-Control"] = "no-store"
    set_position(response, position)
    return response


async def get_token(request: web.Request) -> web.Response:
    user = _allowed(request, "read:tokens")
    return web.json_response(_model(_token(request, user), user))


async def delete_token(request: web.Request) -> web.Response:
    user = _allowed(request, "tokens")
    position = await request.app[IDENTITIES].revoke_token(
        _token(request, user), actor=require_principal(request).user_id
    )
    response = web.Response(status=204)
    set_position(response, position)
    return response


async def _by_password(request: web.Request, auth: dict[str, str]) -> User:
    try:
        user = await request.app[IDENTITIES].authenticate(
            auth.get("username", ""), auth.get("password", ""), client_address(request)
        )
    except Throttled as error:
        raise too_many(error) from None
    if user is None:
        raise HttpError(403, WRONG)
    return user


def _allowed(request: web.Request, scope: str) -> User:
    """The user in the path, if the principal may do this with their tokens. Raises HttpError 403 and 404."""
    principal = require_principal(request)
    scopes.require(principal, scope, user_name=request.match_info["name"])
    user = user_named(request)
    if user is None:
        raise HttpError(404, "No such user.")
    return user


def _refuse_more_than_held(principal: Principal, body: TokenRequest, user: User) -> None:
    """A narrow token cannot mint a wide one."""
    wanted = body.scopes or [scopes.INHERIT]
    beyond = scopes.exceeding(principal, wanted, owner_name=user.name, owner_admin=user.admin)
    if beyond:
        raise HttpError(403, f"Not authorized to grant {', '.join(sorted(beyond))}.")


def _token(request: web.Request, user: User) -> TokenIssued:
    token = request.app[IDENTITIES].state.tokens.get(request.match_info["token_id"])
    if token is None or token.user_id != user.user_id or (token.expires_at and token.expires_at <= time.time()):
        raise HttpError(404, f"No such token {request.match_info['token_id'][:64]}.")
    return token


def _model(token: TokenIssued, user: User) -> dict[str, Any]:
    return {
        "user": user.name,
        "id": token.token_id,
        "kind": "api_token",
        "roles": [],
        "scopes": token.scopes,
        "created": _iso(token.issued_at),
        "last_activity": None,
        "expires_at": _iso(token.expires_at),
        "note": token.note,
        "session_id": None,
        "oauth_client": "JupyterHub",
    }


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


ROUTES: Final = [
    web.get("/hub/api/users/{name}/tokens", list_tokens),
    web.post("/hub/api/users/{name}/tokens", create_token),
    web.get("/hub/api/users/{name}/tokens/{token_id}", get_token),
    web.delete("/hub/api/users/{name}/tokens/{token_id}", delete_token),
]
