"""Whatever people send or configure wrongly: a clear answer, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.platform import Person, Platform
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("bad_input"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform() -> AsyncIterator[Platform]:
    async with Platform.running() as platform:
        yield platform


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ada(platform: Platform) -> AsyncIterator[Person]:
    async with platform.sign_in() as ada:
        yield ada


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/users/nobody-of-that-name", 404),
        ("POST", "/users/nobody-of-that-name/server", 404),
        ("GET", "/users/ada/servers/no-such-server/progress", 404),
        ("GET", "/no/such/endpoint", 404),
        ("POST", "/users/ada/servers/Not%20A%20Name", 400),
    ],
)
async def test_what_does_not_exist(ada: Person, method: str, path: str, status: int) -> None:
    got, answer = await ada.api(method, path)
    assert got == status, answer
    assert answer["status"] == status
    assert answer["message"], "an error says what is wrong"


async def test_malformed_json_is_400_and_says_so(platform: Platform, ada: Person) -> None:
    headers = {"Authorization": f"token {ada.token}", "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(platform.url) as http,
        http.post("/hub/api/users", data=b'{"usernames": [', headers=headers) as answer,
    ):
        assert answer.status == 400, await answer.text()
        assert "JSON" in (await answer.json())["message"]


async def raw(platform: Platform, request: bytes) -> bytes:
    """What the public port answers to these bytes, until it closes or one head has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
    writer.write(request)
    await writer.drain()
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    writer.close()
    return head


async def test_an_oversized_head_is_431(platform: Platform) -> None:
    request = b"GET /hub/login HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n"
    assert (await raw(platform, request)).startswith(b"HTTP/1.1 431 ")


async def test_a_body_above_the_limit_is_413(platform: Platform, ada: Person) -> None:
    request = (
        b"POST /hub/api/users HTTP/1.1\r\nHost: x\r\nAuthorization: token " + ada.token.encode() + b"\r\n"
        b"Content-Type: application/json\r\nContent-Length: 104857600\r\n\r\n"
    )
    assert (await raw(platform, request)).startswith(b"HTTP/1.1 413 ")


async def test_wrong_passwords_are_403_then_throttled_for_a_while(platform: Platform) -> None:
    statuses = []
    async with aiohttp.ClientSession(platform.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        for _ in range(20):
            async with http.get("/hub/login") as page:
                field = re.search(r'name="_xsrf"[^>]*value="([^"]+)"', await page.text())
            assert field
            form = {"username": "mallory", "password": "guess", "_xsrf": field.group(1)}
            async with http.post("/hub/login", data=form, allow_redirects=False) as answer:
                statuses.append(answer.status)
                text = await answer.text()
                if answer.status == 429:
                    assert int(answer.headers["Retry-After"]) > 0
                    break
    assert statuses[0] == 403
    assert statuses[-1] == 429, statuses
    assert "<form" in text or "try again" in text.lower()


FAILING: dict[str, tuple[dict[str, Any], str]] = {
    "no-command": ({"command": ["/no/such/program", "{port}"]}, "command_not_found"),
    "exits-at-once": (
        {"command": ["{python}", "-c", "import sys; print('the reason it gave'); sys.exit(3)"]},
        "exited",
    ),
    "no-port": (
        {"command": ["{python}", "-c", "print('awake', flush=True); import time; time.sleep(600)"]},
        "port_never_opened",
    ),
    "too-late": (
        {
            "command": [
                "{python}",
                "-c",
                (
                    "import time, http.server as h; time.sleep(8);"
                    "h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
                ),
            ]
        },
        "port_never_opened",
    ),
}


@pytest.mark.parametrize("name", FAILING)
async def test_a_start_that_cannot_succeed_says_why_and_may_be_tried_again(ada: Person, name: str) -> None:
    profile, reason = FAILING[name]
    status, answer = await ada.api("PUT", f"/profiles/{name}", {**profile, "start_timeout_s": 3.0})
    assert status in (200, 201), answer
    for _attempt in range(2):
        status, answer = await ada.api("POST", ada.server_path(name), {"profile": name})
        assert status in (201, 202, 500), (status, answer)
        last = (await progress(ada, name))[-1]
        assert last["failed"] is True, last
        assert reason in json.dumps(last), last
        assert last["message"]
        if name == "exits-at-once":
            assert "the reason it gave" in json.dumps(last), "the last lines that it printed are shown"
            assert "3" in last["message"]

        async def at_rest() -> bool:
            found = await ada.server(name)
            return found is None or not found["pending"]

        await eventually(at_rest, timeout_s=10)
    assert not list(ada.platform.server_pids().values()), "nothing of it is left running"


async def progress(ada: Person, server: str) -> list[dict[str, Any]]:
    headers = {"Authorization": f"token {ada.token}"}
    path = f"/hub/api/users/ada/servers/{server}/progress"
    async with aiohttp.ClientSession(ada.platform.url) as http, http.get(path, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        body = await asyncio.wait_for(answer.text(), 40)
    return [json.loads(line.removeprefix("data:")) for line in body.splitlines() if line.startswith("data:")]
