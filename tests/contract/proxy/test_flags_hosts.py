"""--host-routing, --custom-header, --default-target, --error-path; no token."""

from __future__ import annotations

import pytest
import pytest_asyncio

from tests.support.proxies import Proxy

from .conftest import Upstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("proxy-contract")]

TOKEN = ""
FLAGS = (
    "--host-routing", "--default-target", "{upstream}/default", "--error-path", "tests/contract/proxy/errors",
    "--custom-header", "X-Set: by the proxy", "--custom-header", " x-two :2 ",
)  # fmt: skip


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def only_the_default(proxy: Proxy) -> None:
    for key in await proxy.routes():
        if key != "/":
            await proxy.remove_route(key)


async def test_the_default_target_is_the_route_of_the_root(proxy: Proxy, upstream: Upstream) -> None:
    routes = await proxy.routes()
    assert set(routes) == {"/"}
    assert routes["/"]["target"] == f"{upstream.url}/default"
    assert set(routes["/"]) == {"target", "last_activity"}
    assert (await proxy.get("/x", headers={"Host": "any"})).json()["path"] == "/default/x"


async def test_the_first_segment_of_a_route_is_its_host(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/hub.example.org", f"{upstream.url}/hub")
    await proxy.add("/ada.example.org/user/ada", f"{upstream.url}/ada", user="ada")
    routes = await proxy.routes()
    assert routes["/hub.example.org"]["host"] == "hub.example.org"
    assert routes["/ada.example.org/user/ada"]["host"] == "ada.example.org"
    for host, path, expected in (
        ("hub.example.org", "/x", "/hub/x"), ("hub.example.org:8000", "/", "/hub/"),
        ("ada.example.org", "/user/ada/lab", "/ada/user/ada/lab"), ("ada.example.org", "/other", "/default/other"),
        ("nobody.example.org", "/user/ada", "/default/user/ada"),
    ):  # fmt: skip
        answered = await proxy.get(path, headers={"Host": host})
        assert answered.json()["path"] == expected, (host, path)


async def test_hosts_have_no_case(proxy: Proxy, upstream: Upstream) -> None:
    """The original compares them letter by letter, so that `Hub.Example.org` is not found."""
    await proxy.add("/hub.example.org", f"{upstream.url}/hub")
    answered = await proxy.get("/x", headers={"Host": "Hub.Example.ORG"})
    assert answered.json()["path"] == ("/hub/x" if proxy.ours else "/default/x")


async def test_custom_headers_take_the_place_of_the_client_s(proxy: Proxy) -> None:
    headers = (await proxy.get("/x")).json()["headers"]
    assert (headers["x-set"], headers["x-two"]) == ("by the proxy", "2")
    headers = (await proxy.get("/x", headers={"x-two": "the client's"})).json()["headers"]
    assert headers["x-two"] == "2"


async def test_without_a_token_everybody_may_do_everything(proxy: Proxy) -> None:
    assert (await proxy.api("GET", "/api/routes", headers={"Authorization": "token wrong"})).status == 200


async def test_error_pages_from_a_folder(proxy: Proxy) -> None:
    assert await proxy.remove_route("/") == 204
    answered = await proxy.get("/x")
    assert (answered.status, answered.text) == (404, "<p>our own 404</p>\n")
    await proxy.add("/", "http://127.0.0.1:9")
    answered = await proxy.get("/x")
    assert (answered.status, answered.text) == (503, "<p>our own page for everything else</p>\n")
    assert answered.headers["Content-Type"] == "text/html"
