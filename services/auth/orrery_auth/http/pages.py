"""The forms: sign in, sign out, first admin. All of them work without JavaScript."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from orrery_auth.domain import PASSWORD_LENGTH_MIN, BadPassword, NameTaken, safe_next
from orrery_auth.identities import Throttled
from orrery_events.names import InvalidName
from orrery_runtime.http import (
    HttpError,
    client_address,
    principal_of,
    render,
    require_xsrf,
    set_position,
    url_path,
)
from orrery_runtime.request import BASE_URL

from .common import IDENTITIES, WRONG, clear_session, set_session, too_many

FORM_FIELD_LENGTH_MAX: Final = 4096
SAME_ORIGIN: Final = ("same-origin", "none", "")
"""`Sec-Fetch-Site` of a link on our own pages, a typed address, and a browser that does not send it."""


async def login_page(request: web.Request) -> web.Response:
    target = _next_of(request)
    if principal_of(request) is not None:
        raise web.HTTPFound(target)
    return render(request, "login.html", next=target, username="", problem="")


async def login(request: web.Request) -> web.Response:
    await require_xsrf(request)
    form = await request.post()
    name, password = _field(form.get("username")), _field(form.get("password"))
    target = _next_of(request, _field(form.get("next")))
    identities = request.app[IDENTITIES]
    try:
        user = await identities.authenticate(name, password, client_address(request))
    except Throttled as error:
        refusal = too_many(error)
        page = render(request, "login.html", status=429, next=target, username=name, problem=refusal.message)
        page.headers.update(refusal.headers)
        return page
    if user is None:
        return render(request, "login.html", status=403, next=target, username=name, problem=WRONG)
    signed_in = await identities.sign_in(user)
    response = web.Response(status=302, headers={"Location": target})
    set_session(request, response, signed_in)
    return response


async def logout_page(request: web.Request) -> web.Response:
    """JupyterHub signs out on GET. A link on another site must not: there we ask first."""
    if principal_of(request) is None:
        raise web.HTTPFound(url_path(request, "/hub/login"))
    if request.headers.get("Sec-Fetch-Site", "") not in SAME_ORIGIN:
        return render(request, "logout.html")
    return await _sign_out(request)


async def logout(request: web.Request) -> web.Response:
    return await _sign_out(request)


async def _sign_out(request: web.Request) -> web.Response:
    principal = principal_of(request)
    response = web.Response(status=302, headers={"Location": url_path(request, "/hub/login")})
    if principal is not None and principal.kind == "session":
        set_position(response, await request.app[IDENTITIES].sign_out(principal))
    clear_session(request, response)
    return response


async def setup_page(request: web.Request) -> web.Response:
    if not await request.app[IDENTITIES].store.setup_link_is_good(request.match_info["token"]):
        raise _bad_link()
    return render(request, "setup.html", username="", problem="", password_length_min=PASSWORD_LENGTH_MIN)


async def setup(request: web.Request) -> web.Response:
    await require_xsrf(request)
    identities = request.app[IDENTITIES]
    form = await request.post()
    name, password = _field(form.get("username")), _field(form.get("password"))
    problem = ""
    if password != _field(form.get("password_again"), password):
        problem = "The two passwords are not the same."
    if not problem:
        try:
            user = await identities.create_first_admin(request.match_info["token"], name, password)
        except (InvalidName, BadPassword, NameTaken) as error:
            problem = f"{error}."
        else:
            if user is None:
                raise _bad_link()
            signed_in = await identities.sign_in(user)
            response = web.Response(status=302, headers={"Location": url_path(request, "/hub/home")})
            set_session(request, response, signed_in)
            return response
    return render(
        request, "setup.html", status=400, username=name, problem=problem, password_length_min=PASSWORD_LENGTH_MIN
    )


async def setup_short(request: web.Request) -> web.Response:
    """`/setup/<token>` is easier to type."""
    raise web.HTTPFound(url_path(request, f"/hub/setup/{request.match_info['token']}"))


def _bad_link() -> HttpError:
    return HttpError(
        404,
        "This set-up link was used, has expired or was never good. Restart the platform (or run "
        "`orrery setup-link`) to get a fresh one; if there is an admin already, sign in instead.",
        title="This link does not work any more",
    )


def _next_of(request: web.Request, given: str = "") -> str:
    return safe_next(given or request.query.get("next", ""), request.app[BASE_URL])


def _field(value: object, missing: str = "") -> str:
    return value[:FORM_FIELD_LENGTH_MAX] if isinstance(value, str) else missing


ROUTES: Final = [
    web.get("/hub/login", login_page),
    web.post("/hub/login", login),
    web.get("/hub/logout", logout_page),
    web.post("/hub/logout", logout),
    web.get("/hub/setup/{token}", setup_page),
    web.post("/hub/setup/{token}", setup),
    web.get("/setup/{token}", setup_short),
]
