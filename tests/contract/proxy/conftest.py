"""Every test here runs against `orrery proxy` and against configurable-http-proxy itself.

Where the original does something that nobody should rely on, the test says what each of the two does, and why.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web

from tests.support.backbone import NatsServer, PostgresServer, running
from tests.support.proxies import TOKEN as A_TOKEN
from tests.support.proxies import Kind, Proxy, original
from tests.support.routers import serving


@pytest.fixture(scope="module")
def broker() -> Iterator[NatsServer]:
    """For all replicas of a module."""
    with running(NatsServer()) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["orrery", "original"])
async def proxy(
    request: pytest.FixtureRequest, postgres: PostgresServer, broker: NatsServer, upstream: Upstream
) -> AsyncIterator[Proxy]:
    """One of the two, with the module's `FLAGS` (a `{upstream}` in them is the upstream's URL), its `TOKEN`, and its
    `TLS`: what to speak to the public port and to the REST API with."""
    kind: Kind = request.param
    flags = getattr(request.module, "FLAGS", ())
    flags = [flag.format(upstream=upstream.url) for flag in (flags() if callable(flags) else flags)]
    token = getattr(request.module, "TOKEN", A_TOKEN)
    tls, api_tls = getattr(request.module, "TLS", lambda: (None, None))()
    if kind == "original":
        running = Proxy("original", *flags, program=original(), token=token, tls=tls, api_tls=api_tls)
    else:
        env = {
            "ORRERY_DATABASE_URL": await postgres.create_database(migrated=True),
            "ORRERY_NATS_URL": broker.relay_url,
        }
        running = Proxy(
            "orrery", *flags, env={**env, "ORRERY_DRAIN_NOTICE_S": "0"}, token=token, tls=tls, api_tls=api_tls
        )
    try:
        yield await running.start()
    finally:
        running.remove()


class Upstream:
    """A server that says what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.errors: list[str] = []
        """What was asked of it as `--error-target`."""

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket" and "nows" not in request.path:
            return await self._websocket(request)
        if "/error/" in request.path:
            self.errors.append(request.raw_path)
            return web.Response(text="<h1>the hub says so</h1>", content_type="text/html", headers={"X-Hub": "yes"})
        if status := request.query.get("status"):
            location = {"Location": request.query["location"]} if "location" in request.query else {}
            return web.Response(status=int(status), text="as you wish", headers=location)
        return web.json_response(await described(request), headers={"X-Upstream": "yes"})

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("chat",))
        await ws.prepare(request)
        await ws.send_json(await described(request))
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                await ws.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await ws.send_bytes(message.data)
        return ws


async def described(request: web.Request) -> dict[str, Any]:
    body = b"" if request.headers.get("Upgrade") else await request.read()
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers[name.lower()] = f"{headers[name.lower()]}|{value}" if name.lower() in headers else value
    return {"method": request.method, "path": request.raw_path, "headers": headers, "body": body.decode("latin-1")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    found = Upstream()
    async with serving(found.application()) as url:
        found.url = url
        yield found
