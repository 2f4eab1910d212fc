"""A plain reverse proxy in aiohttp, as one writes it in an afternoon: what the router would be without its data plane.

    python -m benchmarks.aiohttp_proxy PORT ROUTES.JSON

Routes are pairs of prefix and target; the longest prefix of whole segments wins. It checks nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

HOP_BY_HOP = ("Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade")
CHUNK_BYTES = 1 << 16


class Proxy:
    def __init__(self, routes: dict[str, str], http: aiohttp.ClientSession) -> None:
        self.routes, self.http = routes, http

    def target(self, path: str) -> str | None:
        while path and path not in self.routes:
            path = path[: path.rstrip("/").rfind("/") + 1]
        return self.routes.get(path)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        target = self.target(request.path)
        if target is None:
            raise web.HTTPNotFound
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self.websocket(request, target)
        headers = without_hops(request.headers)
        headers["X-Forwarded-For"], headers["X-Forwarded-Proto"] = request.remote or "", request.scheme
        body = request.content if request.can_read_body else None
        async with self.http.request(
            request.method, target + request.raw_path, headers=headers, data=body, allow_redirects=False
        ) as answer:
            reply = web.StreamResponse(status=answer.status, headers=without_hops(answer.headers))
            await reply.prepare(request)
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                await reply.write(chunk)
            await reply.write_eof()
            return reply

    async def websocket(self, request: web.BaseRequest, target: str) -> web.WebSocketResponse:
        down = web.WebSocketResponse(compress=False)
        await down.prepare(request)
        async with self.http.ws_connect(target + request.raw_path) as up:
            await asyncio.wait([asyncio.ensure_future(pump(down, up)), asyncio.ensure_future(pump(up, down))])
        return down


async def pump(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    sink: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
        else:
            await sink.send_bytes(message.data)
    await sink.close()


def without_hops(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    for name in HOP_BY_HOP:
        kept.popall(name, None)
    return kept


async def serve(port: int, routes: dict[str, str]) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as http:
        runner = web.ServerRunner(web.Server(Proxy(routes, http).handle), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), dict(json.loads(Path(sys.argv[2]).read_text()))))
