"""Any process may die at any moment. One platform goes through all of it: what one fault leaves behind, the next meets.

Every test keeps a notebook with a live kernel running through the fault, and nobody restarts anything by hand.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests.support.platform import Kernel, Person, Platform
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("kill_anything"),
]

QUICK = {
    "display_name": "Quick",
    "command": ["{python}", "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", "{home}"],
    "strip_prefix": True,
}
WAITS_THEN_SERVES = """
import os, sys, time, http.server as h
while not os.path.exists(sys.argv[2] + "/go"): time.sleep(0.05)
h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""
SLOW = {
    "display_name": "Slow",
    "command": ["{python}", "-c", WAITS_THEN_SERVES, "{port}", "{home}"],
    "strip_prefix": True,
}
"""Does not come up before it is let (`gate`), so that something can be killed meanwhile."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform() -> AsyncIterator[Platform]:
    async with Platform.running() as platform:
        yield platform


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ada(platform: Platform) -> AsyncIterator[Person]:
    async with platform.sign_in() as ada:
        status, answer = await ada.api("PUT", "/profiles/quick", QUICK)
        assert status in (200, 201), (status, answer)
        status, answer = await ada.api("PUT", "/profiles/slow", SLOW)
        assert status in (200, 201), (status, answer)
        yield ada


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel(ada: Person) -> Kernel:
    await ada.start_server()
    return await Kernel.start(ada, "/user/ada/")


async def starts(ada: Person, server: str) -> list[str]:
    """The types of all events of one server, oldest first."""
    found = await ada.server(server)
    assert found
    tail = await asyncio.to_thread(ada.platform.command, "events", "tail", "--from", "1", "-o", "json")
    assert tail.returncode == 0, tail.stderr
    events = [json.loads(line) for line in tail.stdout.splitlines()]
    ours = [e for e in events if e["data"].get("name") == server and e["data"].get("user_name") == ada.name]
    return [e["type"].removeprefix("orrery.").rpartition(".v")[0] for e in ours if "server." in e["type"]]


async def event_seen(ada: Person, server: str, type_: str) -> None:
    async def seen() -> bool:
        return type_ in await starts(ada, server)

    await eventually(seen, timeout_s=20, interval_s=0.05)


@pytest.mark.invariant(12)
@pytest.mark.parametrize("slot", ["router-1", "router-2", "relay", "api", "auth", "spawner"])
async def test_a_killed_service_comes_back_and_the_kernel_never_notices(
    platform: Platform, ada: Person, kernel: Kernel, slot: str
) -> None:
    server = await being_started(platform, ada, f"with-{slot}")
    old = await platform.kill(slot, wait=False)
    await eventually(kernel.answers, timeout_s=5)
    await platform.replaced(slot, old)
    await eventually(kernel.answers, timeout_s=5)
    await exactly_one_ready(platform, ada, server)


@pytest.mark.invariant(12)
async def test_nats_killed(platform: Platform, ada: Person, kernel: Kernel) -> None:
    server = await being_started(platform, ada, "with-nats")
    old = await platform.kill("nats", wait=False)
    await eventually(kernel.answers, timeout_s=5)
    await platform.replaced("nats", old)
    await exactly_one_ready(platform, ada, server)


@pytest.mark.invariant(12)
async def test_postgres_killed(platform: Platform, ada: Person, kernel: Kernel) -> None:
    server = await being_started(platform, ada, "with-postgres")
    old = await platform.kill("postgres", wait=False)
    assert await kernel.run("6*7", timeout_s=5) == "42", "the data plane needs no database"
    await platform.replaced("postgres", old)
    await eventually(kernel.answers, timeout_s=5)
    await exactly_one_ready(platform, ada, server)

    async def starts_again() -> bool:
        status, _ = await ada.api("POST", ada.server_path("pg-down"), {"profile": "quick"})
        return status in (201, 202, 400)

    await eventually(starts_again, timeout_s=20, interval_s=0.3)
    await ada.ready_server("pg-down")
    await ada.stop_server("pg-down")


@pytest.mark.invariant(5)
async def test_the_data_plane_outlives_the_whole_control_plane(platform: Platform, ada: Person, kernel: Kernel) -> None:
    """SIGSTOP stands for "down and not coming back": the supervisor cannot restart what it does not see die."""
    stopped = [await platform.pid(slot) for slot in ("api", "auth", "spawner", "relay", "nats", "postgres")]
    stopped += [child.pid for pid in stopped for child in psutil.Process(pid).children(recursive=True)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(5):
            assert await kernel.run("6*7", timeout_s=5) == "42"
            status, _page = await ada.fetch("/user/ada/api/status")
            assert status == 200
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    await eventually(kernel.answers, timeout_s=10)
    await ada.start_server("after-all", "quick")
    await ada.stop_server("after-all")


async def test_jetstream_directory_deleted(platform: Platform, ada: Person, kernel: Kernel) -> None:
    stores = [p for p in (platform.data_dir / "nats").rglob("*") if p.is_dir() and p.name == "ORRERY_EVENTS"]
    assert stores, "the stream has a directory"
    for store in stores:
        shutil.rmtree(store)
    await eventually(kernel.answers, timeout_s=5)
    await ada.start_server("wiped", "quick", timeout_s=30)
    await ada.stop_server("wiped")
    # The wipe is complete once the broker has forgotten the stream too.
    old = await platform.kill("nats", wait=False)
    await platform.replaced("nats", old)
    await ada.start_server("wiped-again", "quick", timeout_s=30)
    await ada.stop_server("wiped-again")


@pytest.mark.invariant(6)
async def test_spawner_killed_before_its_claim(platform: Platform, ada: Person, kernel: Kernel) -> None:
    old = await platform.pid("spawner")
    os.kill(old, signal.SIGSTOP)
    status, answer = await ada.api("POST", ada.server_path("unclaimed"), {"profile": "quick"})
    assert status == 202, (status, answer)
    assert "server.start_claimed" not in await starts(ada, "unclaimed")
    os.kill(old, signal.SIGKILL)
    await platform.replaced("spawner", old)
    await exactly_one_ready(platform, ada, "unclaimed")
    await eventually(kernel.answers, timeout_s=5)


@pytest.mark.invariant(6)
@pytest.mark.parametrize("moment", ["server.start_claimed", "server.progressed"])
async def test_spawner_killed_after_its_claim(platform: Platform, ada: Person, kernel: Kernel, moment: str) -> None:
    server = moment.removeprefix("server.").replace("_", "-")
    old = await platform.pid("spawner")
    status, answer = await post_without_waiting(ada, server, "jupyterlab")
    assert status == 202, (status, answer)
    await event_seen(ada, server, "server.start_claimed")
    if moment == "server.progressed":
        await eventually(lambda: len(platform.server_pids()) > 1, timeout_s=20)
    os.kill(old, signal.SIGKILL)
    await platform.replaced("spawner", old)
    await exactly_one_ready(platform, ada, server)
    await eventually(kernel.answers, timeout_s=5)


async def being_started(platform: Platform, ada: Person, server: str) -> str:
    """A start that a spawner has claimed and that does not come to an end before `exactly_one_ready` lets it."""
    gate(platform).unlink(missing_ok=True)
    status, answer = await post_without_waiting(ada, server, "slow")
    assert status == 202, (status, answer)
    await event_seen(ada, server, "server.start_claimed")
    return server


def gate(platform: Platform) -> Path:
    """Servers of the profile `slow` come up once this file is there."""
    return platform.data_dir / "homes" / "ada" / "go"


async def post_without_waiting(ada: Person, server: str, profile: str) -> tuple[int, object]:
    """A start request whose answer is not waited for beyond its append."""
    task = asyncio.create_task(ada.api("POST", ada.server_path(server), {"profile": profile}))
    await event_seen(ada, server, "server.start_requested")
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return 202, None


async def exactly_one_ready(platform: Platform, ada: Person, server: str) -> None:
    """The start came to one end, once, with one process; then it is stopped."""
    gate(platform).touch()
    await ada.ready_server(server)
    history = await starts(ada, server)
    assert history.count("server.ready") == 1, history
    assert history.count("server.start_requested") == 1, history
    assert "server.failed" not in history
    status, page = await ada.fetch(f"/user/ada/{server}/")
    assert status == 200, page
    ids = list(platform.server_pids().values())
    roots = [pid for pid in platform.server_pids() if is_root(pid, platform)]
    assert len(roots) == len(set(ids)), f"one process per server, but {len(roots)} for {set(ids)}"
    await ada.stop_server(server)


def is_root(pid: int, platform: Platform) -> bool:
    """True for the process the driver started, False for what that started (kernels)."""
    try:
        parent = psutil.Process(pid).ppid()
    except psutil.Error:
        return False
    return parent not in platform.server_pids()


async def test_nothing_was_left_degraded(platform: Platform, kernel: Kernel) -> None:
    rows = await platform.status()
    assert all(row["ready"] for row in rows), rows
    verified = await asyncio.to_thread(platform.command, "replay", "--verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert await kernel.run("6*7") == "42"


async def test_a_stranger_reaches_nothing(platform: Platform, kernel: Kernel) -> None:
    """Invariant 9 on the real platform; the router's own tests go through the whole list of public paths."""
    async with aiohttp.ClientSession(platform.url, cookie_jar=aiohttp.DummyCookieJar()) as stranger:
        for path in ("/user/ada/api/status", "/user/ada/lab", "/hub/home", "/hub/api/users"):
            async with stranger.get(path, allow_redirects=False) as answer:
                assert answer.status in (302, 403), (path, answer.status)
                assert "/hub/login" in answer.headers.get("Location", "/hub/login")
