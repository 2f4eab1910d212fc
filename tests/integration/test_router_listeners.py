"""What a router listens on besides one port: unix sockets, IPv6, several things at once."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.integration.test_router_tls import application
from tests.support.backbone import PostgresServer
from tests.support.certificates import Authority
from tests.support.platform import free_port
from tests.support.routers import Bench, serving
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-listeners"),
    pytest.mark.timeout(90),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Bench]:
    url = await postgres.create_database(migrated=True)
    async with Bench.open(tmp_path_factory.mktemp("listeners"), url) as bench, serving(application()) as server:
        await bench.route(server)
        yield bench
    await postgres.drop_database(url)


async def seen(bench: Bench, connector: aiohttp.BaseConnector, origin: str, **headers: str) -> dict[str, str]:
    """The headers that the server behind the router got."""
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.get(f"{origin}/user/ada/x", headers={**bench.ada.cookie, **headers}) as answer,
    ):
        assert answer.status == 200
        return dict((await answer.json())["headers"])


def quoted(path: Path) -> str:
    return str(path).replace("/", "%2F")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: the path of a unix socket has few bytes."""
    return tmp_path_factory.mktemp("s")


async def test_several_listeners_at_once(bench: Bench, folder: Path) -> None:
    authority = Authority(folder)
    cert_file, key_file = authority.issue("cert", "127.0.0.1", "::1")
    ports = [free_port() for _ in range(3)]
    path = folder / "several.sock"
    urls = [
        f"http://[::]:{ports[0]}",
        f"https://127.0.0.1:{ports[1]}",
        f"https://[::1]:{ports[2]}/",
        f"http+unix://{quoted(folder)}%2F{{slot}}.sock?mode=660",
    ]
    router = await bench.router(
        "several",
        ORRERY_LISTEN=", ".join(urls),
        ORRERY_TLS_CERT_FILES=str(cert_file),
        ORRERY_TLS_KEY_FILES=str(key_file),
        ORRERY_TRUSTED_PROXIES="unix",
    )
    assert (await router.status())["url"] == urls[0]
    tls = authority.trusting()
    for origin, family, address, proto, port in (
        (f"http://127.0.0.1:{ports[0]}", socket.AF_INET, "127.0.0.1", "http", ports[0]),
        (f"http://[::1]:{ports[0]}", socket.AF_INET6, "::1", "http", ports[0]),
        (f"https://127.0.0.1:{ports[1]}", socket.AF_INET, "127.0.0.1", "https", ports[1]),
        (f"https://[::1]:{ports[2]}", socket.AF_INET6, "::1", "https", ports[2]),
    ):
        got = await seen(bench, aiohttp.TCPConnector(ssl=tls, family=family), origin, **{"X-Forwarded-For": "6.6.6.6"})
        assert got["X-Forwarded-For"] == address, "IPv4 looks like IPv4 on a socket for both, and nobody else is heard"
        assert (got["X-Forwarded-Proto"], got["X-Forwarded-Port"]) == (proto, str(port))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    said = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}
    got = await seen(bench, aiohttp.UnixConnector(str(path)), "http://hub.example.org", **said)
    assert (got["X-Forwarded-For"], got["X-Forwarded-Proto"], got["X-Forwarded-Port"]) == (
        "198.51.100.7",
        "https",
        "443",
    )
    assert got["Host"] == got["X-Forwarded-Host"] == "hub.example.org"
    assert await router.stop() == 0
    assert not path.exists()


async def test_a_unix_socket_alone_and_nobody_trusted(bench: Bench, folder: Path) -> None:
    path = folder / "alone.sock"
    router = await bench.router("alone", ORRERY_LISTEN=f"http+unix://{quoted(path)}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    got = await seen(
        bench, aiohttp.UnixConnector(str(path)), "http://hub.example.org:81", **{"X-Forwarded-For": "6.6.6.6"}
    )
    assert "X-Forwarded-For" not in got
    assert (got["X-Forwarded-Proto"], got["X-Forwarded-Port"]) == ("http", "81")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", bench.port)
    assert await router.stop() == 0


async def test_a_dead_routers_socket_is_taken_over_and_a_live_ones_is_not(bench: Bench, folder: Path) -> None:
    path = folder / "shared.sock"
    settings = {"ORRERY_LISTEN": f"http+unix://{quoted(path)}"}
    first = await bench.router("first", **settings)
    second = bench.launch("second", **settings)
    assert await asyncio.to_thread(second.process.wait, 30) == 1
    assert f"another process listens on {path}" in second.log
    assert "{slot}" in second.log, "and what to do"
    assert await seen(bench, aiohttp.UnixConnector(str(path)), "http://x"), "the first is none the worse"
    await first.kill()
    assert path.exists()
    third = await bench.router("third", **settings)
    assert await seen(bench, aiohttp.UnixConnector(str(path)), "http://x")
    assert await third.stop() == 0


async def test_a_unix_socket_is_handed_over_under_load(bench: Bench, folder: Path) -> None:
    """The next process of a slot takes the path over and the one before ends; whoever connects finds one of them."""
    path = folder / "rolling.sock"
    request = (
        f"GET /user/ada/x HTTP/1.1\r\nHost: x\r\nCookie: {bench.ada.cookie['Cookie']}\r\nConnection: close\r\n\r\n"
    )
    stop, failures, done = asyncio.Event(), list[str](), list[int]()

    async def visit() -> None:
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_unix_connection(str(path))
                writer.write(request.encode())
                assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
                writer.close()
                done.append(1)
            except (OSError, AssertionError) as error:
                failures.append(repr(error))
                await asyncio.sleep(0)  # where there is no socket nothing else waits

    settings = {"ORRERY_LISTEN": f"http+unix://{quoted(path)}?mode=660"}
    router = await bench.router("rolling", **settings)
    tasks = [asyncio.create_task(visit()) for _ in range(4)]
    for _ in range(2):
        successor = await bench.router("rolling", **settings)
        router.terminate()
        stranger = bench.launch("stranger", **settings)
        assert await router.stop() == 0
        assert await asyncio.to_thread(stranger.process.wait, 60) == 1, "of no other slot"
        before, router = len(done), successor
        await eventually(lambda: len(done) > before + 10)  # noqa: B023 (awaited at once)
    stop.set()
    await asyncio.gather(*tasks)
    assert not failures, f"{len(failures)} of {len(done)}: {failures[:5]}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert await router.stop() == 0
    assert os.listdir(folder) == ["rolling.sock.lock"]  # noqa: PTH208 (names are enough)


@pytest.mark.parametrize("kind", ["file", "stranger"])
async def test_what_is_not_ours_is_left_alone(bench: Bench, folder: Path, kind: str) -> None:
    path = folder / "taken.sock"
    with socket.socket(socket.AF_UNIX) as stranger:
        if kind == "file":
            path.write_text("precious")
        else:
            stranger.bind(str(path))
            stranger.listen()
        router = bench.launch("late", ORRERY_LISTEN=f"http+unix://{quoted(path)}")
        assert await asyncio.to_thread(router.process.wait, 30) == 1
        assert ("is no socket" if kind == "file" else "another process listens on") in router.log
        assert path.exists()


async def test_connections_by_unix_socket_are_drained(bench: Bench, folder: Path) -> None:
    path = folder / "drained.sock"
    router = await bench.router("drained", ORRERY_LISTEN=f"http+unix://{quoted(path)}")
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), headers=bench.ada.cookie) as http,
        http.ws_connect("http://x/user/ada/ws") as ws,
    ):
        await ws.send_bytes(b"x")
        assert await ws.receive_bytes() == b"x"
        router.terminate()
        assert (await ws.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE)
    assert await asyncio.to_thread(router.process.wait, 30) == 0


async def test_replicas_share_a_port_on_both_families(bench: Bench) -> None:
    port = free_port()
    routers = [await bench.router(f"twin-{n}", ORRERY_HOST="::", ORRERY_PORT=str(port)) for n in range(2)]
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "[::1]")):
        assert await seen(bench, aiohttp.TCPConnector(family=family), f"http://{host}:{port}")
    await routers[0].kill()

    async def answers() -> dict[str, Any]:
        return await seen(bench, aiohttp.TCPConnector(), f"http://127.0.0.1:{port}")

    await eventually(answers)
    assert json.loads((await routers[1].ops("/status"))[1])["url"] == f"http://[::]:{port}"
