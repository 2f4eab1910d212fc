"""What a newcomer does in the first minute, on the platform as it is started by one command."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest
import pytest_asyncio

from tests.support.platform import Kernel, Platform
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("first_minute"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started() -> AsyncIterator[Platform]:
    async with Platform.running() as platform:
        yield platform


@pytest_asyncio.fixture(loop_scope="module")
async def platform(started: Platform) -> Platform:
    """One for all tests, which leave no server behind; one of them ends it."""
    if started.process is None or started.process.poll() is not None:
        await started.start()
    return started


async def test_sign_in_start_jupyterlab_run_a_cell_and_stop(platform: Platform) -> None:
    async with platform.sign_in() as ada:
        ready = await ada.start_server()
        assert ready["url"] == "/user/ada/"

        status, page = await ada.fetch("/user/ada/lab")
        assert status == 200
        assert "JupyterLab" in page

        kernel = await Kernel.start(ada, "/user/ada/")
        assert await kernel.run("6*7") == "42"

        await ada.stop_server()
        status, page = await ada.fetch("/user/ada/lab")
        assert status == 424
        assert "/hub/spawn/ada" in page, "the page of a stopped server offers to start it"
        assert not platform.server_pids()


async def test_the_timeline_of_a_start_is_the_same_after_a_reload(platform: Platform) -> None:
    async with platform.sign_in() as ada:
        await ada.api("POST", ada.server_path())
        live = await timeline(platform, ada.token, "/hub/api/users/ada/server/progress")
        again = await timeline(platform, ada.token, "/hub/api/users/ada/server/progress")
        assert live[-1]["ready"] is True
        assert live[-1]["progress"] == 100
        assert live[-1]["url"] == "/user/ada/"
        assert len(live) >= 3, live
        assert [e["message"] for e in live] == [e["message"] for e in again]
        await ada.stop_server()


async def timeline(platform: Platform, token: str, path: str) -> list[dict[str, object]]:
    """All messages of a progress stream until it ends."""
    headers = {"Authorization": f"token {token}"}
    async with aiohttp.ClientSession(platform.url) as http, http.get(path, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "text/event-stream"
        body = await asyncio.wait_for(answer.text(), 60)
    return [json.loads(line.removeprefix("data:")) for line in body.splitlines() if line.startswith("data:")]


async def test_running_notebooks_survive_ctrl_c_and_are_adopted(platform: Platform) -> None:
    async with platform.sign_in() as ada:
        await ada.start_server()
        kernel = await Kernel.start(ada, "/user/ada/")
        assert await kernel.run("kept = 41; kept") == "41"
        before = platform.server_pids()
        said = await platform.interrupt()
        assert "1 running server left running" in said, said
        assert platform.server_pids() == before, "Ctrl-C must leave notebooks alone"

        await platform.start()
        assert await kernel.run("kept + 1") == "42", "the same kernel with its memory"
        assert platform.server_pids() == before

        platform.command("down", "--stop-servers")
        await eventually(lambda: not platform.server_pids(), timeout_s=30)
        assert platform.process is not None
        assert await asyncio.to_thread(platform.process.wait, 30) == 0


async def test_status_names_every_process(platform: Platform) -> None:
    rows = {row["slot"]: row for row in await platform.status()}
    services = sorted(row["service"] for row in rows.values())
    assert services == sorted(["postgres", "nats", "relay", "auth", "api", "spawner", "router", "router"])
    for row in rows.values():
        assert row["pid"] > 0
        assert row["ready"] is True
        if row["service"] in ("auth", "api", "spawner", "router", "relay"):
            assert row["instance"]
            assert row["position"] > 0
            assert row["lag"] >= 0


async def test_the_log_can_be_read_and_the_projections_proven(platform: Platform) -> None:
    async with platform.sign_in() as ada:
        await ada.start_server()
        tail = await asyncio.to_thread(platform.command, "events", "tail", "--from", "1", "-o", "json")
        events = [json.loads(line) for line in tail.stdout.splitlines()]
        types = [e["type"] for e in events]
        for expected in ("user.created", "auth.session_started", "server.start_requested", "server.ready", "route.set"):
            assert any(expected in t for t in types), (expected, types)
        sequences = [int(e["sequence"]) for e in events]
        assert sequences == list(range(1, len(sequences) + 1)), "positions are gapless"

        verified = await asyncio.to_thread(platform.command, "replay", "--verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
        await ada.stop_server()


async def test_first_admin_by_the_one_time_link() -> None:
    platform = Platform()
    try:
        await platform.start(bootstrap=False)
        banner = platform.output.read_text()
        link = re.search(r"http://[^\s]+/setup/[^\s]+", banner)
        assert link, banner
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as http:
            async with http.get(link.group()) as page:
                assert page.status == 200
                field = re.search(r'name="_xsrf"[^>]*value="([^"]+)"', await page.text())
                assert field
            form = {"username": "grace", "password": "a long enough password", "_xsrf": field.group(1)}
            form["password2"] = form["password_confirm"] = form["password"]
            async with http.post(link.group(), data=form) as done:
                assert done.status == 200, await done.text()
            async with http.get(f"{platform.url}/hub/home") as home:
                assert home.status == 200
                assert "grace" in await home.text()
        async with aiohttp.ClientSession() as stranger, stranger.get(link.group()) as again:
            assert again.status in (403, 404, 410), "the link works once"
    finally:
        with suppress(Exception):
            await asyncio.to_thread(platform.stop)
