"""A stock JupyterHub behind two replicas of `orrery proxy`: sign in, start a server, use it, kill, restart.

The hub is the one from the package registry, without a line changed: it finds `configurable-http-proxy` on PATH, starts
it, and knows of no second one. `make test-jupyterhub` does all of it with every version that is supported;
`make test` with the newest.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import psutil
import pytest

from orrery_events.tasks import end_tasks
from tests.support.jupyterhubs import SERVICE_TOKEN, Hub, Visitor, types
from tests.support.proxies import Proxy
from tests.support.wait import eventually

VERSIONS = os.environ.get("ORRERY_TEST_JUPYTERHUBS", "6").split(",")

pytestmark = [pytest.mark.xdist_group("jupyterhub"), pytest.mark.timeout(600)]


@asynccontextmanager
async def watched(visitor: Visitor, path: str, seen: Counter[int]) -> AsyncIterator[None]:
    """Counts the answers to a request that is made over and over, each on a connection of its own."""

    async def ask() -> None:
        cookies = {c.key: c.value for c in visitor.http.cookie_jar}
        while True:
            connector = aiohttp.TCPConnector(force_close=True)
            async with aiohttp.ClientSession(visitor.hub.url, cookies=cookies, connector=connector) as http:
                try:
                    async with http.get(path, allow_redirects=False) as answer:
                        seen[answer.status] += 1
                except aiohttp.ClientConnectionError:
                    # A connection that Linux had given to the process that was killed; a browser tries again.
                    seen[0] += 1

    task = asyncio.create_task(ask())
    try:
        yield
    finally:
        await end_tasks(task)


async def has_replaced(hub: Hub, gone: int) -> bool:
    """The hub has noticed that its proxy is gone, and started another."""
    return hub.proxy_pid not in (0, gone) and hub.log.count("Proxy stopped with exit code") > 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stock_hub_behind_two_replicas(version: str) -> None:
    token = secrets.token_hex(16)
    hub = Hub(version, {"CONFIGPROXY_AUTH_TOKEN": token})
    env = {"ORRERY_DATA_DIR": str(hub.root / "proxy")}
    hub._env |= env
    second = Proxy("orrery", env=env, token=token, port=hub.port, api_port=hub.api_port)
    try:
        hub.launch()
        await hub.ready()
        first_pid = hub.proxy_pid
        second.launch()
        await second.ready()
        async with Visitor(hub, "ada") as ada, Visitor(hub, "bob") as bob:
            await asyncio.gather(ada.sign_in(), bob.sign_in())
            await asyncio.gather(ada.start_server(), bob.start_server())
            routes = await second.routes()
            assert {"/", "/user/ada", "/user/bob"} <= set(routes)
            assert routes["/user/ada"]["jupyterhub"] is True
            terminals = [await ada.terminal(), await bob.terminal()]
            for terminal in terminals:
                await types(terminal, (20, 22))

            await one_replica_is_killed(hub, second, ada, first_pid)
            await both_are_restarted(hub, second, ada)
            terminal = await bob.terminal()
            await types(terminal, (1, 2))
            await hub_still_knows_who_was_active(hub)
    except AssertionError as error:
        error.add_note(f"hub:\n{hub.log[-6000:]}\nproxy:\n{second.log[-3000:]}")
        raise
    finally:
        second.remove()
        hub.remove()


async def one_replica_is_killed(hub: Hub, second: Proxy, ada: Visitor, first_pid: int) -> None:
    seen: Counter[int] = Counter()
    async with watched(ada, "/user/ada/api/status", seen):
        await eventually(lambda: seen[200] > 10)
        psutil.Process(first_pid).kill()
        await eventually(lambda: has_replaced(hub, first_pid), timeout_s=60)
        calm = seen[200]
        await eventually(lambda: seen[200] > calm + 20, timeout_s=30)
    assert set(seen) <= {0, 200}, seen
    assert seen[0] < 0.2 * seen[200], seen
    assert {"/", "/user/ada", "/user/bob"} <= set(await second.routes())


async def both_are_restarted(hub: Hub, second: Proxy, ada: Visitor) -> None:
    """Nothing is lost even while nobody runs: the routes are there before the hub can say a word."""
    os.kill(hub.proxy_pid, signal.SIGSTOP)  # So that the hub does not start another before we have looked.
    stopped = hub.proxy_pid
    await second.stop()
    psutil.Process(stopped).kill()
    await second.start()
    assert {"/", "/user/ada", "/user/bob"} <= set(await second.routes())
    assert (await ada.get("/user/ada/api/status"))[0] == 200
    await eventually(lambda: has_replaced(hub, stopped), timeout_s=60)


async def hub_still_knows_who_was_active(hub: Hub) -> None:
    """It reads last_activity from the proxy."""
    async with aiohttp.ClientSession(headers={"Authorization": f"token {SERVICE_TOKEN}"}) as http:
        async with http.get(f"{hub.url}/hub/api/users/ada") as answer:
            said = await answer.json()
            assert "servers" in said, (answer.status, said)
            before = said["servers"][""]["last_activity"]
        async with http.get(f"{hub.url}/user/ada/api/status") as answer:
            assert answer.status == 200

        async def newer() -> bool:
            async with http.get(f"{hub.url}/hub/api/users/ada") as answer:
                return bool((await answer.json())["servers"][""]["last_activity"] > before)

        await eventually(newer, timeout_s=30)
