"""--no-include-prefix, --no-x-forward, --change-origin, --auto-rewrite, --protocol-rewrite, --error-target."""

from __future__ import annotations

import aiohttp
import pytest
import pytest_asyncio

from tests.support.proxies import Proxy

from .conftest import Upstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("proxy-contract")]

FLAGS = (
    "--no-include-prefix", "--no-x-forward", "--change-origin", "--auto-rewrite", "--protocol-rewrite", "https",
    "--error-target", "{upstream}/hub/error",
)  # fmt: skip


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def empty(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.clear()
    upstream.errors.clear()


async def test_paths_go_on_without_the_route_s_prefix(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/user/foo", upstream.url)
    await proxy.add("/user/bar", f"{upstream.url}/pre")
    for path, expected in (
        ("/user/foo", "/"), ("/user/foo/", "/"), ("/user/foo/x/y?z", "/x/y?z"), ("/user/bar/x", "/pre/x"),
    ):  # fmt: skip
        assert (await proxy.get(path)).json()["path"] == expected


async def test_an_encoded_prefix_is_cut_where_it_ends(proxy: Proxy, upstream: Upstream) -> None:
    """The original cuts as many letters as the decoded prefix has, wherever that is."""
    await proxy.add("/user/f%40o", upstream.url)
    answered = await proxy.get("/user/f%40o/x")
    assert answered.json()["path"] == ("/x" if proxy.ours else "/0o/x")


async def test_the_target_is_the_host_and_nothing_is_said_of_the_client(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    headers = (await proxy.get("/x", headers={"Host": "hub.example.org", "X-Forwarded-For": "10.0.0.1"})).json()[
        "headers"
    ]
    assert headers["host"] == upstream.host
    assert {n: v for n, v in headers.items() if n.startswith("x-forwarded")} == {"x-forwarded-for": "10.0.0.1"}
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{proxy.url}/ws") as ws:
        headers = (await ws.receive_json(timeout=5))["headers"]
    assert headers["host"] == upstream.host
    assert not [name for name in headers if name.startswith("x-forwarded")]


@pytest.mark.parametrize("status", [201, 301, 302, 307, 308])
async def test_redirects_to_the_target_lead_to_the_proxy(proxy: Proxy, upstream: Upstream, status: int) -> None:
    await proxy.add("/", upstream.url)
    for location, expected in (
        (f"{upstream.url}/a?b=c", f"https://{proxy.host}/a?b=c"), ("/relative", "/relative"),
        ("http://elsewhere.example.org/a", "http://elsewhere.example.org/a"),
    ):  # fmt: skip
        answered = await proxy.get(f"/x?status={status}&location={location.replace('?', '%3F').replace('=', '%3D')}")
        assert (answered.status, answered.headers["Location"]) == (status, expected)


async def test_a_location_of_another_kind_of_answer_stays(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    for status in (200, 404):
        answered = await proxy.get(f"/x?status={status}&location={upstream.url}/a")
        assert answered.headers["Location"] == f"{upstream.url}/a"


async def test_errors_are_asked_of_the_error_target(proxy: Proxy, upstream: Upstream) -> None:
    answered = await proxy.get("/user/nobody/a%20b?x=1&y")
    assert (answered.status, answered.text) == (404, "<h1>the hub says so</h1>")
    assert answered.headers["Content-Type"].startswith("text/html")
    assert "X-Hub" not in answered.headers
    await proxy.add("/user/foo", "http://127.0.0.1:9")
    answered = await proxy.get("/user/foo/x")
    assert (answered.status, answered.text) == (503, "<h1>the hub says so</h1>")
    first, second = upstream.errors
    assert first == "/hub/error/404?url=%2Fuser%2Fnobody%2Fa%2520b%3Fx%3D1%26y"
    # The original tells a 503 with the path from which it has cut the prefix already, which no longer says where.
    assert second == "/hub/error/503?url=" + ("%2Fuser%2Ffoo%2Fx" if proxy.ours else "%2Fx")
