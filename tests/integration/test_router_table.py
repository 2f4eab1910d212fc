"""The routing table: complete before a router answers, right while NATS or Postgres is away, handed over at the end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from orrery_events.catalog.route import RouteSet, route_id_of
from orrery_events.catalog.server import server_id_of
from tests.support.backbone import NatsServer, PostgresServer
from tests.support.routers import Bench, Person, answering, head_of, serving
from tests.support.wait import eventually

pytestmark = [pytest.mark.timeout(90)]


@pytest.fixture
async def bench(tmp_path: Path, database_url: str) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path, database_url) as bench:
        yield bench


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    async with serving(saying("here")) as url:
        yield url


def saying(text: str) -> web.Application:
    async def say(_request: web.Request) -> web.Response:
        return web.Response(text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", say)
    return app


async def many_routes(bench: Bench, person: Person, target: str, count: int) -> None:
    """So many routes of one person that replaying them takes a moment."""
    events = []
    for number in range(count):
        prefix = f"/user/{person.name}/s{number}/"
        events.append(
            RouteSet(
                route_id=route_id_of(prefix),
                prefix=prefix,
                target=target,
                policy="owner",
                owner_id=person.user_id,
                owner_name=person.name,
                server_id=server_id_of(person.user_id, f"s{number}"),
                server_name=f"s{number}",
                generation=1,
            )
        )
    for start in range(0, count, 500):
        await bench.log.append(f"route-many-{start}", events[start : start + 500])


@pytest.mark.invariant(5)
async def test_a_router_answers_nothing_before_it_knows_everything(bench: Bench, upstream: str) -> None:
    await many_routes(bench, bench.ada, upstream, 5000)
    router = bench.launch()

    async def first_answer() -> int:
        try:
            return (await bench.fetch("/user/ada/s4999/", headers=bench.ada.cookie))[0]
        except aiohttp.ClientConnectionError:
            assert router.process.poll() is None, router.log
            return 0

    assert await eventually(first_answer, timeout_s=30, interval_s=0.001) == 200
    await router.ready()
    assert (await router.ops("/readyz"))[0] == 200
    assert (await router.status())["position"] >= 5002


@pytest.mark.invariant(5)
@pytest.mark.invariant(12)
async def test_without_postgres_and_nats_a_router_stays_ready_and_serves(
    tmp_path: Path, own_postgres: PostgresServer, nats_server: NatsServer, upstream: str
) -> None:
    url = await own_postgres.create_database(migrated=True)
    async with Bench.open(tmp_path, url, nats_server.url) as bench:
        await bench.relay(nats_server.relay_url)
        await bench.route(upstream)
        router = await bench.router()
        assert (await bench.fetch("/user/ada/", headers=bench.ada.cookie))[0] == 200
        await nats_server.kill()
        await own_postgres.kill()
        deadline = time.monotonic() + 6
        answered: Counter[int] = Counter()
        while time.monotonic() < deadline:
            answered[(await bench.fetch("/user/ada/x", headers=bench.ada.cookie))[0]] += 1
            answered[(await bench.fetch("/user/ada/x", headers=bench.ada.authorization))[0]] += 1
            assert (await router.ops("/readyz"))[0] == 200
        assert set(answered) == {200}
        assert answered[200] > 20
        status, headers, body = await bench.fetch("/user/ada/nothing/../x", headers=bench.ada.cookie)
        assert status == 400
        began = time.monotonic()
        status, headers, body = await bench.fetch("/nowhere/", headers=bench.ada.cookie)
        assert (status, "Retry-After" in headers) == (503, True), "it cannot be told, and that is what is said"
        assert b"cannot be told" in body
        assert time.monotonic() - began < 8, "it is not tried for long"
        assert (await bench.fetch("/user/ada/", headers={}))[0] == 302, "whom nobody knows is not let in either"
        await own_postgres.restart()
        await eventually(lambda: answers(bench, "/nowhere/", 404), timeout_s=20)


async def answers(bench: Bench, path: str, status: int) -> bool:
    return (await bench.fetch(path, headers=bench.ada.cookie))[0] == status


@pytest.mark.invariant(11)
@pytest.mark.parametrize("nats", ["with NATS", "without NATS"])
async def test_an_acknowledged_route_is_known_to_every_router(
    tmp_path: Path, database_url: str, nats_server: NatsServer, upstream: str, nats: str
) -> None:
    async with Bench.open(tmp_path, database_url, *([nats_server.url] if nats == "with NATS" else [])) as bench:
        if nats == "with NATS":
            await bench.relay(nats_server.relay_url)
        await asyncio.gather(bench.router("router-1"), bench.router("router-2"))
        for number in range(25):
            person = await bench.person(f"person-{number}")
            await bench.route(upstream, owner=person)
            # Connections of their own: the system deals them out to both routers.
            path = f"/user/{person.name}/"
            got = await asyncio.gather(*(bench.fetch(path, headers=person.cookie) for _ in range(6)))
            assert [status for status, _, _ in got] == [200] * 6
        both = [await router.status() for router in bench.routers]
        assert all(status["position"] > 0 for status in both)


@pytest.mark.invariant(11)
async def test_a_route_is_gone_once_that_is_known(bench: Bench, upstream: str) -> None:
    await bench.route(upstream)
    await bench.router()
    assert (await bench.fetch("/user/ada/", headers=bench.ada.cookie))[0] == 200
    await bench.unroute()
    await eventually(lambda: answers(bench, "/user/ada/", 424))
    async with serving(saying("moved")) as elsewhere:
        await bench.route(elsewhere, generation=2)
        status, _, body = await bench.fetch("/user/ada/", headers=bench.ada.cookie)
        assert (status, body) == (200, b"moved")


async def test_the_most_specific_route_wins_and_hosts_come_first(bench: Bench) -> None:
    async with serving(saying("default")) as a, serving(saying("named")) as b, serving(saying("host")) as c:
        await bench.route(a)
        await bench.route(b, server="app")
        await bench.route(c, prefix="/user/ada/", host="app.example.org")
        await bench.router()
        for path, host, says in (
            ("/user/ada/", "", b"default"),
            ("/user/ada/apple", "", b"default"),
            ("/user/ada/app/x", "", b"named"),
            ("/user/ada/x", "APP.example.org:80", b"host"),
            ("/user/ada/app/x", "app.example.org", b"host"),
            ("/user/ada/x", "other.example.org", b"default"),
        ):
            headers = {**bench.ada.cookie, **({"Host": host} if host else {})}
            assert (await bench.fetch(path, headers=headers))[2] == says, (path, host)


async def test_a_rolling_restart_loses_no_request(bench: Bench, upstream: str) -> None:
    """Two routers share the port; each is ended and replaced while new connections keep coming."""
    await bench.route(upstream)
    one, two = await asyncio.gather(bench.router("router-1"), bench.router("router-2"))
    done: Counter[int] = Counter()
    stop = asyncio.Event()

    async def visit() -> None:
        while not stop.is_set():
            done[(await bench.fetch("/user/ada/", headers=bench.ada.cookie))[0]] += 1

    visitors = [asyncio.create_task(visit()) for _ in range(4)]
    for slot, old in (("router-1", one), ("router-2", two)):
        before = done[200]
        assert await old.stop() == 0
        await bench.router(slot)
        await eventually(lambda: done[200] > before + 20)  # noqa: B023 (awaited at once)
    stop.set()
    await asyncio.gather(*visitors)
    assert set(done) == {200}, done


async def test_a_router_that_ends_finishes_what_it_began(bench: Bench) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        began.set()
        await go_on.wait()
        writer.write(b"after")
        await writer.drain()

    async with answering(slow) as url:
        await bench.route(url)
        router = await bench.router()
        answer = asyncio.create_task(bench.fetch("/user/ada/", headers=bench.ada.cookie))
        await asyncio.wait_for(began.wait(), 10)
        router.terminate()

        async def refuses_new_ones() -> bool:
            try:
                await bench.fetch("/user/ada/")
            except aiohttp.ClientConnectionError:
                return True
            return False

        await eventually(refuses_new_ones)
        go_on.set()
        assert (await answer)[2] == b"firstafter"
        assert await asyncio.to_thread(router.process.wait, 10) == 0


async def test_activity_is_reported(tmp_path: Path, database_url: str, nats_server: NatsServer, upstream: str) -> None:
    from orrery_events.bus import Bus  # noqa: PLC0415
    from orrery_events.subjects import ACTIVITY_ROOT  # noqa: PLC0415

    async with Bench.open(tmp_path, database_url, nats_server.url) as bench:
        await bench.route(upstream)
        heard: list[bytes] = []
        bus = Bus(nats_server.relay_url, name="test")
        await bus.start()
        bench.stack.push_async_callback(bus.stop)
        assert await bus.wait_connected(10)

        async def hear(message: object) -> None:
            heard.append(message.data)  # type: ignore[attr-defined]

        await bus.subscribe(f"{ACTIVITY_ROOT}.>", hear)
        await bench.router(ORRERY_ACTIVITY_INTERVAL_S="0.2")
        before = time.time()
        assert (await bench.fetch("/user/ada/", headers=bench.ada.cookie))[0] == 200
        await eventually(lambda: heard)
        assert server_id_of(bench.ada.user_id, "").encode() in heard[0]
        assert before - 1 < float(heard[0].split(b":")[-1].strip(b"}")) < time.time() + 1
