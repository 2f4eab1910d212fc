"""Real upstreams that write down every request as they understood it: aiohttp, Node.js (strict and lenient), nginx.

A request that a trick smuggled past the router shows up in these records, because they are made by the upstream's own
parser.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from tests.support.platform import free_port
from tests.support.routers import serving
from tests.support.wait import accepts, eventually

CANARY: Final = re.compile(r"canary[0-9]+")


class Seen(msgspec.Struct, frozen=True):
    """One request as an upstream read it."""

    method: str
    target: str
    body: str | None
    """None: it did not arrive whole, or the upstream refused it."""
    host: str = ""
    forwarded_for: str = ""

    @property
    def canary(self) -> str:
        found = CANARY.search(self.target)
        return found.group() if found else ""


class Recorder:
    """One upstream: where it is and what it saw."""

    def __init__(self, url: str, read: Callable[[], list[Seen]]) -> None:
        self.url, self.read = url, read


# aiohttp


@asynccontextmanager
async def aiohttp_upstream(_root: Path) -> AsyncIterator[Recorder]:
    seen: list[Seen] = []

    async def record(request: web.Request) -> web.Response:
        body = None
        try:
            body = (await request.read()).decode("latin-1")
        finally:
            headers = request.headers
            seen.append(
                Seen(
                    request.method, request.raw_path, body, headers.get("Host", ""), headers.get("X-Forwarded-For", "")
                )
            )
        return web.Response(text=f"{request.method} {request.raw_path}")

    class Refusals(AbstractAccessLogger):
        """What aiohttp's parser refuses never reaches a handler."""

        @property
        def enabled(self) -> bool:
            return True

        def log(self, request: web.BaseRequest, response: web.StreamResponse, _time: float) -> None:
            if response.status == 400:
                seen.append(Seen("refused", request.path, None))

    app = web.Application(client_max_size=0)
    app.router.add_route("*", r"/{path:[\s\S]*}", record)
    async with serving(app, access_log=logging.getLogger(__name__), access_log_class=Refusals) as url:
        yield Recorder(url, lambda: list(seen))


# Node.js

NODE: Final = """
const http = require("http");
const say = (record) => process.stdout.write(JSON.stringify(record) + "\\n");
const server = http.createServer({ insecureHTTPParser: process.argv[1] === "lenient" }, (request, response) => {
  const pieces = [];
  const record = (body) => say({ method: request.method, target: request.url, body,
    host: request.headers.host || "", forwarded_for: request.headers["x-forwarded-for"] || "" });
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    record(Buffer.concat(pieces).toString("latin1"));
    response.end(`${request.method} ${request.url}`);
  });
  request.on("error", () => record(null));
});
server.on("clientError", (error, socket) => {
  if (error.rawPacket) say({ method: "refused", target: error.rawPacket.toString("latin1"), body: null });
  socket.destroy();
});
server.listen(0, "127.0.0.1", () => say({ port: server.address().port }));
"""


@asynccontextmanager
async def node_upstream(root: Path, how: str = "strict") -> AsyncIterator[Recorder]:
    out = root / f"node-{how}.log"
    with out.open("wb") as stdout:
        process = subprocess.Popen(["node", "-e", NODE, how], stdout=stdout, stderr=subprocess.STDOUT)
    try:
        port = json.loads(await eventually(lambda: whole_lines(out)))["port"]
        yield Recorder(
            f"http://127.0.0.1:{port}",
            lambda: [msgspec.json.decode(line, type=Seen) for line in whole_lines(out).splitlines()[1:]],
        )
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)


def lenient_node_upstream(root: Path) -> AbstractAsyncContextManager[Recorder]:
    return node_upstream(root, "lenient")


def whole_lines(file: Path) -> bytes:
    text = file.read_bytes()
    return text[: text.rfind(b"\n") + 1]


# nginx. The first server reads the body (which makes it known to the log) on its way to the second.

NGINX: Final = """
worker_processes 1; daemon off; error_log stderr crit; pid {root}/nginx.pid;
events {{ worker_connections 256; }}
http {{
  log_format seen escape=json '{{"method":"$request_method","target":"$request_uri","body":"$request_body",'
    '"host":"$http_host","forwarded_for":"$http_x_forwarded_for","whole":"$request_completion","raw":"$request"}}';
  access_log off; client_body_in_single_buffer on; client_body_buffer_size 1m; client_max_body_size 0;
  client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u;
  scgi_temp_path {root}/s; keepalive_requests 100000;
  server {{ listen 127.0.0.1:{port}; access_log {root}/seen.log seen; location / {{
    proxy_pass http://127.0.0.1:{inner}; proxy_set_header Host x; }} }}
  server {{ listen 127.0.0.1:{inner}; merge_slashes off; location / {{
    default_type text/plain; return 200 "$request_method $request_uri"; }} }}
}}
"""


@asynccontextmanager
async def nginx_upstream(root: Path) -> AsyncIterator[Recorder]:
    port, log, config = free_port(), root / "seen.log", root / "nginx.conf"
    config.write_text(NGINX.format(root=root, port=port, inner=free_port()))
    log.touch()
    process = subprocess.Popen([found("nginx"), "-p", str(root), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        await eventually(lambda: accepts(port))
        yield Recorder(f"http://127.0.0.1:{port}", lambda: [of_nginx(line) for line in whole_lines(log).splitlines()])
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)


def of_nginx(line: bytes) -> Seen:
    """nginx knows no method and no target of what it refuses; `$request` is the raw line."""
    got = json.loads(line.decode("latin-1"))
    if not got["method"]:
        return Seen("refused", got["raw"], None)
    body = got["body"] if got["whole"] == "OK" else None
    return Seen(got["method"], got["target"], body, got["host"], got["forwarded_for"])


UPSTREAMS: Final[dict[str, Callable[[Path], AbstractAsyncContextManager[Recorder]]]] = {
    "aiohttp": aiohttp_upstream,
    "node": node_upstream,
    "node-lenient": lenient_node_upstream,
    "nginx": nginx_upstream,
}


def found(program: str) -> str:
    """Debian keeps servers where an ordinary user's PATH does not look."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") or ""


def missing(name: str) -> str:
    """Why an upstream cannot be started here; empty if it can."""
    program = name.partition("-")[0]
    if program == "aiohttp" or found(program):
        return ""
    return f"{program} is not installed here"
