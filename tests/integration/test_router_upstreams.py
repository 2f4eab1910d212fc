"""Where a router connects to: by TLS, by unix socket, by IPv6; and what becomes of a request when nobody answers."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from orrery_events.catalog.route import RouteSet, route_id_of
from orrery_events.catalog.server import server_id_of, server_stream
from tests.integration.test_router_tls import application
from tests.support.backbone import PostgresServer
from tests.support.certificates import Authority
from tests.support.platform import free_port
from tests.support.routers import Bench, RouterProcess, answering, head_of, serving
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-upstreams"),
    pytest.mark.timeout(90),
]


class Edge:
    """One router, and servers of every kind behind it."""

    def __init__(self, bench: Bench, root: Path) -> None:
        self.bench, self.root = bench, root
        self.authority = Authority(root)
        self.pair = self.authority.issue("server", "127.0.0.1", "localhost")
        self.shown = self.authority.issue("router", "router")
        self.stack = AsyncExitStack()
        self.router: RouterProcess

    async def site(self, make: Any) -> str:
        """Serves on `make(runner)`; the port or path that it has."""
        runner = web.AppRunner(application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        await make(runner).start()
        address = runner.addresses[0]
        return address if isinstance(address, str) else str(address[1])

    async def set(self, target: str, **more: Any) -> str:
        """A route of its own below /user/ada/; its path. `more`: fields of the event."""
        name = f"s{self.count}"
        self.count += 1
        prefix = f"/user/ada/{name}/"
        ada = self.bench.ada
        facts: dict[str, Any] = {
            "route_id": route_id_of(prefix), "prefix": prefix, "target": target, "owner_id": ada.user_id,
            "owner_name": "ada", "server_id": server_id_of(ada.user_id, name), "server_name": name, "generation": 1,
        }  # fmt: skip
        await self.bench.log.append(server_stream(facts["server_id"]), [RouteSet(**{**facts, **more})])
        return prefix

    count = 0

    async def fetch(self, path: str, **kwargs: Any) -> tuple[int, str]:
        status, _, body = await self.bench.fetch(
            path, headers={**self.bench.ada.cookie, "Accept": "text/html"}, **kwargs
        )
        return status, body.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Edge]:
    root = tmp_path_factory.mktemp("up")
    url = await postgres.create_database(migrated=True)
    async with Bench.open(root, url) as bench:
        edge = Edge(bench, root)
        edge.router = await bench.router(
            ORRERY_UPSTREAM_CA_FILE=str(edge.authority.file),
            ORRERY_UPSTREAM_CERT_FILE=str(edge.shown[0]),
            ORRERY_UPSTREAM_KEY_FILE=str(edge.shown[1]),
            ORRERY_UPSTREAM_CONNECT_TIMEOUT_S="1",
            ORRERY_UPSTREAM_RESPONSE_TIMEOUT_S="1",
        )
        async with edge.stack:
            yield edge
    await postgres.drop_database(url)


async def test_targets_of_every_kind(edge: Edge) -> None:
    tls = edge.authority.serving(edge.pair)
    path = edge.root / "u.sock"
    await edge.site(lambda runner: web.UnixSite(runner, str(path)))
    kinds = {
        "http://localhost:{}": lambda runner: web.TCPSite(runner, "127.0.0.1", 0),
        "http://[::1]:{}": lambda runner: web.TCPSite(runner, "::1", 0),
        "https://127.0.0.1:{}": lambda runner: web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls),
        "https://localhost:{}": lambda runner: web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls),
    }
    targets = [url.format(await edge.site(make)) for url, make in kinds.items()]
    targets.append(f"http+unix://{str(path).replace('/', '%2F')}")
    for target in targets:
        prefix = await edge.set(target)
        status, body = await edge.fetch(prefix + "x", method="POST", data=b"x" * 100_000)
        assert (status, json.loads(body)["length"]) == (200, 100_000), target
        status, body = await edge.fetch(prefix + "x")
        assert dict(json.loads(body)["headers"])["Host"] == edge.bench.host


async def test_a_websocket_by_tls_to_the_server(edge: Edge) -> None:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(max_msg_size=0)
        await ws.prepare(request)
        async for message in ws:
            await ws.send_bytes(message.data)
        return ws

    app = web.Application()
    app.router.add_get("/{path:.*}", echo)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    edge.stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=edge.authority.serving(edge.pair)).start()
    prefix = await edge.set(f"https://127.0.0.1:{runner.addresses[0][1]}")
    async with (
        aiohttp.ClientSession(headers=edge.bench.ada.cookie) as http,
        http.ws_connect(edge.bench.url + prefix, max_msg_size=0) as ws,
    ):
        await ws.send_bytes(b"x" * 2**20)
        assert len(await ws.receive_bytes()) == 2**20


@pytest.mark.parametrize("what", ["another name", "another authority"])
async def test_a_certificate_that_is_not_right_is_refused(edge: Edge, what: str) -> None:
    authority = edge.authority if what == "another name" else Authority(edge.root, "stranger")
    names = ("elsewhere",) if what == "another name" else ("127.0.0.1",)
    tls = authority.serving(authority.issue("wrong", *names))
    port = await edge.site(lambda runner: web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls))
    prefix = await edge.set(f"https://127.0.0.1:{port}")
    status, body = await edge.fetch(prefix)
    assert status == 502
    assert "certificate" in body
    line = next(line for line in reversed(edge.router.lines()) if line["event"] == "upstream_tls_refused")
    assert line["target"] == f"https://127.0.0.1:{port}"
    assert "upstream_ca_file" in line["consequence"]


async def test_any_certificate_is_taken_if_an_admin_says_so(edge: Edge) -> None:
    tls = Authority(edge.root, "nobody").serving(Authority(edge.root, "nobody").issue("self", "elsewhere"))
    port = await edge.site(lambda runner: web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls))
    prefix = await edge.set(f"https://127.0.0.1:{port}")
    listening = free_port()
    router = await edge.bench.router("insecure", ORRERY_PORT=str(listening), ORRERY_UPSTREAM_INSECURE="true")
    async with (
        aiohttp.ClientSession(headers=edge.bench.ada.cookie) as http,
        http.get(f"http://127.0.0.1:{listening}{prefix}x") as answer,
    ):
        assert answer.status == 200
    assert await router.stop() == 0


async def test_the_routers_own_certificate_is_shown_and_a_new_one_taken(edge: Edge) -> None:
    tls = edge.authority.serving(edge.pair, ask_clients=True)
    port = await edge.site(lambda runner: web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls))
    prefix = await edge.set(f"https://127.0.0.1:{port}")
    assert (await edge.fetch(prefix + "x"))[0] == 200
    stranger = Authority(edge.root, "other").issue("router-2", "router")
    kept = [shutil.copy(path, path.with_name(f"{path.name}.kept")) for path in edge.shown]
    loaded = edge.router.log.count("tls_files_loaded")

    async def slowly() -> AsyncIterator[bytes]:
        """A request that is under way while the files change."""
        yield b"begun"
        for new, path in zip(stranger, edge.shown, strict=True):
            shutil.copy(new, path)
        await eventually(lambda: edge.router.log.count("tls_files_loaded") > loaded)
        yield b"ended"

    assert (await edge.fetch(prefix + "x", method="POST", data=slowly()))[0] == 200
    assert (await edge.fetch(prefix + "x"))[0] in (502, 503), "a connection of before is not used again"
    for old, path in zip(kept, edge.shown, strict=True):
        shutil.copy(old, path)

    async def is_taken() -> bool:
        return (await edge.fetch(prefix + "x"))[0] == 200

    await eventually(is_taken)


# Passive health


async def test_a_server_that_refuses_is_asked_again_at_once(edge: Edge) -> None:
    port = free_port()
    prefix = await edge.set(f"http://127.0.0.1:{port}")
    status, body = await edge.fetch(prefix)
    assert status == 503
    assert "This server cannot be reached" in body
    runner = web.AppRunner(application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    assert (await edge.fetch(prefix + "x"))[0] == 200, "not a moment later"
    await runner.cleanup()
    assert (await edge.fetch(prefix + "x"))[0] == 503, "the pooled connection is of no more use"


async def test_a_unix_socket_that_is_gone(edge: Edge) -> None:
    path = edge.root / "gone.sock"
    prefix = await edge.set(f"http+unix://{str(path).replace('/', '%2F')}")
    assert (await edge.fetch(prefix))[0] == 503
    await edge.site(lambda runner: web.UnixSite(runner, str(path)))
    assert (await edge.fetch(prefix + "x"))[0] == 200


async def test_a_server_that_takes_no_connection(edge: Edge) -> None:
    """Its queue is full: nobody refuses, nobody accepts."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        filling = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(("127.0.0.1", port))
            filling.append(client)
        prefix = await edge.set(f"http://127.0.0.1:{port}")
        status, body = await edge.fetch(prefix)
        for client in filling:
            client.close()
    assert status == 503
    assert "did not take the connection in time" in body


async def test_a_server_that_does_not_answer_in_time(edge: Edge) -> None:
    slow = True

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await head_of(reader):
            if slow:
                await asyncio.Event().wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with answering(handle) as url:
        prefix = await edge.set(url)
        status, body = await edge.fetch(prefix)
        assert status == 503
        assert "did not answer in time" in body
        slow = False
        assert await edge.fetch(prefix) == (200, "ok"), "asked again at once"


# Instances of auth and api


class Instances:
    """Two instances of api; what each does with a request, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = {"a": 0, "b": 0}
        self.does = {"a": "answers", "b": "answers"}

    def handler(self, name: str) -> Any:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while head := await head_of(reader):
                self.asked[name] += 1
                match self.does[name]:
                    case "answers":
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name.encode())
                    case "closes":
                        return
                    case "half":
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
                        return
                assert head

        return handle


@pytest_asyncio.fixture(loop_scope="module")
async def instances(edge: Edge) -> AsyncIterator[Instances]:
    instances = Instances()
    async with answering(instances.handler("a")) as a, answering(instances.handler("b")) as b:
        await edge.bench.instance("api", a, slot="api-a")
        await edge.bench.instance("api", b, slot="api-b")

        async def known() -> bool:
            await edge.fetch("/hub/home")
            return all(instances.asked.values())

        await eventually(known)
        instances.asked = {"a": 0, "b": 0}
        yield instances
        await edge.bench.instance("api", "http://127.0.0.1:9", slot="api-a", draining=True)
        await edge.bench.instance("api", "http://127.0.0.1:9", slot="api-b", draining=True)


async def test_instances_are_balanced(edge: Edge, instances: Instances) -> None:
    for _ in range(10):
        assert (await edge.fetch("/hub/home"))[0] == 200
    assert instances.asked == {"a": 5, "b": 5}


async def test_an_instance_that_hangs_up_is_skipped_within_the_request(edge: Edge, instances: Instances) -> None:
    instances.does["a"] = "closes"
    answers = [await edge.fetch("/hub/home") for _ in range(6)]
    assert answers == [(200, "b")] * 6
    assert instances.asked["a"] <= 6, "each request asks it once and no more"


async def test_what_may_have_been_done_is_not_done_twice(edge: Edge, instances: Instances) -> None:
    instances.does = {"a": "closes", "b": "closes"}
    status, _ = await edge.fetch("/hub/api/x", method="POST", data=b"once")
    assert status == 503
    assert sum(instances.asked.values()) == 1


async def test_nobody_left_is_said_and_ends(edge: Edge, instances: Instances) -> None:
    instances.does = {"a": "closes", "b": "closes"}
    status, body = await edge.fetch("/hub/home")
    assert status == 503
    assert "No answer came" in body
    # An old connection that is closed is no answer of an instance: that one is asked on a new one before the next.
    assert 2 <= sum(instances.asked.values()) <= 4


async def test_half_an_answer_is_not_repeated(edge: Edge, instances: Instances) -> None:
    instances.does = {"a": "half", "b": "half"}
    with pytest.raises(aiohttp.ClientError):
        await edge.fetch("/hub/home")
    assert sum(instances.asked.values()) == 1


async def test_an_instance_by_https(edge: Edge) -> None:
    tls = edge.authority.serving(edge.pair)
    port = await edge.site(lambda runner: web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls))
    await edge.bench.instance("auth", f"https://127.0.0.1:{port}", slot="auth-tls")

    async def answers() -> bool:
        return (await edge.fetch("/hub/login"))[0] == 200

    await eventually(answers)
    async with serving(application()) as plain:
        await edge.bench.instance("auth", plain, slot="auth-tls")
        await eventually(answers)
