"""The REST API."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import pytest_asyncio

from tests.support.proxies import Proxy

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("proxy-contract")]

TARGET = "http://127.0.0.1:9"


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def empty(proxy: Proxy) -> None:
    await proxy.clear()


async def test_a_fresh_table_is_an_empty_object(proxy: Proxy) -> None:
    answered = await proxy.api("GET", "/api/routes")
    assert (answered.status, answered.json()) == (200, {})
    assert answered.headers["Content-Type"] == "application/json"


async def test_a_route_is_stored_verbatim_and_shown_with_its_last_activity(proxy: Proxy) -> None:
    extra: dict[str, Any] = {
        "jupyterhub": True, "user": "ada", "server_name": "", "extra": {"deep": [1, 2.5, None, "ü☃"]},
    }  # fmt: skip
    answered = await proxy.api("POST", "/api/routes/user/ada", {"target": TARGET, **extra})
    assert (answered.status, answered.body) == (201, b"")
    routes = await proxy.routes()
    activity = routes["/user/ada"].pop("last_activity")
    assert routes == {"/user/ada": {"target": TARGET, **extra}}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", activity)
    age = datetime.now(timezone.utc) - datetime.fromisoformat(activity)
    assert timedelta(seconds=-2) < age < timedelta(seconds=20)


async def test_one_route_is_found_by_its_whole_path_only(proxy: Proxy) -> None:
    await proxy.add("/user/ada", TARGET, user="ada")
    for path in ("/user/ada", "/user/ada/"):
        answered = await proxy.api("GET", f"/api/routes{path}")
        assert (answered.status, answered.json()["user"]) == (200, "ada"), path
        assert set(answered.json()) == {"target", "user", "last_activity"}
    for path in ("/user", "/user/ada/lab", "/user/adam"):
        answered = await proxy.api("GET", f"/api/routes{path}")
        assert (answered.status, answered.body) == (404, b""), path


async def test_the_root_is_a_route_like_any_other_and_is_listed(proxy: Proxy) -> None:
    for path in ("/api/routes", "/api/routes/"):
        assert (await proxy.api("POST", path, {"target": TARGET, "hub": True})).status == 201
        assert (await proxy.routes())["/"]["hub"] is True
        assert (await proxy.api("DELETE", "/api/routes/")).status == 204
        assert await proxy.routes() == {}


async def test_setting_a_route_again_replaces_it_as_a_whole(proxy: Proxy) -> None:
    await proxy.add("/user/ada", TARGET, user="ada", server_name="lab")
    await proxy.add("/user/ada/", "http://127.0.0.1:10", user="ada")
    routes = await proxy.routes()
    assert list(routes) == ["/user/ada"]
    routes["/user/ada"].pop("last_activity")
    assert routes["/user/ada"] == {"target": "http://127.0.0.1:10", "user": "ada"}


async def test_keys_are_percent_decoded(proxy: Proxy) -> None:
    await proxy.add("/user/f%40o%20%C3%BC", TARGET)
    assert list(await proxy.routes()) == ["/user/f@o ü"]
    assert (await proxy.api("GET", "/api/routes/user/f@o%20%c3%bc")).status == 200
    assert await proxy.remove_route("/user/f%40o%20%C3%BC/") == 204
    assert await proxy.routes() == {}


async def test_a_last_activity_in_the_body_is_not_believed(proxy: Proxy) -> None:
    await proxy.add("/user/ada", TARGET, last_activity="1999-01-01T00:00:00.000Z")
    assert not (await proxy.routes())["/user/ada"]["last_activity"].startswith("1999")


async def test_removing_answers_204_then_404(proxy: Proxy) -> None:
    await proxy.add("/user/ada", TARGET)
    await proxy.add("/user/bob", TARGET)
    answered = await proxy.api("DELETE", "/api/routes/user/ada")
    assert (answered.status, answered.body) == (204, b"")
    answered = await proxy.api("DELETE", "/api/routes/user/ada")
    assert (answered.status, answered.body) == (404, b"")
    assert await proxy.remove_route("/user") == 404, "no prefix"
    assert list(await proxy.routes()) == ["/user/bob"]


async def test_removing_without_a_path(proxy: Proxy) -> None:
    """The original never answers DELETE /api/routes; here that is the route `/`."""
    await proxy.add("/", TARGET)
    if proxy.ours:
        assert (await proxy.api("DELETE", "/api/routes")).status == 204
        assert await proxy.routes() == {}
        assert (await proxy.api("DELETE", "/api/routes")).status == 404
    else:
        with pytest.raises(asyncio.TimeoutError):
            await proxy.api("DELETE", "/api/routes", timeout_s=1)


@pytest.mark.parametrize(
    "body", [b'{"port": 1}', b'{"target": 5}', b'{"target": null}', b"null", b"5", b'"text"', b"[]", b"{}"]
)
async def test_a_target_is_a_text(proxy: Proxy, body: bytes) -> None:
    answered = await proxy.api("POST", "/api/routes/x", raw=body)
    assert (answered.status, answered.text) == (400, "Must specify 'target' as string")


@pytest.mark.parametrize("body", [b"", b"{", b"target=x", b'{"target": "x",}'])
async def test_a_body_is_json(proxy: Proxy, body: bytes) -> None:
    answered = await proxy.api("POST", "/api/routes/x", raw=body)
    assert answered.status == 400
    assert answered.text.startswith("Body not valid JSON: ")
    assert await proxy.routes() == {}


@pytest.mark.parametrize("name", ["inactive_since", "inactiveSince"])
async def test_only_inactive_routes_are_listed_when_asked_for(proxy: Proxy, name: str) -> None:
    await proxy.add("/user/ada", TARGET)
    now = datetime.now(timezone.utc)
    for moment, expected in ((now - timedelta(hours=1), []), (now + timedelta(hours=1), ["/user/ada"])):
        text = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        answered = await proxy.api("GET", f"/api/routes?{name}={text}")
        assert (answered.status, list(answered.json())) == (200, expected)
    answered = await proxy.api("GET", f"/api/routes?{name}=yesterday")
    assert (answered.status, answered.text) == (400, "Invalid datestamp 'yesterday' must be ISO8601.")
    assert list((await proxy.api("GET", f"/api/routes?{name}=")).json()) == ["/user/ada"]


@pytest.mark.parametrize(
    "authorization",
    ["", "token wrong", "token", "Token {token}", "Bearer {token}", "{token}", "token {token}x", "Basic {token}"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_without_the_token_nothing_is_done_and_nothing_said(
    proxy: Proxy, authorization: str, method: str
) -> None:
    headers = {"Authorization": authorization.format(token=proxy.token)} if authorization else {}
    await proxy.add("/user/ada", TARGET)
    body = {"target": "http://127.0.0.1:66"} if method == "POST" else None
    answered = await proxy.api(method, "/api/routes/user/ada", body, token="", headers=headers)
    assert (answered.status, answered.body) == (403, b"")
    assert (await proxy.routes())["/user/ada"]["target"] == TARGET


async def test_who_may_not_post_is_not_listened_to(proxy: Proxy) -> None:
    """The original reads and parses a body first, whoever sends it."""
    answered = await proxy.api("POST", "/api/routes/x", raw=b"{", token="")
    assert answered.status == (403 if proxy.ours else 400)


@pytest.mark.parametrize("authorization", ["token {token}", "token   {token}", "token\t{token} trailing"])
async def test_spellings_of_the_token_that_count(proxy: Proxy, authorization: str) -> None:
    headers = {"Authorization": authorization.format(token=proxy.token)}
    assert (await proxy.api("GET", "/api/routes", headers=headers)).status == 200


async def test_other_methods_and_paths(proxy: Proxy) -> None:
    for method in ("PUT", "PATCH", "OPTIONS"):
        answered = await proxy.api(method, "/api/routes/x")
        assert (answered.status, answered.text) == (405, "Method not supported")
    for path in ("/", "/api", "/api/", "/api/route", "/api/routesx", "/x/api/routes", "/api//routes"):
        answered = await proxy.api("GET", path)
        assert (answered.status, answered.text) == (404, "Not Found"), path


async def test_dot_segments_are_resolved_before_a_key_is_read(proxy: Proxy) -> None:
    await proxy.add("/a/../b/./c/%2e%2e/d", TARGET)
    assert list(await proxy.routes()) == ["/b/d"]
    assert (await proxy.api("GET", "/api/routes/../etc")).status == 404


async def test_a_percent_sign_that_escapes_nothing(proxy: Proxy) -> None:
    """The original throws and never answers."""
    if proxy.ours:
        assert (await proxy.api("GET", "/api/routes/%")).status == 400
        assert (await proxy.api("POST", "/api/routes/%zz", {"target": TARGET})).status == 400
        assert (await proxy.api("POST", "/api/routes/%ff", {"target": TARGET})).status == 400
    else:
        with pytest.raises(asyncio.TimeoutError):
            await proxy.api("GET", "/api/routes/%", timeout_s=1)


async def test_any_text_is_taken_for_a_target(proxy: Proxy) -> None:
    await proxy.add("/odd", "no url at all")
    assert (await proxy.routes())["/odd"]["target"] == "no url at all"
    assert (await proxy.get("/odd/x")).status == 500


async def test_many_at_once(proxy: Proxy) -> None:
    """As a hub does it when it starts; each is served when it was answered."""

    async def one(number: int) -> None:
        await proxy.add(f"/user/u{number}", TARGET, user=f"u{number}")
        assert (await proxy.api("GET", f"/api/routes/user/u{number}")).json()["user"] == f"u{number}"

    await asyncio.gather(*(one(number) for number in range(50)))
    assert len(await proxy.routes()) == 50
    assert set(await asyncio.gather(*(proxy.remove_route(f"/user/u{n}") for n in range(50)))) == {204}
    assert await proxy.routes() == {}


async def test_how_large_a_route_may_be(proxy: Proxy) -> None:
    """The original takes whatever fits into its memory; an event of the log is bounded."""
    await proxy.add("/large", TARGET, text="x" * 30_000)
    answered = await proxy.api("POST", "/api/routes/larger", {"target": TARGET, "text": "x" * 100_000})
    assert answered.status == (413 if proxy.ours else 201)
