"""--no-prepend-path, --proxy-timeout, --keep-alive-timeout, --metrics-port; an error target that is away."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
import pytest_asyncio

from tests.support.platform import free_port
from tests.support.proxies import Proxy, fetch
from tests.support.routers import answering

from .conftest import Upstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("proxy-contract")]

METRICS_PORT = free_port()
FLAGS = (
    "--no-prepend-path", "--proxy-timeout", "300", "--keep-alive-timeout", "1200", "--error-target",
    "http://127.0.0.1:9/hub/error", "--metrics-ip", "127.0.0.1", "--metrics-port", str(METRICS_PORT),
    "--log-level", "ERROR",
)  # fmt: skip


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def empty(proxy: Proxy) -> None:
    await proxy.clear()


async def test_the_target_s_path_is_left_out(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/user/foo", f"{upstream.url}/pre?x=1")
    assert (await proxy.get("/user/foo/x?y=2")).json()["path"] == "/user/foo/x?y=2"


async def test_an_upstream_that_says_nothing_is_given_up(proxy: Proxy) -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with answering(silent) as url:
        await proxy.add("/", url)
        began = time.monotonic()
        answered = await proxy.get("/x")
    assert answered.status == 503
    assert 0.3 <= time.monotonic() - began < 5


async def test_an_error_target_that_is_away_leaves_a_word(proxy: Proxy) -> None:
    answered = await proxy.get("/x")
    assert (answered.status, answered.text) == (404, "Not Found")
    await proxy.add("/", "http://127.0.0.1:9")
    answered = await proxy.get("/x")
    assert (answered.status, answered.text) == (503, "Service Unavailable")


async def test_an_idle_connection_is_closed(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    began = time.monotonic()
    answered = await proxy.raw(f"GET /x HTTP/1.1\r\nHost: {proxy.host}\r\n\r\n".encode(), timeout_s=15)
    assert answered.startswith(b"HTTP/1.1 200")
    assert 1.0 < time.monotonic() - began < 10


async def test_metrics_have_the_original_s_names(proxy: Proxy, upstream: Upstream) -> None:
    before = await counted()
    await proxy.add("/", upstream.url)
    await proxy.get("/x")
    await proxy.get("/x?status=404")
    await proxy.routes()
    await proxy.remove_route("/")
    await proxy.get("/x")
    after = await counted()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    for name, times in {
        "api_route_add": 1, "api_route_get": 1, "api_route_delete": 1, "requests_web": 3, "requests_ws": 0,
        'requests_proxy{status="200"}': 1, 'requests_proxy{status="404"}': 2, 'requests_api{status="201"}': 1,
        'requests_api{status="204"}': 1,     }.items():  # fmt: skip
        assert grown[name] == times, name
    assert grown["find_target_for_req_count"] >= 3
    assert after["find_target_for_req_sum"] > 0
    assert after["last_activity_updating_count"] >= 1
    assert (await fetch("GET", f"http://127.0.0.1:{METRICS_PORT}/x")).status == 404


async def counted() -> dict[str, float]:
    answered = await fetch("GET", f"http://127.0.0.1:{METRICS_PORT}/metrics")
    assert answered.status == 200
    assert answered.headers["Content-Type"].startswith("text/plain")
    return {
        name: float(value) for name, value in re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", answered.text, re.MULTILINE)
    }
