"""A router that starts while Postgres and NATS are both away."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from orrery_events.bus import Bus
from orrery_events.catalog.auth import SessionRevoked, session_stream
from orrery_events.log import EventLog, create_pool
from orrery_events.tail import Place, Tail, keeper, metrics
from orrery_events.tail.snapshot import read
from orrery_router.projections import CATEGORIES, RouterState
from tests.support.backbone import NatsServer, PostgresServer
from tests.support.routers import NOWHERE, Bench, Person, RouterProcess, serving
from tests.support.wait import eventually

pytestmark = [pytest.mark.timeout(120)]


def echo() -> web.Application:
    async def say(request: web.Request) -> web.Response:
        return web.Response(text=request.path)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", say)
    return app


async def status_of(bench: Bench, path: str, person: Person) -> int:
    return (await bench.fetch(path, headers=person.cookie))[0]


async def restored(router: RouterProcess) -> bool:
    return bool((await router.status())["tails"][0]["restored"])


@pytest.mark.invariant(5)
@pytest.mark.invariant(12)
async def test_a_killed_router_starts_without_postgres_and_nats_and_knows_what_it_knew(
    tmp_path: Path, own_postgres: PostgresServer, nats_server: NatsServer
) -> None:
    url = await own_postgres.create_database(migrated=True)
    async with serving(echo()) as upstream, Bench.open(tmp_path, url, nats_server.url) as bench:
        await bench.relay(nats_server.relay_url)
        bob, cyd = [await bench.person(name) for name in ("bob", "cyd")]
        for person in (bench.ada, bob):
            await bench.route(upstream, owner=person)
        router = await bench.router()
        file = tmp_path / "data" / "snapshots" / "router" / "router-1.snapshot"
        await eventually(file.is_file)
        # After the state was written: a route, and a session that is over.
        await bench.route(upstream, owner=cyd)
        revoked = SessionRevoked(session_id=bob.session_id, user_id=bob.user_id, issued_at=1.0, expires_at=2e9)
        position = (await bench.log.append(session_stream(bob.session_id), [revoked])).last_position
        await eventually(lambda: at(router, position))
        # Added at once, by a thread.
        await eventually(lambda: bob.session_id.encode() in file.read_bytes())
        await router.kill()
        await nats_server.kill()
        await own_postgres.kill()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

        # The second has no file of its own yet.
        for slot in ("router-1", "router-2"):
            router = await bench.router(slot)
            assert (await router.status())["position"] >= position
            for person, code in ((bench.ada, 200), (cyd, 200), (bob, 302)):
                assert await status_of(bench, f"/user/{person.name}/", person) == code, (slot, person.name)
            assert (await bench.fetch("/user/bob/", headers=bob.authorization))[0] == 200, "the session alone is over"
            assert await status_of(bench, "/nowhere/", bench.ada) == 503, "perhaps it is there by now"
            code, text = await router.ops("/readyz?verbose")
            assert (code, "ORR-RTR-03 started from disk" in text) == (200, True), text
            assert 'orrery_tail_restored{tail="router"} 1.0' in (await router.ops("/metrics"))[1]
            assert await restored(router)
            assert any(line["event"] == "tail.restored" for line in router.lines())
            if slot == "router-1":
                await router.kill()

        await own_postgres.restart()
        await eventually(lambda: is_confirmed(router), timeout_s=30)
        bob = await bench.person("bob-again")
        await bench.route(upstream, owner=bob)
        assert await status_of(bench, f"/user/{bob.name}/", bob) == 200
        assert 'orrery_tail_restored{tail="router"} 0.0' in (await router.ops("/metrics"))[1]
        assert await router.stop() == 0
        assert json.loads(router.log.splitlines()[-1])["exit_code"] == 0


async def at(router: RouterProcess, position: int) -> bool:
    return int((await router.status())["position"]) >= position


async def is_confirmed(router: RouterProcess) -> bool:
    return not await restored(router)


async def test_without_a_file_it_waits_for_postgres(tmp_path: Path, own_postgres: PostgresServer) -> None:
    url = await own_postgres.create_database(migrated=True)
    async with Bench.open(tmp_path, url) as bench:
        await own_postgres.kill()
        folder = tmp_path / "data" / "snapshots" / "router"
        folder.mkdir(parents=True)
        (folder / "router-1.snapshot").write_bytes(b"made by somebody else")
        router = bench.launch(ORRERY_STARTUP_TIMEOUT_S="1")
        await eventually(lambda: "tail.snapshot_refused" in router.log, timeout_s=20)
        off = bench.launch("router-2", ORRERY_SNAPSHOTS="false", ORRERY_STARTUP_TIMEOUT_S="1")
        assert await asyncio.to_thread(off.process.wait, 20) == 1
        assert "cannot be reached" in off.log
        assert "process_ready" not in router.log
        await own_postgres.restart()
        await router.ready()


async def test_what_is_on_disk_gives_way_to_another_log_and_another_epoch(
    tmp_path: Path, own_postgres: PostgresServer
) -> None:
    """Restored from a backup, or a data directory that is used with another database."""
    urls = [await own_postgres.create_database(migrated=True) for _ in range(2)]
    place = Place(path=tmp_path / "tail.snapshot", key=b"k" * 32)
    pool = await create_pool(urls[1], application_name="test")
    await pool.execute("UPDATE es.log_head SET log_id = gen_random_uuid()")
    await pool.close()
    for url, name in zip(urls, ("ada", "bob"), strict=True):
        async with Bench.open(tmp_path, url) as bench:
            await bench.person(name)
            await bench.route("http://127.0.0.1:1", prefix=f"/{name}/")
            if name == "ada":
                async with tailing(url, place) as tail:
                    assert {route.prefix for route in tail.state.table.routes()} == {"/ada/"}
    kept = tmp_path / "kept"
    shutil.copy(place.path, kept)
    for url, raised in ((urls[1], False), (urls[0], True)):
        if raised:
            pool = await create_pool(url, application_name="test")
            await pool.execute("UPDATE es.log_head SET epoch = epoch + 1")
            await pool.close()
        shutil.copy(kept, place.path)
        await own_postgres.kill()
        async with tailing(url, place) as tail:
            from_disk = tail.restored
            assert from_disk
            assert {route.prefix for route in tail.state.table.routes()} == {"/ada/"}
            before = tail.state
            await own_postgres.restart()
            await eventually(lambda: tail.state is not before, timeout_s=30)  # noqa: B023 (awaited at once)
            assert not tail.restored
            assert {route.prefix for route in tail.state.table.routes()} == {"/ada/" if raised else "/bob/"}
            assert tail.epoch == (2 if raised else 1)


@asynccontextmanager
async def tailing(url: str, place: Place) -> AsyncIterator[Tail[RouterState]]:
    """A tail with a place on disk, without NATS, of a Postgres that may be away."""
    pool = await create_pool(url, application_name="test", min_size=0)
    log, bus = EventLog(pool, producer="test"), Bus(NOWHERE, name="test")
    tail = Tail(log, bus, RouterState, categories=CATEGORIES, name="router", place=place)
    await tail.start()
    try:
        yield tail
    finally:
        await tail.stop()
        await pool.close()


async def test_a_disk_that_cannot_be_written_to_disturbs_nothing_and_is_tried_again(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "CHECK_S", 0.05)
    in_the_way = tmp_path / "folder"
    in_the_way.write_text("a file where the folder should be")
    place = Place(path=in_the_way / "tail.snapshot", key=b"k" * 32)
    async with Bench.open(tmp_path, database_url) as bench, tailing(database_url, place) as tail:
        failures = metrics.SNAPSHOT_FAILURES.labels("router")
        before = failures._value.get()
        await eventually(lambda: failures._value.get() >= before + 2)
        done = await bench.route("http://127.0.0.1:1")
        assert await tail.wait_for(done.last_position, 5)
        in_the_way.unlink()
        await eventually(place.path.is_file)
        done = await bench.route("http://127.0.0.1:1", prefix="/last/")
        assert await tail.wait_for(done.last_position, 5)
    state = RouterState()
    found = read(place.path, place.key, name="router", categories=CATEGORIES, state=state)
    assert found.position == done.last_position
    assert found.events[-1].event().prefix == "/last/"  # type: ignore[attr-defined]
