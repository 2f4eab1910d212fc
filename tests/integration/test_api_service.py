"""Api as processes of its own: the decisions, the two replicas, the story of a start. No spawner runs here: the tests
append what one would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from orrery_api.projections import CATEGORIES, ApiState
from orrery_events.catalog.route import RouteSet, route_id_of
from orrery_events.catalog.server import Progressed, Ready, ServerEvent, StartClaimed, Stopped, server_stream
from orrery_events.server_state import Server, evolve, facts
from tests.support.backbone import PostgresServer
from tests.support.services import PASSWORD, Bench, ServiceProcess, bench_on
from tests.support.wait import eventually


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        await bench.admin()
        yield bench


async def token_for(bench: Bench) -> str:
    """From a short-lived auth process; api verifies it offline."""
    auth = await bench.start("auth")
    body = {"auth": {"username": "ada", "password": PASSWORD}}
    async with (
        aiohttp.ClientSession(auth.url, headers=bench.edge) as http,
        http.post("/hub/api/users/ada/tokens", json=body) as answer,
    ):
        assert answer.status == 201, await answer.text()
        token = (await answer.json())["token"]
    await auth.stop()
    return str(token)


class Api:
    """One replica, with credentials."""

    def __init__(self, service: ServiceProcess, token: str) -> None:
        self.service, self.token = service, token

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        given = {"Authorization": f"token {self.token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        async with (
            aiohttp.ClientSession(self.service.url) as http,
            http.request(method, f"/hub/api{path}", json=body, headers=given) as answer,
        ):
            text = await answer.text()
            decoded = json.loads(text) if text.startswith(("{", "[")) else text
            return answer.status, decoded, dict(answer.headers)


async def folded(bench: Bench, server_id: str) -> Server:
    server = Server(server_id=server_id)
    for row in await bench.log.read_stream(server_stream(server_id)):
        server = evolve(server, row.event(), row.stream_version)
    return server


async def make_ready(bench: Bench, server_id: str, *, target: str = "http://127.0.0.1:1") -> int:
    """What a spawner does."""
    server = await folded(bench, server_id)
    stream = server_stream(server_id)
    await bench.log.append(stream, [StartClaimed(**facts(server, instance_id="test"))])
    step = Progressed(server_id=server_id, generation=server.generation, progress=50, message="Half way", step="x")
    await bench.log.append(stream, [step])
    prefix = server.url_path
    route = RouteSet(route_id=route_id_of(prefix), prefix=prefix, target=target, owner_id=facts(server)["user_id"])
    ready = Ready(**facts(server, instance_id="test", started_at=1.0), target=target)
    return (await bench.log.append(stream, [route, ready])).last_position


async def request_start(api: Api, path: str = "/users/ada/server", **headers: str) -> asyncio.Task[Any]:
    """Begun; `server_id_in_log` waits until it is in the log."""
    return asyncio.create_task(api.call("POST", path, None, **headers))


async def server_id_in_log(bench: Bench) -> str:
    async def found() -> str:
        rows = [r for r in await bench.log.read_all(after_position=0) if r.type == "server.start_requested"]
        return rows[-1].stream_id.removeprefix("server-") if rows else ""

    return await eventually(found)


async def test_a_start_is_201_when_it_is_ready_soon(bench: Bench) -> None:
    api = Api(await bench.start("api"), await token_for(bench))
    starting = await request_start(api)
    server_id = await server_id_in_log(bench)
    await eventually(lambda: pending(api))
    status, user, _ = await api.call("GET", "/users/ada")
    assert (user["pending"], user["server"]) == ("spawn", None)
    status, _, _ = await api.call("POST", "/users/ada/server")
    assert status == 202, "it is on its way already"
    await make_ready(bench, server_id)
    status, _, _ = await starting
    assert status == 201
    status, answer, _ = await api.call("POST", "/users/ada/server")
    assert (status, answer["message"]) == (400, "ada is already running")
    status, user, _ = await api.call("GET", "/users/ada")
    assert user["server"] == "/user/ada/"
    assert user["servers"][""]["ready"] is True


async def pending(api: Api) -> str | None:
    user = (await api.call("GET", "/users/ada"))[1]
    return user["pending"] if isinstance(user["pending"], str) else None


@pytest.mark.invariant(6)
async def test_many_starts_at_once_on_two_replicas_are_one(bench: Bench) -> None:
    token = await token_for(bench)
    first, second = Api(await bench.start("api", "api-1"), token), Api(await bench.start("api", "api-2"), token)
    tasks = [asyncio.create_task(api.call("POST", "/users/ada/server")) for api in (first, second) * 5]
    server_id = await server_id_in_log(bench)
    await make_ready(bench, server_id)
    statuses = {(await task)[0] for task in tasks}
    assert statuses <= {201, 202, 400}
    rows = await bench.log.read_stream(server_stream(server_id))
    assert [r.type for r in rows].count("server.start_requested") == 1


async def make_stopped(bench: Bench, server_id: str) -> None:
    """A server that ends by itself."""
    server = await folded(bench, server_id)
    await bench.log.append(server_stream(server_id), [Stopped(**facts(server), reason="exited")])


async def test_the_same_idempotency_key_asks_once(bench: Bench) -> None:
    api = Api(await bench.start("api"), await token_for(bench))

    async def asked() -> int:
        rows = await bench.log.read_stream(server_stream(server_id))
        return [r.type for r in rows].count("server.start_requested")

    first = await request_start(api, Idempotency_Key="one")
    server_id = await server_id_in_log(bench)
    await make_ready(bench, server_id)
    assert (await first)[0] == 201
    assert (await api.call("POST", "/users/ada/server", Idempotency_Key="one"))[0] == 201, "as the first time"
    assert (await api.call("POST", "/users/ada/server"))[0] == 400
    await make_stopped(bench, server_id)
    await (await request_start(api, Idempotency_Key="one"))
    assert await asked() == 1, "a repetition, though the server could be started again by now"
    again = await request_start(api, Idempotency_Key="two")
    await eventually(lambda: asked_is(asked, 2))
    await make_ready(bench, server_id)
    assert (await again)[0] == 201


async def asked_is(asked: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await asked() == wanted


async def test_another_replica_tells_the_whole_story_and_reads_its_writes(bench: Bench) -> None:
    """Without NATS: the second replica polls Postgres, and the position makes it look at once."""
    token = await token_for(bench)
    first, second = Api(await bench.start("api", "api-1"), token), Api(await bench.start("api", "api-2"), token)
    status, _, headers = await first.call("POST", "/users/grace")
    assert status == 201
    status, user, _ = await second.call("GET", "/users/grace", Orrery_Position=headers["Orrery-Position"])
    assert (status, user["name"]) == (200, "grace")

    starting = await request_start(first)
    server_id = await server_id_in_log(bench)
    position = await make_ready(bench, server_id)
    await starting
    await second.call("GET", "/users/ada", Orrery_Position=str(position))
    told = [await progress(api) for api in (first, second)]
    assert told[0] == told[1]
    messages = [step["message"] for step in told[0]]
    assert messages == ["Server requested", "A spawner takes care of it", "Half way", "Server ready at /user/ada/"]
    resumed = await progress(second, Last_Event_ID=str(told[0][1]["position"]))
    assert resumed == told[0][2:]


async def progress(api: Api, **headers: str) -> list[dict[str, Any]]:
    given = {"Authorization": f"token {api.token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    async with (
        aiohttp.ClientSession(api.service.url) as http,
        http.get("/hub/api/users/ada/server/progress", headers=given) as answer,
    ):
        assert answer.status == 200, await answer.text()
        assert answer.headers["X-Accel-Buffering"] == "no"
        body = await asyncio.wait_for(answer.text(), 20)
    return [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line.startswith("data:")]


async def test_a_start_under_way_is_cancelled_and_may_be_asked_for_again(bench: Bench) -> None:
    api = Api(await bench.start("api"), await token_for(bench))
    starting = await request_start(api)
    server_id = await server_id_in_log(bench)
    assert (await api.call("DELETE", "/users/ada/server"))[0] == 204
    assert (await starting)[0] == 500
    again = await request_start(api)
    await eventually(lambda: generation_is(bench, server_id, 2))
    await make_ready(bench, server_id)
    assert (await again)[0] == 201


async def generation_is(bench: Bench, server_id: str, generation: int) -> bool:
    return (await folded(bench, server_id)).generation == generation


BAD: list[tuple[str, str, Any, int]] = [
    ("GET", "/users/nobody", None, 404),
    ("POST", "/users", {"usernames": []}, 400),
    ("POST", "/users", {"usernames": ["Not A Name"]}, 400),
    ("POST", "/users", {"usernames": [1]}, 400),
    ("POST", "/users", [], 400),
    ("POST", "/users/ada", None, 409),
    ("DELETE", "/users/ada", None, 400),
    ("GET", "/users?limit=-1", None, 400),
    ("GET", "/users?sort=shoe", None, 400),
    ("GET", "/users?state=odd", None, 400),
    ("POST", "/users/ada/servers/UPPER", None, 400),
    ("POST", "/users/ada/servers/a--b", None, 400),
    ("POST", "/users/ada/server", {"user_options": 3}, 400),
    ("POST", "/users/ada/server", {"profile": "no-such-profile"}, 400),
    ("DELETE", "/users/ada/servers/none", None, 404),
    ("GET", "/users/ada/server/progress", None, 404),
    ("PUT", "/profiles/x", {"command": []}, 400),
    ("PUT", "/profiles/x", {"command": ["x"], "driver": "magic"}, 400),
    ("DELETE", "/profiles/none", None, 404),
    ("POST", "/users/ada/activity", {"last_activity": "yesterday"}, 400),
    ("GET", "/nothing", None, 404),
]


async def test_bad_input_is_told_what_is_wrong(bench: Bench) -> None:
    api = Api(await bench.start("api"), await token_for(bench))
    before = (await bench.log.head()).position
    for method, path, body, wanted in BAD:
        status, answer, _ = await api.call(method, path, body)
        assert status == wanted, (method, path, status, answer)
        assert answer["status"] == wanted
        assert answer["message"]
    assert (await bench.log.head()).position == before, "nothing of it was appended"


async def test_without_credentials_everything_is_403(bench: Bench) -> None:
    api = Api(await bench.start("api"), "nothing")
    for method, path, _, _ in BAD:
        if path != "/nothing":
            assert (await api.call(method, path))[0] == 403, path
    assert (await api.call("GET", ""))[0] == 200
    assert (await api.call("GET", "/health"))[0] == 200


async def test_pages_of_users_are_jupyterhubs(bench: Bench) -> None:
    api = Api(await bench.start("api"), await token_for(bench))
    names = [f"user-{i:03}" for i in range(120)]
    assert (await api.call("POST", "/users", {"usernames": names}))[0] == 201
    status, plain, headers = await api.call("GET", "/users?limit=50&sort=name")
    assert (status, len(plain)) == (200, 50)
    assert 'rel="next"' in headers["Link"], "nothing is cut off silently"
    accept = "application/jupyterhub-pagination+json"
    status, page, _ = await api.call("GET", "/users?offset=100&limit=50&sort=name", Accept=accept)
    assert [u["name"] for u in page["items"]] == sorted([*names, "ada"])[100:]
    assert page["_pagination"] == {"offset": 100, "limit": 50, "total": 121, "next": None}
    status, found, _ = await api.call("GET", "/users?name_filter=user-01")
    assert len(found) == 10


async def test_without_postgres_reads_work_and_writes_say_503(own_postgres: PostgresServer) -> None:
    url = await own_postgres.create_database(migrated=True)
    async with bench_on(url) as bench:
        await bench.admin()
        api = Api(await bench.start("api"), await token_for(bench))
        assert (await api.call("GET", "/users/ada"))[0] == 200
        await own_postgres.kill()
        status, user, _ = await api.call("GET", "/users/ada")
        assert (status, user["name"]) == (200, "ada")
        status, answer, headers = await api.call("POST", "/users/grace")
        assert status == 503, answer
        assert int(headers["Retry-After"]) > 0
        await own_postgres.restart()

        async def works() -> bool:
            return (await api.call("POST", "/users/grace"))[0] in (201, 409)

        await eventually(works, timeout_s=15, interval_s=0.2)


@pytest.mark.invariant(3)
async def test_the_compacted_log_folds_to_the_same_state(bench: Bench) -> None:
    api = Api(await bench.start("api"), await token_for(bench))
    await api.call("POST", "/users", {"usernames": ["grace", "joan"]})
    await api.call("PATCH", "/users/grace", {"admin": True})
    await api.call("DELETE", "/users/joan")
    await api.call("PUT", "/profiles/quick", {"command": ["x"]})
    starting = await request_start(api)
    await make_ready(bench, await server_id_in_log(bench))
    await starting
    full, compacted = ApiState(), ApiState()
    async with bench.log.snapshot(CATEGORIES) as snapshot:
        async for row in snapshot.events():
            full.apply(row, row.event())
        async for row in snapshot.latest():
            compacted.apply(row, row.event())
    assert full.digest() == compacted.digest()
    assert isinstance(next(iter(full.servers.values())).server.last, ServerEvent)
