"""Reading a request the same way in every handler. Use it through `orrery_runtime.http`."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from orrery_events.principal import Principal
from orrery_events.tail import Tail

from . import xsrf
from .errors import HttpError
from .identity import Verifier
from .secrets import EDGE_HEADER, Secrets

T = TypeVar("T")

BODY_BYTES_MAX: Final = 1 << 20
POSITION_HEADER: Final = "Orrery-Position"
FORM_TYPES: Final = ("application/x-www-form-urlencoded", "multipart/form-data")

SECRETS: Final = web.AppKey("secrets", Secrets)
BASE_URL: Final = web.AppKey("base_url", str)
VERIFIER: Final = web.AppKey("verifier", Verifier)
TAIL: Final[web.AppKey[Tail[Any]]] = web.AppKey("tail", Tail)

PRINCIPAL: Final = web.RequestKey("principal", Principal)
XSRF_REFUSED: Final = web.RequestKey("xsrf_refused", bool)
XSRF_NEW: Final = web.RequestKey("xsrf_new", str)
REQUEST_ID: Final = web.RequestKey("request_id", str)


def principal_of(request: web.Request) -> Principal | None:
    """Who asks; None: nobody that this process knows, or a cookie on an unsafe method without its XSRF token."""
    return None if request.get(XSRF_REFUSED) else request.get(PRINCIPAL)


def require_principal(request: web.Request) -> Principal:
    """Who asks. Raises HttpError 403."""
    if request.get(XSRF_REFUSED):
        raise HttpError(403, "the '_xsrf' token is missing or wrong: reload the page and try again")
    principal: Principal | None = request.get(PRINCIPAL)
    if principal is None:
        raise HttpError(403, "Missing or invalid credentials.")
    return principal


def require_admin(request: web.Request) -> Principal:
    """The admin who asks. Raises HttpError 403."""
    principal = require_principal(request)
    if not principal.admin:
        raise HttpError(403, "Only an admin may do this.")
    return principal


async def require_xsrf(request: web.Request) -> None:
    """For forms that anybody may send (sign-in, set-up). Raises HttpError 403."""
    if not await xsrf_is_valid(request):
        raise HttpError(403, "the '_xsrf' token is missing or wrong: reload the page and try again")


async def xsrf_is_valid(request: web.Request) -> bool:
    """True if the request repeats its XSRF cookie in a header, the query or the form. Reads a form's body."""
    cookie = request.cookies.get(xsrf.COOKIE, "")
    submitted = request.headers.get(xsrf.HEADER, "") or request.query.get(xsrf.FIELD, "")
    if not submitted and request.content_type in FORM_TYPES:
        value = (await request.post()).get(xsrf.FIELD, "")
        submitted = value if isinstance(value, str) else ""
    key = request.app[SECRETS].xsrf_key
    return bool(cookie) and xsrf.is_valid(key, xsrf_binding(request), cookie=cookie, submitted=submitted)


def xsrf_token(request: web.Request) -> str:
    """The token to put into a form's `_xsrf` field. The answer sets the cookie when the browser has no good one."""
    fresh: str | None = request.get(XSRF_NEW)
    if fresh is not None:
        return fresh
    key, binding = request.app[SECRETS].xsrf_key, xsrf_binding(request)
    cookie = request.cookies.get(xsrf.COOKIE, "")
    if xsrf.is_genuine(key, binding, cookie):
        return cookie
    fresh = request[XSRF_NEW] = xsrf.new_token(key, binding)
    return fresh


def xsrf_binding(request: web.Request) -> str:
    """What an XSRF token is bound to: the session, or `anonymous`."""
    principal = request.get(PRINCIPAL)
    return principal.id if principal is not None and principal.kind == "session" else xsrf.ANONYMOUS


def from_edge(request: web.Request) -> bool:
    """True if one of our routers forwarded the request, so that its X-Forwarded-* headers are to be believed."""
    return request.app[SECRETS].is_edge(request.headers.get(EDGE_HEADER))


def client_address(request: web.Request) -> str:
    """IP address of the client: what the router saw, or the peer of the connection when no router is in between."""
    if from_edge(request):
        # The last entry is the router's own; earlier ones are the client's word.
        seen = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
        if seen:
            return seen
    return request.remote or ""


def is_https(request: web.Request) -> bool:
    """True if the browser's own connection is encrypted: cookies must be `Secure`."""
    if from_edge(request):
        return request.headers.get("X-Forwarded-Proto", "").split(",")[0].strip().lower() == "https"
    return request.secure


def public_origin(request: web.Request) -> str:
    """`https://hub.example.org`, as the browser sees it."""
    host = request.headers.get("Host", "")
    if from_edge(request):
        host = request.headers.get("X-Forwarded-Host", "").split(",")[0].strip() or host
    return f"{'https' if is_https(request) else 'http'}://{host}"


def url_path(request: web.Request, path: str) -> str:
    """The path with the base URL before it: `/hub/home` → `/base/hub/home`."""
    return request.app[BASE_URL].rstrip("/") + path


def is_api(request: web.Request) -> bool:
    """True below `/hub/api`: errors are JSON there."""
    path, api = request.path, url_path(request, "/hub/api")
    return path == api or path.startswith(f"{api}/")


def wants_json(request: web.Request) -> bool:
    """True if an error should be JSON: an API path, or a client that asks for JSON and not for HTML."""
    accept = request.headers.get("Accept", "")
    return is_api(request) or ("application/json" in accept and "text/html" not in accept)


async def json_body(request: web.Request, type_: type[T], *, default: T | None = None) -> T:
    """The JSON body as a msgspec type. An empty body is `default`, if there is one. Raises HttpError 400 and 413."""
    raw = await request.read()
    if not raw.strip():
        if default is not None:
            return default
        raise HttpError(400, "The request needs a JSON body.")
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.ValidationError as error:
        raise HttpError(400, f"The JSON body is not as expected: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise HttpError(400, "The request's body is not valid JSON.") from None


def set_position(response: web.StreamResponse, position: int) -> None:
    """Tells the client up to where the log must be read to see what it just did; sent back, reads wait for it."""
    response.headers[POSITION_HEADER] = str(position)
