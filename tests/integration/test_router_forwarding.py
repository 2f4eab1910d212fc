"""What goes through the router, and how: real routers, real Postgres, real upstreams."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from orrery_events.catalog.server import server_id_of
from tests.support.routers import Bench, answering, head_of, serving
from tests.support.wait import eventually

pytestmark = [pytest.mark.timeout(90)]

MIB = 2**20


@pytest.fixture
async def bench(tmp_path: Path, database_url: str) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path, database_url) as bench:
        yield bench


async def echo(request: web.Request) -> web.Response:
    """Says what arrived."""
    body = await request.read()
    answer = {
        "method": request.method,
        "path": request.raw_path,
        "headers": [[name, value] for name, value in request.headers.items()],
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "port": request.transport.get_extra_info("peername")[1] if request.transport else 0,
    }
    return web.json_response(answer, headers={"X-Upstream": "yes"})


SENT: Counter[str] = Counter()
"""Bytes that upstreams were able to hand over."""


async def download(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    size = int(request.query["size"])
    if "length" in request.query:
        response.content_length = size
    await response.prepare(request)
    piece = bytes(range(256)) * 256
    for _ in range(size // len(piece)):
        await response.write(piece)
        SENT["download"] += len(piece)
    return response


async def upload(request: web.Request) -> web.Response:
    total, digest = 0, hashlib.sha256()
    async for piece in request.content.iter_any():
        total += len(piece)
        digest.update(piece)
    return web.json_response({"total": total, "sha256": digest.hexdigest()})


async def websocket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(max_msg_size=0, protocols=("chat",))
    await ws.prepare(request)
    async for message in ws:
        if message.type is aiohttp.WSMsgType.TEXT:
            await ws.send_str(f"echo {message.data}")
        else:
            await ws.send_bytes(message.data)
    return ws


def application() -> web.Application:
    app = web.Application(client_max_size=0)
    app.router.add_get("/user/ada/download", download)
    app.router.add_route("*", "/user/ada/upload", upload)
    app.router.add_get("/user/ada/ws", websocket)
    app.router.add_route("*", "/{path:.*}", echo)
    return app


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    async with serving(application()) as url:
        yield url


async def seen(bench: Bench, path: str, **kwargs: Any) -> dict[str, Any]:
    """What the upstream says that it got."""
    status, _, body = await bench.fetch(path, **kwargs)
    assert status == 200, body
    return dict(json.loads(body))


def values(request: dict[str, Any], name: str) -> list[str]:
    return [value for key, value in request["headers"] if key.lower() == name.lower()]


async def test_a_request_reaches_its_server_with_our_headers(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    got = await seen(bench, "/user/ada/some%20path/x?a=1&b=%2F", headers=bench.ada.cookie)
    assert got["path"] == "/user/ada/some%20path/x?a=1&b=%2F", "as it was sent"
    server_id = server_id_of(bench.ada.user_id, "")
    assert values(got, "Authorization") == [f"token {bench.secrets.server_secret(server_id, 1)}"]
    assert values(got, "Host") == [bench.host]
    assert values(got, "X-Forwarded-For") == ["127.0.0.1"]
    assert values(got, "X-Forwarded-Proto") == ["http"]
    assert values(got, "X-Forwarded-Host") == [bench.host]
    assert values(got, "X-Forwarded-Port") == [str(bench.port)]
    assert len(values(got, "X-Request-Id")) == 1
    assert values(got, "Connection") == []


async def test_nobody_else_says_where_a_request_came_from(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    forged = {
        "X-Forwarded-For": "10.9.8.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example",
        "X_Forwarded_For": "10.9.8.7", "Forwarded": "for=10.9.8.7", "X-Real-IP": "10.9.8.7", "X-Orrery-Edge": "x",
        "X-Request-Id": "chosen", "Keep-Alive": "5", "Proxy-Authorization": "Basic eDp5", "TE": "trailers",
        "Connection": "keep-alive, X-Hop", "X-Hop": "1",
    }  # fmt: skip
    got = await seen(bench, "/user/ada/", headers={**bench.ada.cookie, **forged})
    text = json.dumps(got["headers"])
    for word in ("10.9.8.7", "evil.example", "chosen", "X-Hop", "X-Orrery-Edge", "Proxy-Authorization", "trailers"):
        assert word not in text, word
    assert values(got, "X-Forwarded-For") == ["127.0.0.1"]


async def test_a_trusted_proxy_is_believed(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router(ORRERY_TRUSTED_PROXIES="127.0.0.0/8")
    said = {"X-Forwarded-For": "10.9.8.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "hub.example.org"}
    got = await seen(bench, "/user/ada/", headers={**bench.ada.cookie, **said})
    assert values(got, "X-Forwarded-For") == ["10.9.8.7, 127.0.0.1"]
    assert values(got, "X-Forwarded-Proto") == ["https"]
    assert values(got, "X-Forwarded-Host") == ["hub.example.org"]
    assert values(got, "X-Forwarded-Port") == ["443"]


async def test_a_prefix_is_stripped_if_the_route_says_so(bench: Bench, upstream: str) -> None:
    await bench.route(upstream, server="app", strip=True, secret_header="X-Secret", secret_prefix="")
    await bench.router()
    got = await seen(bench, "/user/ada/app/x/y?q=1", headers=bench.ada.cookie)
    assert got["path"] == "/x/y?q=1"
    assert values(got, "X-Forwarded-Prefix") == ["/user/ada/app/"]
    got = await seen(bench, "/user/ada/app/", headers={**bench.ada.cookie, "X-Secret": "guess", "X_Secret": "guess"})
    assert got["path"] == "/"
    secret = bench.secrets.server_secret(server_id_of(bench.ada.user_id, "app"), 1)
    assert values(got, "X-Secret") == [secret]
    assert values(got, "X_Secret") == []
    status, headers, _ = await bench.fetch("/user/ada/app?x=1", headers=bench.ada.cookie)
    assert (status, headers["Location"]) == (302, "/user/ada/app/?x=1")


async def test_a_base_path(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router(ORRERY_BASE_URL="/lab-a/")
    got = await seen(bench, "/lab-a/user/ada/x", headers=bench.ada.cookie)
    assert got["path"] == "/lab-a/user/ada/x"
    assert (await bench.fetch("/user/ada/x", headers=bench.ada.cookie))[0] == 404
    for path in ("/", "/lab-a", "/lab-a/"):
        status, headers, _ = await bench.fetch(path)
        assert (status, headers["Location"]) == (302, "/lab-a/hub/"), path


async def test_connections_are_used_again(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    ports = {(await seen(bench, "/user/ada/", headers=bench.ada.cookie))["port"] for _ in range(5)}
    assert len(ports) == 1, "one connection to the upstream carries requests of many clients"
    ports |= {(await seen(bench, "/user/ada/", headers=bench.ada.cookie, method="HEAD"))["port"] for _ in ()}
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    request = f"GET /user/ada/ HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\n\r\n".encode()
    for _ in range(3):
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        assert b"connection: close" not in head.lower()
    writer.close()


async def test_pipelined_requests_are_answered_in_order(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    cookie = bench.ada.cookie["Cookie"]
    one = "GET /user/ada/{} HTTP/1.1\r\nHost: x\r\nCookie: " + cookie + "\r\n{}\r\n"
    post = f"POST /user/ada/p HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\nContent-Length: 3\r\n\r\nabc"
    text = "".join(one.format(i, "") for i in range(20)) + post + one.format("last", "Connection: close\r\n")
    answer = await bench.raw(text.encode())
    paths = [
        json.loads(part.split(b"\r\n\r\n")[1].split(b"HTTP/1.1")[0])["path"]
        for part in answer.split(b"HTTP/1.1 200")[1:]
    ]
    assert paths == [f"/user/ada/{i}" for i in [*range(20), "p", "last"]]


async def test_what_cannot_be_understood_is_answered_after_what_can(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    good = f"GET /user/ada/ HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\n\r\n".encode()
    answer = await bench.raw(good + b"GARBAGE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 400") == 1


async def test_answers_without_bodies(bench: Bench, upstream: str) -> None:
    async def bodyless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await head_of(reader):
            status = head.split(b" ")[1].rsplit(b"/", 1)[1]
            writer.write(b"HTTP/1.1 " + status + b" x\r\nContent-Length: 5\r\nETag: y\r\n\r\n")

    async with answering(bodyless) as url:
        await bench.route(upstream)
        await bench.route(url, server="bare")
        await bench.router()
        status, headers, body = await bench.fetch("/user/ada/", method="HEAD", headers=bench.ada.cookie)
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 0
        for code in (204, 304, 204):
            status, headers, body = await bench.fetch(f"/user/ada/bare/{code}", headers=bench.ada.cookie)
            assert (status, body, headers.get("ETag")) == (code, b"", "y")
            assert ("Content-Length" in headers) == (code == 304), "204 has no length (RFC 9110, section 8.6)"


async def test_answers_that_end_with_the_connection(bench: Bench) -> None:
    """An HTTP/1.0 upstream; the client's own connection stays open all the same."""

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it")

    async with answering(old) as url:
        await bench.route(url)
        await bench.router()
        status, _, body = await bench.fetch("/user/ada/", headers=bench.ada.cookie)
        assert (status, body) == (200, b"all of it")
        request = f"GET /user/ada/ HTTP/1.0\r\nCookie: {bench.ada.cookie['Cookie']}\r\n\r\n".encode()
        answer = await bench.raw(request)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nall of it"), "an HTTP/1.0 client knows no chunks"
        assert b"Connection: close" in answer


async def test_an_http_1_0_client_gets_no_chunks(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    cookie = bench.ada.cookie["Cookie"]
    answer = await bench.raw(f"GET /user/ada/download?size=65536 HTTP/1.0\r\nCookie: {cookie}\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body == bytes(range(256)) * 256


async def test_100_continue(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    cookie = bench.ada.cookie["Cookie"]
    writer.write(
        f"POST /user/ada/upload HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\nExpect: 100-continue\r\n"
        "Content-Length: 5\r\nConnection: close\r\n\r\n".encode()
    )
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100 ")
    writer.write(b"hello")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"total": 5' in answer
    writer.close()


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_hundred_megabytes_each_way_in_constant_memory(bench: Bench, upstream: str, chunked: bool) -> None:
    await bench.route(upstream)
    router = await bench.router()
    process = psutil.Process(router.pid)
    await bench.fetch("/user/ada/", headers=bench.ada.cookie)
    before, most, size = process.memory_info().rss, 0, 100 * MIB
    piece = bytes(range(256)) * 256

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // len(piece)):
            yield piece

    url = f"{bench.url}/user/ada/download?size={size}" + ("" if chunked else "&length=1")
    digest, total = hashlib.sha256(), 0
    async with aiohttp.ClientSession() as http:
        async with http.get(url, headers=bench.ada.cookie) as answer:
            async for got in answer.content.iter_any():
                total += len(got)
                digest.update(got)
                most = max(most, process.memory_info().rss)
        assert total == size
        headers = bench.ada.cookie if chunked else {**bench.ada.cookie, "Content-Length": str(size)}
        async with http.post(f"{bench.url}/user/ada/upload", data=pieces(), headers=headers) as answer:
            assert await answer.json() == {"total": size, "sha256": digest.hexdigest()}
            most = max(most, process.memory_info().rss)
    assert most - before < 24 * MIB, f"{(most - before) / MIB:.1f} MiB more"


async def test_a_slow_reader_slows_the_server_down(bench: Bench) -> None:
    sent = 0

    async def fast(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (200 * MIB))
        for _ in range(200 * 16):
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with answering(fast) as url:
        await bench.route(url)
        router = await bench.router()
        before = psutil.Process(router.pid).memory_info().rss
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port, limit=65536)
        writer.write(f"GET /user/ada/ HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        steady = 0

        def stands_still() -> bool:
            nonlocal steady
            still, steady = sent == steady, sent
            return still and sent > 0

        await eventually(stands_still, interval_s=0.3)
        assert sent < 40 * MIB, "the kernel's buffers, not the router's memory"
        assert psutil.Process(router.pid).memory_info().rss - before < 16 * MIB
        writer.close()


async def test_a_slow_reader_of_many_answers_slows_each_of_them_down(bench: Bench, upstream: str) -> None:
    """An answer may end while its reader lags behind; the next one must not take that for a fresh start."""
    await bench.route(upstream)
    router = await bench.router()
    before = psutil.Process(router.pid).memory_info().rss
    SENT.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", bench.port, limit=1024)
    for size in (*[65536] * 300, 400 * MIB):
        request = f"GET /user/ada/download?size={size} HTTP/1.1\r\nHost: x\r\n"
        writer.write(f"{request}Cookie: {bench.ada.cookie['Cookie']}\r\n\r\n".encode())

    steady = 0

    def stands_still() -> bool:
        nonlocal steady
        still, steady = SENT.total() == steady, SENT.total()
        return still and steady > 0

    await eventually(stands_still, timeout_s=20, interval_s=0.5)
    assert psutil.Process(router.pid).memory_info().rss - before < 32 * MIB
    writer.close()


async def test_a_slow_server_slows_an_upload_down(bench: Bench) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        await asyncio.Event().wait()

    async with answering(slow) as url:
        await bench.route(url)
        router = await bench.router()
        before = psutil.Process(router.pid).memory_info().rss
        _, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        head = f"PUT /user/ada/ HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\n"
        writer.write(f"{head}Content-Length: {200 * MIB}\r\n\r\n".encode())
        sent = 0

        async def stuck() -> bool:
            nonlocal sent
            try:
                async with asyncio.timeout(0.5):
                    while True:
                        writer.write(bytes(65536))
                        await writer.drain()
                        sent += 65536
            except TimeoutError:
                return True

        assert await eventually(stuck)
        assert sent < 60 * MIB
        assert psutil.Process(router.pid).memory_info().rss - before < 16 * MIB
        writer.close()


async def test_a_client_that_leaves_frees_its_server(bench: Bench) -> None:
    gone = asyncio.Event()

    async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
        gone.set()

    async with answering(patient) as url:
        await bench.route(url)
        await bench.router()
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        writer.write(f"GET /user/ada/ HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\n\r\n".encode())
        await reader.readuntil(b"data: 1\n\n")
        writer.close()
        await asyncio.wait_for(gone.wait(), 5)


async def test_websockets(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    router = await bench.router()
    big = bytes(range(256)) * 4096 * 4
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(
            f"{bench.url}/user/ada/ws", headers=bench.ada.cookie, protocols=("chat",), max_msg_size=0, origin=bench.url
        ) as ws,
    ):
        assert ws.protocol == "chat"
        await ws.send_str("hello")
        assert (await ws.receive(5)).data == "echo hello"
        await ws.send_bytes(big)
        assert (await ws.receive(10)).data == big
        for number in range(200):
            await ws.send_str(str(number))
        assert [(await ws.receive(5)).data for _ in range(200)] == [f"echo {n}" for n in range(200)]
        await ws.close(code=1000)
    await eventually(lambda: router.process.poll() is None)


async def test_a_refused_websocket_is_an_ordinary_answer(bench: Bench) -> None:
    requests: list[bytes] = []

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await head_of(reader))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        requests.append(await reader.read())

    async with answering(refuses) as url:
        await bench.route(url)
        await bench.router()
        head = (
            f"GET /user/ada/ws HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        smuggled = b"GET /user/ada/secret HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await bench.raw(head.encode() + smuggled)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.endswith(b"no")
        await eventually(lambda: len(requests) == 2)
        assert b"Upgrade: websocket" in requests[0]
        assert requests[1] == b"", "what was sent ahead is no request"


async def test_other_upgrades_are_refused(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    head = f"GET /user/ada/ HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\n"
    answer = await bench.raw(f"{head}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_trace_is_handed_on(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    got = await seen(bench, "/user/ada/", headers={**bench.ada.cookie, "traceparent": trace})
    assert values(got, "traceparent") == [trace]
    got = await seen(bench, "/user/ada/", headers={**bench.ada.cookie, "traceparent": "nonsense"})
    assert values(got, "traceparent") == []
