"""Servers that end by themselves, spawners that end before their servers, and who comes first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orrery_events.catalog.server import Stopped
from tests.support.spawners import SERVE, Bench, python_profile
from tests.support.wait import eventually


@pytest.fixture
async def bench(tmp_path: Path, database_url: str) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path, database_url) as bench:
        yield bench


async def test_cancelled_while_starting(bench: Bench) -> None:
    await bench.define(python_profile("slow", "import time; time.sleep(600)", start_timeout_s=60))
    await bench.spawner()
    server_id = await bench.request("x", "slow")
    await eventually(lambda: bench.processes(server_id))
    await bench.cancel(server_id)
    await eventually(lambda: not bench.processes(server_id), timeout_s=5)
    assert (await bench.types(server_id))[-1] == "server.start_cancelled"
    folder = bench.data_dir / "servers" / server_id / "g1"
    await eventually(lambda: not (folder / "reservation.json").exists())
    await bench.starts_again(server_id)


async def test_a_crash_is_noticed_at_once(bench: Bench) -> None:
    await bench.spawner()
    server_id = await bench.request("x")
    await bench.until(server_id, "server.ready")
    (root,) = bench.roots(server_id)
    root.kill()
    stopped = await bench.until(server_id, "server.stopped", timeout_s=5)
    assert isinstance(stopped, Stopped)
    assert (stopped.reason, stopped.exit_code) == ("exited", -9)
    assert "killed by signal 9" in stopped.message
    assert stopped.log_tail
    assert await bench.routes() == {}
    await bench.starts_again(server_id)


async def test_a_crash_while_no_spawner_lived(bench: Bench) -> None:
    first = await bench.spawner()
    server_id = await bench.request("x")
    await bench.until(server_id, "server.ready")
    await first.kill()
    (root,) = bench.roots(server_id)
    root.kill()
    await bench.spawner()
    stopped = await bench.until(server_id, "server.stopped", timeout_s=5)
    assert isinstance(stopped, Stopped)
    assert (stopped.reason, stopped.exit_code) == ("exited", None)
    assert await bench.routes() == {}


async def test_servers_outlive_the_spawner_and_are_adopted(bench: Bench) -> None:
    first = await bench.spawner()
    server_id = await bench.request("x")
    await bench.until(server_id, "server.ready")
    (root,) = bench.roots(server_id)
    assert await first.stop() == 0
    second = await bench.spawner()
    await eventually(lambda: "process_ready" in second.log)
    assert root.is_running()
    await bench.request_stop(server_id)
    stopped = await bench.until(server_id, "server.stopped")
    assert isinstance(stopped, Stopped)
    assert (await bench.types(server_id)).count("server.ready") == 1
    assert not bench.processes(server_id)


async def test_stopped_and_removed(bench: Bench) -> None:
    await bench.spawner()
    server_id = await bench.request("x")
    await bench.until(server_id, "server.ready")
    await bench.request_stop(server_id, remove=True)
    await bench.until(server_id, "server.removed")
    await eventually(lambda: not (bench.data_dir / "servers" / server_id).exists())
    assert (bench.data_dir / "homes/ada").is_dir(), "what the person owns stays"


async def test_nobody_took_it_in_time(bench: Bench) -> None:
    server_id = await bench.request("x", timeout_s=0.1)
    await bench.spawner()
    await bench.until(server_id, "server.start_expired")
    assert not bench.processes(server_id)


async def test_slots_are_shared_fairly(bench: Bench) -> None:
    """Whoever has fewer starts under way comes first, and among those who asked first."""
    await bench.define(python_profile("slow", "import time; time.sleep(1)\n" + SERVE.format(status=200)))
    ada = [await bench.request(f"s{n}", "slow", user="ada") for n in range(4)]
    bob = await bench.request("s", "slow", user="bob")
    await bench.spawner(ORRERY_SPAWN_SLOTS="2")
    for server_id in (*ada, bob):
        await bench.until(server_id, "server.ready")
    claims = [
        recorded.stream_id.removeprefix("server-")
        for recorded in await bench.log.read_category("server", after_seq=0)
        if recorded.type == "server.start_claimed"
    ]
    assert set(claims[:2]) == {ada[0], bob}
    assert claims[2:] == ada[1:]
