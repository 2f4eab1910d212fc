"""What auth's handlers share."""

from __future__ import annotations

import math
import time
from typing import Final

from aiohttp import web

from orrery_auth.identities import Identities, SignedIn, Throttled
from orrery_events.names import InvalidName, normalise_user_name
from orrery_events.principal import SESSION_COOKIE, Principal
from orrery_runtime.http import HttpError, is_https, set_position
from orrery_runtime.identity import User
from orrery_runtime.request import BASE_URL

IDENTITIES: Final = web.AppKey("identities", Identities)
WRONG: Final = "Invalid username or password."


def too_many(error: Throttled) -> HttpError:
    wait_s = math.ceil(error.wait_s)
    return HttpError(429, f"Too many failed attempts. Try again in {wait_s} s.", headers={"Retry-After": str(wait_s)})


def user_named(request: web.Request) -> User | None:
    """The user in the path, or None."""
    try:
        name = normalise_user_name(request.match_info["name"])
    except InvalidName:
        return None
    return request.app[IDENTITIES].state.identity.user_by_name(name)


def user_of(request: web.Request, principal: Principal) -> User:
    """The principal's own user. Raises HttpError 403 if they were deleted this very moment."""
    user = request.app[IDENTITIES].state.identity.users.get(principal.user_id)
    if user is None:
        raise HttpError(403, "This account does not exist any more.")
    return user


def set_session(request: web.Request, response: web.StreamResponse, signed_in: SignedIn) -> None:
    """The session cookie."""
    response.set_cookie(
        SESSION_COOKIE,
        signed_in.cookie,
        max_age=max(1, int(signed_in.expires_at - time.time())),
        path=request.app[BASE_URL],
        httponly=True,
        samesite="Lax",
        secure=is_https(request),
    )
    set_position(response, signed_in.position)


def clear_session(request: web.Request, response: web.StreamResponse) -> None:
    response.del_cookie(
        SESSION_COOKIE, path=request.app[BASE_URL], httponly=True, samesite="Lax", secure=is_https(request)
    )
