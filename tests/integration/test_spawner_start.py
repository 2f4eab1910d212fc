"""Starting and stopping servers with a real spawner, a real log and real processes; NATS is down all the time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import aiohttp
import psutil
import pytest
import pytest_asyncio

from orrery_events.catalog.profile import Profile
from orrery_events.catalog.route import RouteSet
from orrery_events.catalog.server import Failed, Progressed, Ready
from tests.support.backbone import PostgresServer
from tests.support.spawners import SECRET_KEY, SERVE, Bench, python_profile
from tests.support.wait import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("spawner-start")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Bench]:
    """One spawner for all tests of this file; each asks for servers of other names."""
    url = await postgres.create_database(migrated=True)
    async with Bench.open(tmp_path_factory.mktemp("spawner"), url) as bench:
        await bench.spawner()
        yield bench
    await postgres.drop_database(url)


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    yield shared
    shared.end_servers()


async def test_start_and_stop(bench: Bench) -> None:
    server_id = await bench.request("lab")
    ready = await bench.until(server_id, "server.ready")
    assert isinstance(ready, Ready)
    history = await bench.history(server_id)
    route = history[-2]
    assert isinstance(route, RouteSet), "the same append, before `ready`"
    assert (route.prefix, route.target, route.generation) == ("/user/ada/lab/", ready.target, 1)
    assert ready.started_at
    assert abs(ready.started_at - time.time()) < 20
    lines = [event.message for event in history if isinstance(event, Progressed)]
    assert lines == ["Starting Quick…", "Waiting for it to answer on its port…"]
    async with aiohttp.ClientSession() as http, http.get(ready.target) as answer:
        assert answer.status == 200
    assert len(bench.roots(server_id)) == 1

    await bench.request_stop(server_id)
    await bench.until(server_id, "server.stopped")
    assert (await bench.types(server_id))[-4:] == [
        "server.stop_requested",
        "route.removed",
        "server.stop_claimed",
        "server.stopped",
    ]
    assert not bench.processes(server_id)
    assert "/user/ada/lab/" not in await bench.routes()
    folder = bench.data_dir / "servers" / server_id / "g1"
    await eventually(lambda: [p.name for p in folder.iterdir()] == ["server.log"])


async def failed(bench: Bench, server_id: str) -> Failed:
    """The failure; by then or soon after nothing is left, and the next start succeeds."""
    event = await bench.until(server_id, "server.failed")
    assert isinstance(event, Failed)
    await eventually(lambda: not bench.processes(server_id))
    assert f"/user/ada/{event.name}/" not in await bench.routes()
    return event


async def test_the_command_does_not_exist(bench: Bench) -> None:
    await bench.define(Profile(name="missing", command=["no-such-program", "{port}"]))
    server_id = await bench.request("missing", "missing")
    event = await failed(bench, server_id)
    assert (event.reason, event.exit_code) == ("command_not_found", 127)
    assert "'no-such-program': No such file or directory" in event.message
    await bench.starts_again(server_id)


async def test_it_exits_at_once(bench: Bench) -> None:
    secret_seen = (
        "import os, sys; print('a\\x1b[31mb'); print('secret', os.environ['S']); print('?token=abc'); sys.exit(3)"
    )
    await bench.define(python_profile("exits", secret_seen, secret_env="S"))
    server_id = await bench.request("exits", "exits")
    event = await failed(bench, server_id)
    assert (event.reason, event.exit_code) == ("exited", 3)
    assert event.log_tail == ["ab", "secret [redacted]", "?token=[redacted]"]
    await bench.starts_again(server_id)


async def test_it_never_opens_its_port(bench: Bench) -> None:
    await bench.define(
        python_profile("mute", "print('here I am', flush=True); import time; time.sleep(600)", start_timeout_s=1)
    )
    server_id = await bench.request("mute", "mute")
    event = await failed(bench, server_id)
    assert (event.reason, event.log_tail) == ("port_never_opened", ["here I am"])
    assert "within 1 s" in event.message
    await bench.starts_again(server_id)


async def test_it_opens_its_port_too_late(bench: Bench) -> None:
    late = "import time; time.sleep(3)\n" + SERVE.format(status=200)
    await bench.define(python_profile("late", late, start_timeout_s=1.5))
    event = await failed(bench, await bench.request("late", "late"))
    assert event.reason == "port_never_opened"


async def test_it_answers_with_errors(bench: Bench) -> None:
    await bench.define(python_profile("broken", SERVE.format(status=500), start_timeout_s=1.5, probe_path="health"))
    server_id = await bench.request("broken", "broken")
    event = await failed(bench, server_id)
    assert event.reason == "probe_failed"
    assert "/user/ada/broken/health" in event.message
    await bench.starts_again(server_id)


async def test_the_profile_is_unknown(bench: Bench) -> None:
    await bench.define(Profile(name="elsewhere", driver="docker", command=["x"]))
    assert (await failed(bench, await bench.request("nothing", "no-such-profile"))).reason == "profile_unknown"
    assert (await failed(bench, await bench.request("elsewhere", "elsewhere"))).reason == "driver_error"


async def test_its_port_was_taken(bench: Bench) -> None:
    """The server finds its port in use and exits; another port is tried within the same generation."""
    thief = (
        "import os, socket, subprocess, sys, time\n"
        "taken = os.path.expanduser('~/taken')\n"
        "if not os.path.exists(taken):\n"
        "    open(taken, 'w').close()\n"
        "    code = f'import socket, time; s = socket.create_server((\"127.0.0.1\", {sys.argv[1]})); time.sleep(600)'\n"
        "    env = dict(os.environ, ORRERY_SERVER_ID='thief')\n"
        "    subprocess.Popen([sys.executable, '-c', code], env=env, start_new_session=True)\n"
        "    while socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))): time.sleep(0.01)\n"
        "    sys.exit('port in use')\n"
    ) + SERVE.format(status=200)
    bench.server_ids.add("thief")
    await bench.define(python_profile("unlucky", thief))
    server_id = await bench.request("unlucky", "unlucky")
    ready = await bench.until(server_id, "server.ready")
    assert ready.generation == 1  # type: ignore[attr-defined]
    lines = [event.message for event in await bench.history(server_id) if isinstance(event, Progressed)]
    assert "Another program had taken its port. Trying another one…" in lines
    assert len(bench.roots(server_id)) == 1


@pytest.mark.invariant(8)
async def test_the_secret_is_told_to_the_server_and_to_nobody_else(bench: Bench) -> None:
    """A stranger on the server's port is not asked with the secret, and is not taken for the server."""
    asks = (
        "import http.server, os, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        right = self.headers.get('X-Key') == 'key ' + os.environ['MY_KEY']\n"
        "        self.send_response(200 if right else 503); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    await bench.define(python_profile("keyed", asks, secret_env="MY_KEY", secret_header="X-Key", secret_prefix="key "))
    server_id = await bench.request("keyed", "keyed")
    await bench.until(server_id, "server.ready")
    secret = bench.secrets.server_secret(server_id, 1)
    stored = await bench.pool.fetchval("SELECT string_agg(convert_from(data, 'utf8') || meta::text, '') FROM es.events")
    assert "keyed" in stored
    assert secret not in stored
    assert SECRET_KEY not in stored
    assert secret not in bench.spawners[0].log
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            assert secret not in " ".join(process.cmdline())
    (root,) = bench.roots(server_id)
    assert SECRET_KEY not in str(root.environ())
    assert bench.database_url not in str(root.environ())


async def test_a_stranger_on_the_port_is_not_taken_for_the_server(bench: Bench) -> None:
    stranger = (
        "import http.server, sys, time\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers(); open('asked', 'w')\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    server = (
        "import os, subprocess, sys, time\n"
        f"env = dict(os.environ, ORRERY_SERVER_ID='stranger'); code = {stranger!r}\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0: os.execve(sys.executable, [sys.executable, '-c', code, sys.argv[1]], env)\n"
        "    os._exit(0)\n"
        "time.sleep(600)\n"
    )
    bench.server_ids.add("stranger")
    await bench.define(python_profile("robbed", server, start_timeout_s=2))
    server_id = await bench.request("robbed", "robbed")
    event = await bench.until(server_id, "server.failed")
    assert isinstance(event, Failed)
    assert (event.reason, "Another program" in event.message) == ("port_never_opened", True)
    assert not (bench.data_dir / "homes/ada/asked").exists()
    assert bench.processes("stranger"), "what is not ours is left alone"
