"""`orrery proxy` as a process: alone, as replicas, through restarts, kills and outages."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from tests.support.backbone import NatsServer, PostgresServer, running
from tests.support.platform import free_port
from tests.support.proxies import Proxy
from tests.support.routers import serving
from tests.support.wait import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("proxy-process")]

Make = Callable[..., Proxy]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Proxy] = []

    def one(*flags: str, **more: object) -> Proxy:
        proxy = Proxy("orrery", *flags, **more)  # type: ignore[arg-type]
        made.append(proxy)
        return proxy

    yield one
    for proxy in reversed(made):
        proxy.remove()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.path)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    async with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def broker() -> Iterator[NatsServer]:
    with running(NatsServer()) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(postgres: PostgresServer, broker: NatsServer) -> AsyncIterator[tuple[Proxy, Proxy]]:
    """Two replicas on one database, each with ports of its own."""
    env = shared(await postgres.create_database(migrated=True), broker)
    one, two = Proxy("orrery", env=env), Proxy("orrery", env=env)
    try:
        await asyncio.gather(one.start(), two.start())
        yield one, two
    finally:
        one.remove()
        two.remove()


def shared(database_url: str, nats_server: NatsServer) -> dict[str, str]:
    return {
        "ORRERY_DATABASE_URL": database_url, "ORRERY_NATS_URL": nats_server.relay_url, "ORRERY_DRAIN_NOTICE_S": "0",
    }  # fmt: skip


async def test_alone_it_brings_its_own_database_and_leaves_nothing_behind(
    make: Make, tmp_path: Path, upstream: str
) -> None:
    pid_file = tmp_path / "pid"
    proxy = await make("--pid-file", str(pid_file)).start()
    assert proxy.process is not None
    assert pid_file.read_text() == str(proxy.process.pid)
    await proxy.add("/user/ada", upstream, user="ada")
    assert (await proxy.get("/user/ada/x")).text == "/user/ada/x"
    family = psutil.Process(proxy.process.pid).children(recursive=True)
    assert {"postgres", "nats-server"} <= {child.name() for child in family}
    secret = proxy.token
    assert not [c for c in family if secret in " ".join(c.cmdline())], "no secret in arguments"
    assert secret not in proxy.log
    assert await proxy.stop() == 0
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not pid_file.exists()

    await proxy.start()
    assert list(await proxy.routes()) == ["/user/ada"], "routes outlive the process"
    assert (await proxy.get("/user/ada/x")).text == "/user/ada/x"


async def test_replicas_on_one_data_directory_share_it_and_its_ports(make: Make, upstream: str) -> None:
    first = await make().start()
    env = {"ORRERY_DATA_DIR": str(first.root / "data")}
    second = make(env=env, port=first.port, api_port=first.api_port)
    second.launch()
    third = make(env=env)
    third.launch()
    await third.ready()
    await second.ready()
    await first.add("/user/ada", upstream)
    assert list(await third.routes()) == ["/user/ada"]
    for _ in range(20):  # Linux gives each connection to one of the two.
        assert (await first.get("/user/ada/x")).text == "/user/ada/x"
    assert (runs_postgres(first), runs_postgres(third)) == (True, False)

    await first.stop(signal.SIGKILL)
    for _ in range(20):
        assert (await third.get("/user/ada/x")).status == 200, "what it knows it keeps serving"
    assert (await second.get("/user/ada/x")).status == 200

    async def changes() -> bool:
        return (await third.api("POST", "/api/routes/user/bob", {"target": upstream})).status == 201

    await eventually(changes, timeout_s=30)
    keepers = [
        p
        for p in (second, third)
        if p.process and [c for c in psutil.Process(p.process.pid).children() if c.name() == "postgres"]
    ]
    assert len(keepers) == 1, "one of the others runs the database now"
    again = await make(env=env).start()
    assert set(await again.routes()) == {"/user/ada", "/user/bob"}
    for proxy in (again, second, third):
        assert (await proxy.get("/user/bob")).text == "/user/bob"


def serving_process(proxy: Proxy) -> psutil.Process:
    """What serves, of the processes of one `orrery proxy`."""
    assert proxy.process is not None
    family = psutil.Process(proxy.process.pid).children(recursive=True)
    found = [p for p in family if p.is_running() and p.name().startswith("orrery-proxy")]
    assert found, "none just now"
    return found[0]


def runs_postgres(proxy: Proxy) -> bool:
    assert proxy.process is not None
    return any(child.name() == "postgres" for child in psutil.Process(proxy.process.pid).children())


@pytest.mark.invariant(11)
async def test_what_one_replica_answered_every_other_serves(pair: tuple[Proxy, Proxy], upstream: str) -> None:
    one, two = pair
    await one.add("/", f"{upstream}/hub")  # As JupyterHub does; it would answer for every route that is not known yet.
    for number in range(30):
        setter, other = (one, two) if number % 2 else (two, one)
        path = f"/user/u{number}"
        await setter.add(path, f"{upstream}/{number}")
        assert (await other.get(path)).text == f"/{number}{path}"
        assert path in await other.routes()
    for number in range(30):
        remover, other = (one, two) if number % 2 else (two, one)
        assert await remover.remove_route(f"/user/u{number}") == 204
        assert await other.remove_route(f"/user/u{number}") == 404
    assert list(await one.routes()) == list(await two.routes()) == ["/"]
    assert await one.remove_route("/") == 204


async def test_last_activity_is_the_latest_of_all_replicas(
    pair: tuple[Proxy, Proxy], make: Make, upstream: str
) -> None:
    one, two = pair
    await one.add("/user/ada", upstream)
    before = (await two.routes())["/user/ada"]["last_activity"]
    assert (await one.get("/user/ada/x")).status == 200
    used = (await one.routes())["/user/ada"]["last_activity"]
    assert used > before

    async def heard(proxy: Proxy) -> bool:
        return bool((await proxy.routes())["/user/ada"]["last_activity"] >= used)

    await eventually(lambda: heard(two))
    three = await make(env=one._env).start()
    await eventually(lambda: heard(three), what="a new replica asks the others")


async def test_without_database_and_broker_it_serves_and_says_503_to_changes(
    own_postgres: PostgresServer, nats_server: NatsServer, make: Make, upstream: str
) -> None:
    url = await own_postgres.create_database(migrated=True)
    proxy = await make(env=shared(url, nats_server)).start()
    await proxy.add("/user/ada", upstream)
    await own_postgres.kill()
    await nats_server.kill()
    assert (await proxy.get("/user/ada/x")).status == 200
    assert (await proxy.get("/elsewhere")).status == 503, "it cannot be told whether there is a route"
    answers = await asyncio.gather(
        proxy.api("GET", "/api/routes", timeout_s=20),
        proxy.api("POST", "/api/routes/x", {"target": upstream}, timeout_s=20),
        proxy.api("DELETE", "/api/routes/user/ada", timeout_s=20),
    )
    assert [answered.status for answered in answers] == [503, 503, 503]
    assert all(answered.headers["Retry-After"] for answered in answers)

    async def knows() -> bool:
        try:
            served, unknown = await proxy.get("/user/ada/x"), await proxy.get("/elsewhere")
        except aiohttp.ClientConnectionError:  # Nobody listens until another process serves.
            return False
        return (served.status, served.text, unknown.status) == (200, "/user/ada/x", 503)

    server = serving_process(proxy)
    server.kill()
    await eventually(lambda: serving_process(proxy).pid != server.pid)
    await eventually(knows, timeout_s=20, what="another process serves what the killed one knew")
    await proxy.stop()
    proxy.launch()
    await eventually(knows, timeout_s=30, what="it starts with what it knew")
    snapshots = list((proxy.root / "data" / "snapshots" / "proxy").glob("*.snapshot"))
    assert 1 <= len(snapshots) <= 2, "its own, and that of the last"
    assert upstream.encode() in snapshots[-1].read_bytes()
    await own_postgres.restart()
    await nats_server.restart()

    async def changes() -> bool:
        return (await proxy.api("POST", "/api/routes/user/bob", {"target": upstream}, timeout_s=20)).status == 201

    await eventually(changes, timeout_s=30)
    assert set(await proxy.routes()) >= {"/user/ada", "/user/bob"}


async def test_the_default_target_gives_way_to_what_a_hub_has_set(
    database_url: str, nats_server: NatsServer, make: Make, upstream: str
) -> None:
    env = shared(database_url, nats_server)
    proxy = await make("--default-target", f"{upstream}/a", env=env).start()
    assert (await proxy.get("/x")).text == "/a/x"
    await proxy.stop()
    proxy = await make("--default-target", f"{upstream}/b", env=env).start()
    assert (await proxy.get("/x")).text == "/b/x", "it was the last command line's"
    await proxy.add("/", f"{upstream}/hub", hub=True)
    server = serving_process(proxy)
    server.kill()
    await eventually(lambda: serving_process(proxy).pid != server.pid)

    async def same() -> bool:
        try:
            return (await proxy.get("/x")).text == "/hub/x"
        except aiohttp.ClientConnectionError:  # Nobody listens until another process serves.
            return False

    await eventually(same, timeout_s=20)
    assert (await proxy.routes())["/"]["hub"] is True


async def test_a_port_of_a_stranger_is_not_shared(pair: tuple[Proxy, Proxy], make: Make) -> None:
    """Two hubs on one machine with one port: each would get the other's visitors."""
    one, env = pair[0], pair[0]._env
    for port, api_port in ((one.port, free_port()), (free_port(), one.api_port)):
        two = make(env=env, port=port, api_port=api_port)
        two.launch()
        assert two.process is not None
        assert await asyncio.to_thread(two.process.wait, 30) == 1
        assert f"port {port if port == one.port else api_port} is in use by" in two.log
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        three = make(env=env, port=stranger.getsockname()[1])
        three.launch()
        assert three.process is not None
        assert await asyncio.to_thread(three.process.wait, 30) == 1
        assert "is in use by" in three.log


async def test_unix_sockets_in_place_of_ports(pair: tuple[Proxy, Proxy], tmp_path: Path) -> None:
    public, api = tmp_path / "public.sock", tmp_path / "api.sock"
    flags = [f"--socket={public}", f"--api-socket={api}", "--log-level=warn"]
    command = [sys.executable, "-m", "orrery_cli.main", "proxy", *flags]
    env = {**os.environ, **pair[0]._env, "ORRERY_DATA_DIR": str(tmp_path / "data"), "CONFIGPROXY_AUTH_TOKEN": "t"}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
    try:
        await eventually(api.exists, timeout_s=30)

        async def answers() -> bool:
            try:
                async with (
                    aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(public))) as http,
                    http.get("http://x/_chp_healthz") as health,
                ):
                    return health.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(answers, timeout_s=30)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(api))) as http:
            async with http.get("http://x/api/routes") as answer:
                assert answer.status == 403
            async with http.get("http://x/api/routes", headers={"Authorization": "token t"}) as answer:
                assert answer.status == 200
    finally:
        process.terminate()
        _, said = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == 0, said
