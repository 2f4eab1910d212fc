"""A small application on the HTTP kit, as a process of a service would serve it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from orrery_events.errors import Conflict, LogUnavailable
from orrery_events.names import check_server_name
from orrery_events.principal import SESSION_COOKIE
from orrery_events.registry import Event
from orrery_events.tail import Tail
from orrery_runtime.config import Settings
from orrery_runtime.http import (
    HttpError,
    client_address,
    is_https,
    json_body,
    make_app,
    principal_of,
    public_origin,
    require_admin,
    require_principal,
    require_xsrf,
    set_position,
    xsrf_token,
)
from orrery_runtime.identity import CATEGORIES, Claims, IdentityState, Verifier, sign
from orrery_runtime.jws import SigningKey
from orrery_runtime.process import Process
from orrery_runtime.request import TAIL

SECRET = "0123456789abcdef0123456789abcdef"
KEY = SigningKey.generate("k1")


class Body(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    count: int = 1


async def whoami(request: web.Request) -> web.Response:
    principal = principal_of(request)
    return web.json_response({"name": principal.name if principal else None})


async def change(request: web.Request) -> web.Response:
    principal = require_principal(request)
    return web.json_response({"name": principal.name})


async def administer(request: web.Request) -> web.Response:
    return web.json_response({"name": require_admin(request).name})


async def form_page(request: web.Request) -> web.Response:
    return web.Response(text=xsrf_token(request))


async def form(request: web.Request) -> web.Response:
    await require_xsrf(request)
    fields = await request.post()
    return web.Response(text=str(fields.get("name", "")))


async def body(request: web.Request) -> web.Response:
    value = await json_body(request, Body, default=Body(name="none"))
    return web.json_response(msgspec.to_builtins(value))


async def required_body(request: web.Request) -> web.Response:
    return web.json_response(msgspec.to_builtins(await json_body(request, Body)))


async def where(request: web.Request) -> web.Response:
    return web.json_response([client_address(request), is_https(request), public_origin(request)])


async def fail(request: web.Request) -> web.Response:
    match request.match_info["how"]:
        case "log":
            raise LogUnavailable
        case "conflict":
            raise Conflict("s", 1, 2)
        case "name":
            check_server_name("A B")
        case "redirect":
            raise web.HTTPFound("/hub/home")
        case "teapot":
            raise HttpError(418, "<b>short & stout</b>")
        case "bug":
            raise RuntimeError("secret detail of the inside")
    return web.Response(text="fine")


async def wrote(request: web.Request) -> web.Response:
    response = web.Response(text="ok")
    set_position(response, int(request.query["p"]))
    return response


async def position(request: web.Request) -> web.Response:
    return web.json_response(request.app[TAIL].position)


ROUTES = [
    web.get("/hub/api/position", position),
    web.get("/hub/api/whoami", whoami),
    web.post("/hub/api/whoami", whoami),
    web.post("/hub/api/change", change),
    web.post("/hub/api/admin", administer),
    web.get("/hub/form", form_page),
    web.post("/hub/form", form),
    web.post("/hub/api/body", body),
    web.post("/hub/api/required", required_body),
    web.get("/hub/api/where", where),
    web.get("/hub/api/fail/{how}", fail),
    web.get("/hub/fail/{how}", fail),
    web.get("/hub/wrote", wrote),
]


class Replica:
    """One process with the application on it."""

    def __init__(self, process: Process, tail: Tail[IdentityState], url: str) -> None:
        self.process, self.tail, self.url = process, tail, url

    async def append(self, stream: str, *events: Event) -> int:
        return (await self.process.events.append(stream, events)).last_position

    @asynccontextmanager
    async def browser(self, session: str = "") -> AsyncIterator[aiohttp.ClientSession]:
        jar = aiohttp.CookieJar(unsafe=True)
        if session:
            jar.update_cookies({SESSION_COOKIE: session})
        async with aiohttp.ClientSession(self.url, cookie_jar=jar) as http:
            yield http


@asynccontextmanager
async def replica(database_url: str, nats_url: str, slot: str, **settings: Any) -> AsyncIterator[Replica]:
    loaded = Settings.load(
        database_url=database_url, nats_url=nats_url, secret_key=SECRET, slot=slot, log_level="error", **settings
    )
    async with Process.open("api", loaded) as process:
        tail = Tail(process.events, process.bus, IdentityState, categories=CATEGORIES, name="identity")
        await tail.start()
        process.track(tail)
        app = make_app(process, routes=ROUTES, verifier=Verifier(lambda: tail.state), tail=tail)
        url = await process.serve_http(app)
        yield Replica(process, tail, url)


def session(user_id: str = "u-ada", session_id: str = "s1") -> str:
    now = time.time()
    return sign(Claims(sub=user_id, jti=session_id, iat=now, exp=now + 600), KEY, kind="session")


def token(user_id: str = "u-ada", jti: str = "t1") -> str:
    return sign(Claims(sub=user_id, jti=jti, iat=time.time(), scp=("inherit",)), KEY, kind="token")


async def ask(http: aiohttp.ClientSession, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
    async with http.request(method, path, allow_redirects=False, **kwargs) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if answer.content_type == "application/json" else text


# Identity
