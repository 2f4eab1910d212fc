"""What happens around every handler: id, span, identity, errors, headers, one log line, metrics."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from opentelemetry.trace import Span, SpanKind, StatusCode

from orrery_events.errors import Conflict, EventTooLarge, LogUnavailable
from orrery_events.ids import new_id
from orrery_events.names import InvalidName
from orrery_events.principal import SESSION_COOKIE, Principal

from . import metrics, pages, telemetry, xsrf
from .errors import HttpError
from .request import (
    BASE_URL,
    BODY_BYTES_MAX,
    POSITION_HEADER,
    PRINCIPAL,
    REQUEST_ID,
    TAIL,
    VERIFIER,
    XSRF_NEW,
    XSRF_REFUSED,
    from_edge,
    is_api,
    is_https,
    wants_json,
    xsrf_is_valid,
)
from .version import JUPYTERHUB_API_VERSION

POSITION_COOKIE: Final = "orrery-position"
POSITION_COOKIE_AGE_S: Final = 60
POSITION_DIGITS_MAX: Final = 18
READ_WAIT_S: Final = 0.5
CATCH_UP_INTERVAL_S: Final = 0.25
"""Credentials that nobody here knows may make the process look at Postgres at most this often."""
RETRY_AFTER_S: Final = "2"
REQUEST_ID_HEADER: Final = "X-Request-Id"
REQUEST_ID_LENGTH_MAX: Final = 64
UNMATCHED: Final = "unmatched"

_log = structlog.get_logger("orrery.http")


class CatchUpGate:
    """Lets one caller through per interval."""

    def __init__(self) -> None:
        self._next = 0.0

    def passes(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + CATCH_UP_INTERVAL_S
        return True


TRACEPARENT: Final = web.RequestKey("traceparent", str)
GATE: Final = web.AppKey("catch_up_gate", CatchUpGate)


@web.middleware
async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost layer. Answers every request, whatever the handler raises."""
    started = time.perf_counter()
    request_id = request[REQUEST_ID] = _request_id(request)
    route = route_of(request)
    context = telemetry.context_from(request.headers)
    metrics.HTTP_IN_PROGRESS.inc()
    status = 499
    try:
        with (
            structlog.contextvars.bound_contextvars(request_id=request_id),
            telemetry.tracer().start_as_current_span(
                f"{request.method} {route}",
                context=context,
                kind=SpanKind.SERVER,
                attributes={"http.request.method": request.method, "http.route": route},
            ) as span,
        ):
            request[TRACEPARENT] = telemetry.traceparent()
            try:
                response = await _answer(request, handler)
                status = response.status
            finally:
                _finish(request, span, route, status, time.perf_counter() - started)
            return response
    finally:
        metrics.HTTP_IN_PROGRESS.dec()


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        _check_length(request)
        await _wait_for_position(request)
        await _identify(request)
        return await handler(request)
    except asyncio.CancelledError:
        raise
    except web.HTTPException as error:
        return _redirect(error) if error.status < 400 else _problem(request, _of_http_exception(error))
    except Exception as error:
        if request.transport is None or isinstance(error, ConnectionResetError):
            raise  # The client went away; there is nobody to answer.
        problem = _of_error(error)
        if problem.status == 500:
            _log.exception("http_handler_failed", route=route_of(request))
        return _problem(request, problem)


async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Headers that every answer carries, streamed ones included."""
    headers = response.headers
    for name, value in pages.SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "no-store")
    headers["Server"] = "orrery"
    headers[REQUEST_ID_HEADER] = request.get(REQUEST_ID, "")
    headers["X-JupyterHub-Version"] = JUPYTERHUB_API_VERSION
    headers.setdefault("traceresponse", request.get(TRACEPARENT, ""))
    fresh = request.get(XSRF_NEW)
    if fresh is not None:
        headers.add("Set-Cookie", _cookie(request, xsrf.COOKIE, fresh, httponly=False))
    position = headers.get(POSITION_HEADER)
    if position is not None and "Authorization" not in request.headers:
        # A browser does not repeat headers; this cookie makes its next page show what it just did, on any replica.
        cookie = _cookie(request, POSITION_COOKIE, position, httponly=True, max_age_s=POSITION_COOKIE_AGE_S)
        headers.add("Set-Cookie", cookie)


def _cookie(request: web.Request, name: str, value: str, *, httponly: bool, max_age_s: int | None = None) -> str:
    """A Set-Cookie header's value. When this is needed, aiohttp has already written the response's own cookies."""
    parts = [f"{name}={value}", f"Path={request.app[BASE_URL]}hub/", "SameSite=Lax"]
    if max_age_s is not None:
        parts.append(f"Max-Age={max_age_s}")
    if httponly:
        parts.append("HttpOnly")
    if is_https(request):
        parts.append("Secure")
    return "; ".join(parts)


def route_of(request: web.Request) -> str:
    """The route's template without the base URL; never the path itself, which may hold names and one-time keys."""
    resource = request.match_info.route.resource
    if resource is None:
        return UNMATCHED
    return "/" + resource.canonical.removeprefix(request.app[BASE_URL]).lstrip("/")


def _check_length(request: web.Request) -> None:
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise HttpError(413, f"The request's body is larger than {BODY_BYTES_MAX} bytes.")


async def _wait_for_position(request: web.Request) -> None:
    tail = request.app.get(TAIL)
    if tail is None or request.method not in xsrf.SAFE_METHODS:
        return
    text = request.headers.get(POSITION_HEADER) or request.cookies.get(POSITION_COOKIE, "")
    if text.isascii() and text.isdigit() and len(text) <= POSITION_DIGITS_MAX and int(text) > tail.position:
        await tail.wait_for(int(text), READ_WAIT_S)


async def _identify(request: web.Request) -> None:
    """Finds out who asks, and whether a cookie may be believed for what is asked."""
    verifier = request.app.get(VERIFIER)
    if verifier is None:
        return
    authorization, cookie = request.headers.get("Authorization", ""), request.cookies.get(SESSION_COOKIE, "")
    verdict = verifier.authenticate(authorization, cookie, time.time())
    if verdict in ("unknown_user", "unknown_key"):
        tail = request.app.get(TAIL)
        if tail is not None and request.app[GATE].passes() and await tail.catch_up():
            verdict = verifier.authenticate(authorization, cookie, time.time())
    if not isinstance(verdict, Principal):
        return
    request[PRINCIPAL] = verdict
    structlog.contextvars.bind_contextvars(user_id=verdict.user_id)
    if verdict.kind == "session" and request.method not in xsrf.SAFE_METHODS:
        request[XSRF_REFUSED] = not await xsrf_is_valid(request)


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID_HEADER, "")
    if given and len(given) <= REQUEST_ID_LENGTH_MAX and given.isascii() and given.isalnum() and from_edge(request):
        return given
    return new_id()


def _finish(request: web.Request, span: Span, route: str, status: int, duration_s: float) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    metrics.HTTP_DURATION.labels(request.method if route != UNMATCHED else "other", route, str(status)).observe(
        duration_s
    )
    principal = request.get(PRINCIPAL)
    log = _log.debug if route.startswith("/hub/static") or route.endswith("/health") else _log.info
    log(
        "http_request",
        method=request.method,
        route=route,
        status=status,
        duration_s=round(duration_s, 6),
        user_id=principal.user_id if principal else "",
    )


def _redirect(error: web.HTTPException) -> web.Response:
    """The raised redirect as an answer, cookies included."""
    headers = {name: value for name, value in error.headers.items() if not name.lower().startswith("content-")}
    response = web.Response(status=error.status, headers=headers)
    response.cookies.update(error.cookies)
    return response


def _of_http_exception(error: web.HTTPException) -> HttpError:
    default = f"{error.status}: {error.reason}"
    text = error.text if error.text and error.text != default else ""
    headers = {name: error.headers[name] for name in ("Allow", "Retry-After") if name in error.headers}
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        text = f"The request's body is larger than {BODY_BYTES_MAX} bytes."
    return HttpError(error.status, text or error.reason, headers=headers)


def _of_error(error: Exception) -> HttpError:
    match error:
        case HttpError():
            return error
        case LogUnavailable():
            return HttpError(503, str(error), headers={"Retry-After": RETRY_AFTER_S})
        case Conflict():
            return HttpError(409, "Somebody else changed this at the same moment. Look at it again and retry.")
        case EventTooLarge() | InvalidName():
            return HttpError(400, str(error))
        case _:
            return HttpError(500, "This should not have happened. Try again; if it stays, tell your administrator.")


def _problem(request: web.Request, error: HttpError) -> web.Response:
    """The error as JSON or as a page."""
    if wants_json(request):
        body = {"status": error.status, "message": error.message}
        return web.json_response(body, status=error.status, headers=error.headers)
    html = pages.error_page(
        error.status,
        error.message,
        title=error.title,
        action_text="Go to the home page" if not is_api(request) else "",
        action_url=f"{request.app[BASE_URL]}hub/home",
        request_id=request.get(REQUEST_ID, ""),
    )
    return web.Response(text=html, status=error.status, content_type="text/html", headers=error.headers)
