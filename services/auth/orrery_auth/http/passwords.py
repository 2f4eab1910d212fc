"""`POST /hub/api/users/{name}/password`: an admin sets somebody's, everybody changes their own."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from orrery_auth.domain import BadPassword
from orrery_auth.identities import Throttled
from orrery_runtime.http import HttpError, client_address, json_body, require_principal, set_position
from orrery_runtime.scopes import allows

from .common import IDENTITIES, WRONG, set_session, too_many, user_named


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


ROUTES: Final = [web.post("/hub/api/users/{name}/password", set_password)]
