"""`…/progress`: a start's timeline as server-sent events.

The story is read from the log, so that a reload, or another replica, tells all of it again; what happens from then on
is added live. `id:` is the position in the log, and `Last-Event-ID` continues behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from aiohttp import web

from orrery_api.timeline import ENDS, entry_of
from orrery_api.watch import Item
from orrery_events.catalog.server import Progressed, ServerEvent, server_stream
from orrery_events.errors import LogUnavailable, UnknownEventType
from orrery_events.server_state import STARTING, Phase, Server
from orrery_runtime.http import HttpError
from orrery_runtime.request import BASE_URL

from .common import OPERATIONS, existing_server, user_in_path

KEEPALIVE_S: Final = 8.0
STREAMS_MAX: Final = 2_000
"""Open streams of this process; one more is refused with 503."""
LOOK_BACK: Final = 300
"""Events before the server's latest state among which its current generation began."""
STREAMS: Final = web.AppKey("streams", list[int])


async def progress(request: web.Request) -> web.StreamResponse:
    user = user_in_path(request, "read:servers")
    server = existing_server(request, user).server
    if server.phase not in (*STARTING, Phase.READY, Phase.FAILED, Phase.EXPIRED, Phase.CANCELLED):
        raise HttpError(400, f"{user.name}'s server is not starting")
    open_streams = request.app[STREAMS]
    if open_streams[0] >= STREAMS_MAX:
        raise HttpError(503, "Too many progress streams are open.", headers={"Retry-After": "5"})
    open_streams[0] += 1
    try:
        return await _stream(request, server)
    finally:
        open_streams[0] -= 1


async def _stream(request: web.Request, server: Server) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    resumed = request.headers.get("Last-Event-ID", "")
    position = int(resumed) if resumed.isascii() and resumed.isdigit() and len(resumed) < 19 else 0
    await response.prepare(request)
    with request.app[OPERATIONS].watch.listen(server.server_id) as queue:
        async for recorded, event in _events(request, server, queue):
            if recorded is None:
                await response.write(b"\n\n")
                continue
            entry = entry_of(recorded, event, request.app[BASE_URL]) if recorded.position > position else None
            if entry is not None:
                position = recorded.position
                data = msgspec.json.encode(entry)
                await response.write(b"id: %d\ndata: %b\n\n" % (position, data))
            if isinstance(event, ENDS):
                break
    await response.write_eof()
    return response


async def _events(request: web.Request, server: Server, queue: asyncio.Queue[Item]) -> AsyncIterator[Any]:
    """The generation's events, oldest first, then live ones; `(None, None)` when nothing happened for a while."""
    for recorded, event in await _history(request, server):
        yield recorded, event
    while True:
        try:
            async with asyncio.timeout(KEEPALIVE_S):
                recorded, event = await queue.get()
        except TimeoutError:
            yield None, None
            continue
        if isinstance(event, ServerEvent | Progressed) and event.generation >= server.generation:
            yield recorded, event


async def _history(request: web.Request, server: Server) -> list[Item]:
    operations = request.app[OPERATIONS]
    try:
        rows = await operations.log.read_stream(
            server_stream(server.server_id), after_version=max(0, server.version - LOOK_BACK)
        )
    except LogUnavailable:
        return [i for i in operations.watch.seen(server.server_id) if _is_of(i, server)]
    items: list[Item] = []
    for row in rows:
        try:
            items.append((row, row.event()))
        except UnknownEventType:
            continue
    return [i for i in items if _is_of(i, server)]


def _is_of(item: Item, server: Server) -> bool:
    event = item[1]
    return isinstance(event, ServerEvent | Progressed) and event.generation == server.generation


async def history(request: web.Request, server: Server) -> list[dict[str, Any]]:
    """The timeline so far, for pages."""
    entries = (entry_of(recorded, event, request.app[BASE_URL]) for recorded, event in await _history(request, server))
    return [entry for entry in entries if entry is not None]


ROUTES: Final = [
    web.get("/hub/api/users/{user}/server/progress", progress),
    web.get("/hub/api/users/{user}/servers/{server}/progress", progress),
]
