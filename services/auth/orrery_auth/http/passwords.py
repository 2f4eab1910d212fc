"""Passwords: an admin sets somebody's, everybody changes their own; by form (`/hub/password`) and by API
(`POST /hub/api/users/{name}/password`)."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from orrery_auth.domain import PASSWORD_LENGTH_MIN, BadPassword
from orrery_auth.identities import Throttled
from orrery_runtime.http import HttpError, client_address, json_body, render, require_principal, set_position, url_path
from orrery_runtime.identity import User
from orrery_runtime.scopes import allows

from .common import IDENTITIES, WRONG, set_session, too_many, user_named, user_of


class PasswordChange(msgspec.Struct, kw_only=True):
    """The body."""

    password: str
    current_password: str = ""
    """Needed to change one's own."""


async def set_password(request: web.Request) -> web.Response:
    """204. All sessions and tokens of the person end; whoever changed their own stays signed in here."""
    principal = require_principal(request)
    body = await json_body(request, PasswordChange)
    identities = request.app[IDENTITIES]
    user = user_named(request)
    own = user is not None and user.user_id == principal.user_id
    if user is None or not (own or allows(principal, "admin:users")):
        raise HttpError(404, "No such user.")
    if own:
        try:
            proven = await identities.authenticate(user.name, body.current_password, client_address(request))
        except Throttled as error:
            raise too_many(error) from None
        if proven is None:
            raise HttpError(403, WRONG)
    try:
        position = await identities.set_password(user, body.password, actor=principal.user_id)
    except BadPassword as error:
        raise HttpError(400, f"{error}.") from None
    response = web.Response(status=204)
    set_position(response, position)
    if own and principal.kind == "session":
        set_session(request, response, await identities.sign_in(user))
    return response


async def password_page(request: web.Request) -> web.Response:
    return _form(request, _of_form(request), problem="", status=200)


async def change_password(request: web.Request) -> web.Response:
    """Everything of the person ends; whoever changed their own stays signed in here."""
    principal = require_principal(request)
    user = _of_form(request)
    own = user.user_id == principal.user_id
    form = await request.post()
    fields = {name: value if isinstance(value, str) else "" for name, value in form.items()}
    identities = request.app[IDENTITIES]
    if own:
        try:
            proven = await identities.authenticate(user.name, fields.get("current", ""), client_address(request))
        except Throttled as error:
            raise too_many(error) from None
        if proven is None:
            return _form(request, user, problem="That is not your current password.", status=403)
    if fields.get("password", "") != fields.get("password_again", ""):
        return _form(request, user, problem="The two passwords are not the same.", status=400)
    try:
        position = await identities.set_password(user, fields.get("password", ""), actor=principal.user_id)
    except BadPassword as error:
        return _form(request, user, problem=f"{error}.", status=400)
    response = web.Response(status=303, headers={"Location": url_path(request, "/hub/home")})
    set_position(response, position)
    if own and principal.kind == "session":
        set_session(request, response, await identities.sign_in(user))
    return response


def _of_form(request: web.Request) -> User:
    """Whose password it is: the path's, or one's own. Raises HttpError 403 and 404."""
    principal = require_principal(request)
    if "name" not in request.match_info:
        return user_of(request, principal)
    user = user_named(request)
    if user is None or not (user.user_id == principal.user_id or allows(principal, "admin:users")):
        raise HttpError(404, "No such user.")
    return user


def _form(request: web.Request, user: User, *, problem: str, status: int) -> web.Response:
    principal = require_principal(request)
    return render(
        request,
        "password.html",
        status=status,
        name=user.name,
        own=user.user_id == principal.user_id,
        problem=problem,
        password_length_min=PASSWORD_LENGTH_MIN,
    )


ROUTES: Final = [
    web.post("/hub/api/users/{name}/password", set_password),
    web.get("/hub/password", password_page),
    web.post("/hub/password", change_password),
    web.get("/hub/password/{name}", password_page),
    web.post("/hub/password/{name}", change_password),
]
