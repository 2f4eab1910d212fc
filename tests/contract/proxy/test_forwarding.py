"""Which route a request takes, and what the upstream gets to see of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
import pytest_asyncio

from tests.support.proxies import Proxy, fetch
from tests.support.routers import answering, head_of
from tests.support.wait import eventually

from .conftest import Upstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("proxy-contract")]


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def empty(proxy: Proxy) -> None:
    await proxy.clear()


async def test_health(proxy: Proxy) -> None:
    answered = await proxy.get("/_chp_healthz")
    assert (answered.status, answered.json()) == (200, {"status": "OK"})
    assert answered.headers["Content-Type"] == "application/json"
    assert (await proxy.get("/_chp_healthz?x")).status == 404, "exactly this address"


async def test_the_longest_prefix_of_whole_segments_wins(proxy: Proxy, upstream: Upstream) -> None:
    for key, name in (("/", "top"), ("/user/foo", "foo"), ("/user/foo/lab", "lab"), ("/user/f%40o", "at")):
        await proxy.add(key, f"{upstream.url}/{name}")
    for path, name in (
        ("/", "top"), ("/x", "top"), ("/user", "top"), ("/user/", "top"), ("/user/foobar", "top"),
        ("/user/foo", "foo"), ("/user/foo/", "foo"), ("/user/foo/x/y", "foo"), ("/user/foo/labs", "foo"),
        ("/user/foo/lab", "lab"), ("/user/foo/lab/tree?x=/user", "lab"), ("/user/f@o/x", "at"), ("/user/f%40o", "at"),
        ("/%75ser/foo/x", "foo"), ("/user/foo?x", "foo"),
    ):  # fmt: skip
        answered = await proxy.get(path)
        assert answered.json()["path"] == f"/{name}{path}", path


async def test_an_encoded_slash_ends_a_segment(proxy: Proxy, upstream: Upstream) -> None:
    """JupyterHub escapes names that hold a slash, and sets the route with the escape, too."""
    await proxy.add("/user/a%2Fb", upstream.url)
    assert list(await proxy.routes()) == ["/user/a/b"]
    for path in ("/user/a%2Fb/lab", "/user/a%2fb", "/user/a/b/lab"):
        assert (await proxy.get(path)).json()["path"] == path


async def test_paths_that_can_be_read_in_two_ways(proxy: Proxy, upstream: Upstream) -> None:
    """The original routes and forwards what a URL parser makes of dot segments and reads `//x` as a host, so that what
    it routes is not always what it forwards; it fails on escapes that are none. Here they are refused, and `//x` is a
    path with an empty segment."""
    await proxy.add("/", f"{upstream.url}/top")
    await proxy.add("/user/foo", f"{upstream.url}/foo")
    for path in ("/user/foo/../bar", "/user/foo/%2e%2e/bar", "/user/foo/.", "/user/foo%2F..%2Fbar"):
        request = f"GET {path} HTTP/1.1\r\nHost: {proxy.host}\r\nConnection: close\r\n\r\n".encode()
        assert (await proxy.raw(request)).startswith(b"HTTP/1.1 400" if proxy.ours else b"HTTP/1.1 200"), path
    for path in ("/%", "/user/foo/%zz", "/%ff"):
        answered = await proxy.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert answered.startswith(b"HTTP/1.1 400" if proxy.ours else b"HTTP/1.1 500"), path
    answered = await proxy.raw(b"GET //user/foo/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answered.startswith(b"HTTP/1.1 200")
    assert (b'"/top//user/foo/x"' in answered) if proxy.ours else (b"/foo/" in answered or b'"/top' in answered)


async def test_the_target_s_path_is_put_before_the_whole_path(proxy: Proxy, upstream: Upstream) -> None:
    for target, before in (("", ""), ("/", ""), ("/pre", "/pre"), ("/pre/", "/pre"), ("/a%20b/c", "/a%20b/c")):
        await proxy.add("/user/foo", upstream.url + target)
        for path in ("/user/foo", "/user/foo/", "/user/foo/x%20y/z?a=b&c", "/user/foo/a//b"):
            assert (await proxy.get(path)).json()["path"] == before + path, target
    await proxy.add("/user/foo", f"{upstream.url}/pre?fixed=1")
    assert (await proxy.get("/user/foo/x?a=b")).json()["path"] == "/pre/user/foo/x?fixed=1&a=b"
    assert (await proxy.get("/user/foo/x")).json()["path"] == "/pre/user/foo/x?fixed=1"


async def test_a_change_is_served_when_it_is_answered(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", f"{upstream.url}/top")
    for number in range(20):
        await proxy.add("/user/foo", f"{upstream.url}/{number}")
        assert (await proxy.get("/user/foo")).json()["path"] == f"/{number}/user/foo"
        assert await proxy.remove_route("/user/foo") == 204
        assert (await proxy.get("/user/foo")).json()["path"] == "/top/user/foo"


async def test_methods_and_bodies_arrive_as_they_were_sent(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answered = await fetch(method, f"{proxy.url}/x", data=b"a body")
        said = answered.json()
        assert (said["method"], said["body"], said["headers"]["content-length"]) == (method, "a body", "6")
    for method in ("DELETE", "OPTIONS"):
        request = f"{method} /x HTTP/1.1\r\nHost: {proxy.host}\r\nConnection: close\r\n\r\n".encode()
        assert b'"content-length": "0"' in await proxy.raw(request)
    chunked = (
        b"POST /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    assert b'"body": "hello"' in await proxy.raw(chunked)
    answered = await fetch("HEAD", f"{proxy.url}/x")
    assert (answered.status, answered.body) == (200, b"")


async def test_headers_go_both_ways_untouched(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    sent = {"Host": "hub.example.org:8000", "Authorization": "token abc", "Cookie": "a=b; _xsrf=c", "X-Own": "1"}
    answered = await proxy.get("/", headers=sent)
    got = answered.json()["headers"]
    assert {name: got[name.lower()] for name in sent} == sent, "who asks is the business of what is behind"
    assert answered.headers["X-Upstream"] == "yes"


async def test_where_a_request_came_from_is_said_after_what_was_said_before(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    got = (await proxy.get("/")).json()["headers"]
    told = {name: value for name, value in got.items() if name.startswith("x-forwarded")}
    assert told == {
        "x-forwarded-for": "127.0.0.1", "x-forwarded-port": str(proxy.port), "x-forwarded-proto": "http",
        "x-forwarded-host": proxy.host,
    }  # fmt: skip
    before = {
        "X-Forwarded-For": "10.0.0.1, 10.0.0.2", "X-Forwarded-Port": "443", "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "hub.example.org", "Host": "inner",
    }  # fmt: skip
    got = (await proxy.get("/", headers=before)).json()["headers"]
    told = {name: value for name, value in got.items() if name.startswith("x-forwarded")}
    assert told == {
        "x-forwarded-for": "10.0.0.1, 10.0.0.2,127.0.0.1", "x-forwarded-port": "443,80",
        "x-forwarded-proto": "https,http", "x-forwarded-host": "hub.example.org",
    }  # fmt: skip


async def test_redirects_and_errors_of_the_upstream_are_its_own(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    for status in (201, 302, 400, 404, 500, 503):
        answered = await proxy.get(f"/x?status={status}&location={upstream.url}/elsewhere")
        assert (answered.status, answered.text) == (status, "as you wish")
        assert answered.headers["Location"] == f"{upstream.url}/elsewhere"


async def test_without_a_route(proxy: Proxy) -> None:
    answered = await proxy.get("/x")
    assert answered.status == 404
    assert answered.headers["Content-Type"].startswith("text/html")
    assert "404: Not Found" in answered.text


async def test_without_anybody_at_the_target(proxy: Proxy) -> None:
    await proxy.add("/", "http://127.0.0.1:9")
    for method in ("GET", "POST"):
        answered = await fetch(method, f"{proxy.url}/x", data=b"x" if method == "POST" else None)
        assert answered.status == 503
        assert answered.headers["Content-Type"].startswith("text/html")
        assert "503: Proxy Target Missing" in answered.text


async def test_an_upstream_that_hangs_up(proxy: Proxy) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.close()

    async with answering(hang_up) as url:
        await proxy.add("/", url)
        assert (await proxy.get("/x")).status == 503


async def test_activity_is_a_successful_answer(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/user/foo", upstream.url)
    await proxy.add("/user/bar", "http://127.0.0.1:9")

    async def last(key: str) -> str:
        return str((await proxy.routes())[key]["last_activity"])

    before = await last("/user/foo")
    for path in ("/user/foo?status=302", "/user/foo?status=404", "/user/foo?status=500", "/elsewhere"):
        await proxy.get(path)
    assert await last("/user/foo") == before
    untouched = await last("/user/bar")
    assert (await proxy.get("/user/bar/x")).status == 503
    assert await last("/user/bar") == untouched
    assert (await proxy.get("/user/foo/x")).status == 200
    assert await last("/user/foo") > before


async def test_activity_is_a_request_s_body(proxy: Proxy) -> None:
    """While it is being sent, whatever will be answered."""

    async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            await reader.readexactly(2**20)

    async with answering(never) as url:
        await proxy.add("/user/foo", url)
        before = (await proxy.routes())["/user/foo"]["last_activity"]
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"POST /user/foo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nfirst")

        async def counts() -> bool:
            writer.write(b"x")
            return bool((await proxy.routes())["/user/foo"]["last_activity"] > before)

        await eventually(counts)
        writer.close()


async def test_connections_are_kept_for_the_next_request(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    one = f"GET /first HTTP/1.1\r\nHost: {proxy.host}\r\n\r\n"
    two = f"GET /second HTTP/1.1\r\nHost: {proxy.host}\r\nConnection: close\r\n\r\n"
    answered = await proxy.raw((one + two).encode())
    assert answered.count(b"HTTP/1.1 200 OK") == 2
    assert answered.index(b'"/first"') < answered.index(b'"/second"')
