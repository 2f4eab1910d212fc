"""WebSockets."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
import pytest_asyncio

from tests.support.proxies import Proxy
from tests.support.routers import head_of

from .conftest import Upstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("proxy-contract")]

UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def empty(proxy: Proxy) -> None:
    await proxy.clear()


async def test_messages_go_both_ways(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/user/foo", f"{upstream.url}/pre")
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{proxy.url}/user/foo/ws?x=1", protocols=("chat",), headers={"X-Own": "1"}) as ws,
    ):
        said = await ws.receive_json(timeout=5)
        assert ws.protocol == "chat"
        assert (said["path"], said["headers"]["x-own"]) == ("/pre/user/foo/ws?x=1", "1")
        for size in (0, 1, 125, 126, 65_536, 1_000_000):
            await ws.send_bytes(b"x" * size)
            assert await ws.receive_bytes(timeout=5) == b"x" * size
        await ws.send_str("text")
        assert await ws.receive_str(timeout=5) == "text"


async def test_where_it_came_from(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{proxy.url}/ws", headers={"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "https"}) as ws,
    ):
        headers = (await ws.receive_json(timeout=5))["headers"]
    told = {name: value for name, value in headers.items() if name.startswith("x-forwarded")}
    assert told == {
        "x-forwarded-for": "10.0.0.1,127.0.0.1", "x-forwarded-proto": "https,ws", "x-forwarded-port": str(proxy.port),
    }  # fmt: skip


async def test_activity_is_data_in_either_direction(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/user/foo", upstream.url)
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{proxy.url}/user/foo/ws") as ws:
        await ws.receive_json(timeout=5)
        before = (await proxy.routes())["/user/foo"]["last_activity"]
        await ws.send_str("x")
        assert await ws.receive_str(timeout=5) == "x"
        assert (await proxy.routes())["/user/foo"]["last_activity"] > before


async def test_an_upstream_that_speaks_no_websocket_says_so_itself(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    answered = await proxy.raw(f"GET /nows?status=403 HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n".encode())
    assert answered.startswith(b"HTTP/1.1 403 ")
    assert answered.endswith(b"as you wish")


@pytest.mark.parametrize(("target", "status"), [("", 404), ("http://127.0.0.1:9", 503)])
async def test_without_anybody_there(proxy: Proxy, target: str, status: int) -> None:
    if target:
        await proxy.add("/", target)
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(f"GET /ws HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n".encode())
    head = await asyncio.wait_for(head_of(reader), 5)
    assert head.startswith(f"HTTP/1.1 {status}".encode())
    assert b"content-length: 0" in head.lower()
    if proxy.ours or status == 503:  # The original leaves the connection open after a 404.
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_other_protocols_are_not_changed_to(proxy: Proxy, upstream: Upstream) -> None:
    """The original closes the connection without a word."""
    await proxy.add("/", upstream.url)
    answered = await proxy.raw(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 400") if proxy.ours else answered == b""
