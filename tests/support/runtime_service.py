"""A small service on the runtime, run as a real process: `python -m tests.support.runtime_service`."""

from __future__ import annotations

import asyncio
import os
import sys

from aiohttp import web

from orrery_events.tail import Tail
from orrery_runtime.http import json_body, make_app, principal_of, require_principal
from orrery_runtime.identity import CATEGORIES, IdentityState, Verifier
from orrery_runtime.process import Process, run


async def hello(request: web.Request) -> web.Response:
    principal = principal_of(request)
    return web.json_response({"name": principal.name if principal else None})


async def slow(request: web.Request) -> web.StreamResponse:
    """Answers when it is told to, by a file that appears."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"begun\n")
    while not os.path.exists(request.query["until"]):  # noqa: ASYNC110, ASYNC240, PTH110 (test signal)
        await asyncio.sleep(0.01)
    await response.write(b"done\n")
    return response


async def change(request: web.Request) -> web.Response:
    require_principal(request)
    return web.json_response(await json_body(request, dict))


async def body(process: Process) -> None:
    tail = Tail(process.events, process.bus, IdentityState, categories=CATEGORIES, name="identity")
    await tail.start()
    process.track(tail)

    async def fails() -> None:
        raise RuntimeError("on purpose")

    if os.environ.get("TEST_CRASH"):
        raise ValueError(os.environ["TEST_CRASH"])
    if os.environ.get("TEST_FAILING_TASK"):
        process.task("fails", fails)
    routes = [
        web.get("/hub/api/hello", hello),
        web.get("/hub/api/slow", slow),
        web.post("/hub/api/change", change),
    ]
    app = make_app(process, routes=routes, verifier=Verifier(lambda: tail.state), tail=tail)
    url = await process.serve_http(app)
    await process.register(url, lease_loss="renew" if os.environ.get("TEST_RENEW") else "stop")
    await process.run_until_stopped()


if __name__ == "__main__":
    sys.exit(run(os.environ.get("TEST_SERVICE", "api"), body))
