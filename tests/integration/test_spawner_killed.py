"""A spawner killed at any step: another one goes on, nothing is lost, nothing is doubled, nothing dies unannounced."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from orrery_events.catalog.server import Failed, Ready, ServerEvent
from tests.support.spawners import Bench, SpawnerProcess, python_profile
from tests.support.wait import eventually

pytestmark = [pytest.mark.timeout(90)]

WHILE_STARTING = [
    "before_claim", "after_claim", "before_prepare", "before_reserve", "after_reserve", "before_start", "after_fork",
    "after_start", "before_probe", "after_probe", "before_ready", "after_ready",
]  # fmt: skip
WHILE_STOPPING = ["before_stop_claim", "after_stop_claim", "after_kill", "before_stopped", "after_stopped"]


@pytest.fixture
async def bench(tmp_path: Path, database_url: str) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path, database_url) as bench:
        yield bench


async def doomed(bench: Bench, failpoint: str) -> SpawnerProcess:
    return await bench.spawner("spawner-1", ORRERY_FAILPOINTS=f"spawner.{failpoint}=kill")


async def heir(bench: Bench) -> None:
    """Another spawner, twenty seconds later."""
    await bench.expire_leases("spawner-1")
    await bench.spawner("spawner-2")


async def ready_once(bench: Bench, server_id: str) -> None:
    async def is_ready() -> bool:
        return "server.ready" in await bench.types(server_id)

    await eventually(is_ready, timeout_s=20)
    history = [event for event in await bench.history(server_id) if isinstance(event, ServerEvent)]
    ready = [event for event in history if isinstance(event, Ready)]
    assert len(ready) == 1
    assert {event.generation for event in history} == {1}, "the same generation was adopted"
    assert not [event for event in history if isinstance(event, Failed)]
    await eventually(lambda: len(bench.roots(server_id)) == 1)
    assert await bench.routes() == {"/user/ada/x/": ready[0].target}
    async with aiohttp.ClientSession() as http, http.get(ready[0].target) as answer:
        assert answer.status == 200


@pytest.mark.invariant(6)
@pytest.mark.parametrize("failpoint", WHILE_STARTING)
async def test_killed_while_starting(bench: Bench, failpoint: str) -> None:
    first = await doomed(bench, failpoint)
    server_id = await bench.request("x")
    await first.died()
    await heir(bench)
    await ready_once(bench, server_id)
    await bench.request_stop(server_id)
    await bench.until(server_id, "server.stopped")
    assert not bench.processes(server_id)
    assert await bench.routes() == {}


@pytest.mark.invariant(6)
async def test_killed_and_started_again_in_its_own_place(bench: Bench) -> None:
    """The usual case: the supervisor starts it again at once; nobody waits for a lease to run out."""
    first = await doomed(bench, "after_start")
    server_id = await bench.request("x")
    await first.died()
    await bench.spawner("spawner-1")
    await ready_once(bench, server_id)


@pytest.mark.invariant(6)
async def test_frozen_while_starting_and_back_when_another_has_taken_over(bench: Bench) -> None:
    """The worst case: it is not dead, and goes on in the middle of a step that is no longer its own."""
    first = await bench.spawner("spawner-1", ORRERY_FAILPOINTS="spawner.before_start=pause")
    server_id = await bench.request("x")
    await eventually(lambda: psutil.Process(first.process.pid).status() == psutil.STATUS_STOPPED, timeout_s=20)
    await heir(bench)
    await ready_once(bench, server_id)
    first.resume()
    # Whatever it does now, it does within a reconciliation or two; then the world is as it was.
    await eventually(lambda: said_so(first) or first.process.poll() is not None, timeout_s=20)
    await ready_once(bench, server_id)


def said_so(spawner: SpawnerProcess) -> bool:
    return any(word in spawner.log for word in ("start_left", "superseded", "lease_lost", "start_ended"))


@pytest.mark.invariant(6)
@pytest.mark.invariant(7)
@pytest.mark.parametrize("failpoint", WHILE_STOPPING)
async def test_killed_while_stopping(bench: Bench, failpoint: str) -> None:
    first = await doomed(bench, failpoint)
    server_id = await bench.request("x")
    await bench.until(server_id, "server.ready")
    (root,) = bench.roots(server_id)
    await bench.request_stop(server_id)
    await first.died()
    types = await bench.types(server_id)
    announced = "server.stop_claimed" in types
    assert announced == (failpoint != "before_stop_claim")
    assert bool(await bench.routes()) == (not announced), "the route goes with the announcement"
    assert root.is_running() == (failpoint in ("before_stop_claim", "after_stop_claim")), "and only then the server"
    await heir(bench)
    await bench.until(server_id, "server.stopped")
    assert (await bench.types(server_id)).count("server.stopped") == 1
    assert not bench.processes(server_id)
    assert await bench.routes() == {}


@pytest.mark.invariant(7)
@pytest.mark.parametrize("failpoint", ["before_failed", "after_failed"])
async def test_a_failed_start_is_taken_back_after_it_was_said(bench: Bench, failpoint: str) -> None:
    await bench.define(python_profile("mute", "import time; time.sleep(600)", start_timeout_s=1))
    first = await doomed(bench, failpoint)
    server_id = await bench.request("x", "mute", timeout_s=3)
    await first.died()
    assert ("server.failed" in await bench.types(server_id)) == (failpoint == "after_failed")
    assert len(bench.roots(server_id)) == 1, "nothing is killed that the log does not know of"
    await heir(bench)
    await bench.until(server_id, "server.failed", timeout_s=30)
    await eventually(lambda: not bench.processes(server_id), timeout_s=20)
    assert (await bench.types(server_id)).count("server.failed") == 1


@pytest.mark.invariant(6)
@pytest.mark.invariant(7)
async def test_a_ready_server_is_never_cleaned_away(bench: Bench) -> None:
    """Reconcilers of two spawners, one that does not know the server yet, and leases that come and go."""
    await bench.spawner("spawner-1")
    server_id = await bench.request("x")
    await bench.until(server_id, "server.ready")
    (root,) = bench.roots(server_id)
    await bench.spawner("spawner-2")
    for slot in ("spawner-1", "spawner-2"):
        await bench.expire_leases(slot)
    done = [await reconciliations(spawner) for spawner in bench.spawners]

    async def three_more() -> bool:
        now = [await reconciliations(spawner) for spawner in bench.spawners]
        return all(later >= before + 3 for later, before in zip(now, done, strict=True))

    await eventually(three_more, timeout_s=20)
    assert root.is_running()
    assert (await bench.types(server_id))[-1] == "server.ready"


async def reconciliations(spawner: SpawnerProcess) -> float:
    ready = next(json.loads(line) for line in spawner.log.splitlines() if '"process_ready"' in line)
    async with aiohttp.ClientSession() as http, http.get(f"{ready['ops_url']}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return float(next(line for line in lines if line.startswith("orrery_reconcile_duration_seconds_count")).split()[-1])
