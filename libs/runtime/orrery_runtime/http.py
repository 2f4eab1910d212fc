"""The HTTP kit of auth and api: one application factory, and helpers that read a request the same way everywhere.

    app = make_app(process, routes=[web.get("/hub/home", home)], verifier=verifier, tail=tail)
    url = await process.serve_http(app)

Routes are written without the base URL. Every request gets an id, a span, one log line and a place in the metrics;
errors become JSON below `/hub/api` and a readable page elsewhere. Raise `HttpError` to answer with an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import jinja2
from aiohttp import web

from orrery_events.tail import Tail

from . import middleware
from . import request as _request
from .errors import HttpError
from .identity import Verifier
from .request import (
    BASE_URL,
    BODY_BYTES_MAX,
    POSITION_HEADER,
    SECRETS,
    TAIL,
    VERIFIER,
    client_address,
    from_edge,
    is_api,
    is_https,
    json_body,
    principal_of,
    public_origin,
    require_admin,
    require_principal,
    require_xsrf,
    set_position,
    url_path,
    wants_json,
    xsrf_is_valid,
    xsrf_token,
)
from .version import version

if TYPE_CHECKING:
    from .process import Process

__all__ = [
    "BODY_BYTES_MAX",
    "POSITION_HEADER",
    "HttpError",
    "client_address",
    "from_edge",
    "is_api",
    "is_https",
    "json_body",
    "make_app",
    "make_templates",
    "principal_of",
    "public_origin",
    "render",
    "require_admin",
    "require_principal",
    "require_xsrf",
    "set_position",
    "url_path",
    "wants_json",
    "xsrf_is_valid",
    "xsrf_token",
]

TEMPLATES: Final = web.AppKey("templates", jinja2.Environment)


def make_app(
    process: Process,
    *,
    routes: Iterable[web.AbstractRouteDef],
    verifier: Verifier | None = None,
    tail: Tail[Any] | None = None,
    templates: jinja2.Environment | None = None,
) -> web.Application:
    """The application of a service.

    `verifier`: makes `principal_of` work. `tail`: makes reads with an `Orrery-Position` wait for it, and lets the
    process catch up before it refuses a credential that is newer than what it has read. `templates`: for `render`.
    """
    app = web.Application(middlewares=[middleware.around], client_max_size=BODY_BYTES_MAX)
    app[SECRETS] = process.secrets
    app[BASE_URL] = process.settings.base_url
    app[middleware.GATE] = middleware.CatchUpGate()
    if verifier is not None:
        app[VERIFIER] = verifier
    if tail is not None:
        app[TAIL] = tail
    if templates is not None:
        app[TEMPLATES] = templates
    app.on_response_prepare.append(middleware.on_prepare)
    app.add_routes([_below(process.settings.base_url, route) for route in routes])
    return app


def make_templates(package: str) -> jinja2.Environment:
    """Jinja templates of `<package>/templates`, then the shared ones: everything escaped, unknown names are errors."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package), jinja2.PackageLoader("orrery_runtime", "web/templates")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(request: web.Request, template: str, *, status: int = 200, **values: Any) -> web.Response:
    """A page. Templates also see `base_url`, `principal`, `xsrf_token` (a text), `request_id` and `version`."""
    html = (
        request.app[TEMPLATES]
        .get_template(template)
        .render(
            base_url=request.app[BASE_URL],
            principal=principal_of(request),
            xsrf_token=xsrf_token(request),
            request_id=request.get(_request.REQUEST_ID, ""),
            version=version(),
            **values,
        )
    )
    return web.Response(text=html, status=status, content_type="text/html")


def _below(base_url: str, route: web.AbstractRouteDef) -> web.AbstractRouteDef:
    prefix = base_url.rstrip("/")
    match route:
        case web.RouteDef(method, path, handler, kwargs):
            return web.RouteDef(method, prefix + path, handler, kwargs)
        case web.StaticDef(path, directory, kwargs):
            return web.StaticDef(prefix + path, directory, kwargs)
    raise TypeError(f"{route!r} is neither a route nor a static folder")
