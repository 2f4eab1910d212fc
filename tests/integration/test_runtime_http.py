"""The HTTP kit on a real process: identity, XSRF, errors, limits, headers, positions, metrics."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client import REGISTRY

from orrery_events.bus import Bus
from orrery_events.catalog.auth import (
    KeyAnnounced,
    SessionRevoked,
    TokenRevoked,
    key_stream,
    session_stream,
    token_stream,
)
from orrery_events.catalog.user import UserCreated, UserDeleted, user_stream
from orrery_events.log import EventLog
from tests.support.backbone import NatsServer
from tests.support.http_kit import (
    KEY,
    Replica,
    ask,
    replica,
    session,
    token,
)
from tests.support.wait import eventually


@pytest.fixture
async def api(database_url: str, nats_server: NatsServer) -> AsyncIterator[Replica]:
    async with replica(database_url, nats_server.url, "api-1") as one:
        await one.append(key_stream("k1"), KeyAnnounced(kid="k1", public_key=KEY.public_key, not_before=0))
        await one.append(user_stream("ada"), UserCreated(user_id="u-ada", name="ada"))
        await one.append(user_stream("root"), UserCreated(user_id="u-root", name="root", admin=True))
        assert await one.tail.catch_up(5)
        yield one


async def test_who_is_asking(api: Replica) -> None:
    async with api.browser() as stranger, api.browser(session()) as ada:
        assert await ask(stranger, "GET", "/hub/api/whoami") == (200, {"name": None})
        assert await ask(ada, "GET", "/hub/api/whoami") == (200, {"name": "ada"})
        for scheme in ("token", "Bearer"):
            headers = {"Authorization": f"{scheme} {token()}"}
            assert await ask(stranger, "POST", "/hub/api/change", headers=headers) == (200, {"name": "ada"})
        status, answer = await ask(stranger, "POST", "/hub/api/change")
        assert (status, answer) == (403, {"status": 403, "message": "Missing or invalid credentials."})
        wrong = {"Authorization": f"token {token()}x"}
        assert (await ask(ada, "GET", "/hub/api/whoami", headers=wrong)) == (200, {"name": None})


async def test_only_an_admin_is_an_admin(api: Replica) -> None:
    async with api.browser() as http:
        for user_id, wanted in (("u-ada", 403), ("u-root", 200)):
            headers = {"Authorization": f"token {token(user_id)}"}
            assert (await ask(http, "POST", "/hub/api/admin", headers=headers))[0] == wanted


async def test_a_session_revoked_on_one_replica_is_void_on_the_others(
    api: Replica, database_url: str, nats_server: NatsServer
) -> None:
    """Sign-out, a revoked token and a deleted user reach another replica by its tail alone."""
    async with (
        replica(database_url, nats_server.url, "api-2") as other,
        other.browser(session()) as browser,
        other.browser() as curl,
    ):
        by_token = {"headers": {"Authorization": f"token {token()}"}}
        by_other = {"headers": {"Authorization": f"token {token(jti='t2')}"}}

        async def known(http: aiohttp.ClientSession, **kwargs: Any) -> bool:
            return bool((await ask(http, "GET", "/hub/api/whoami", **kwargs))[1]["name"] == "ada")

        assert await known(browser)
        assert await known(curl, **by_token)
        now = time.time()
        revoked = SessionRevoked(session_id="s1", user_id="u-ada", issued_at=now, expires_at=now + 600)
        await api.append(session_stream("s1"), revoked)
        await eventually(lambda: "s1" in other.tail.state.revoked_sessions, timeout_s=5)
        assert not await known(browser)
        assert await known(curl, **by_token), "the token is another credential"
        await api.append(token_stream("t1"), TokenRevoked(token_id="t1", user_id="u-ada", issued_at=now))
        await eventually(lambda: "t1" in other.tail.state.revoked_tokens, timeout_s=5)
        assert not await known(curl, **by_token)
        assert await known(curl, **by_other)
        await api.append(user_stream("ada"), UserDeleted(user_id="u-ada", name="ada"))
        await eventually(lambda: "u-ada" not in other.tail.state.users, timeout_s=5)
        assert not await known(curl, **by_other)


async def test_somebody_whom_this_replica_has_not_heard_of_yet_is_let_in(
    api: Replica, database_url: str, nats_server: NatsServer
) -> None:
    """Right after set-up the browser's next request may meet a replica that lags: it catches up before it refuses."""
    bus = Bus(nats_server.url, name="silent")
    log = EventLog(api.process.pool, producer="test", nudge=bus.nudge)
    await log.start()
    try:
        await log.append(user_stream("new"), [UserCreated(user_id="u-new", name="new")])
        async with api.browser(session("u-new", "s-new")) as http:
            assert await ask(http, "GET", "/hub/api/whoami") == (200, {"name": "new"})
    finally:
        await log.close()


# XSRF


async def test_a_cookie_alone_changes_nothing(api: Replica) -> None:
    async with api.browser(session()) as ada:
        status, answer = await ask(ada, "POST", "/hub/api/change")
        assert status == 403
        assert "_xsrf" in answer["message"]
        assert await ask(ada, "POST", "/hub/api/whoami") == (200, {"name": None}), "it counts as nobody"
        text = (await ask(ada, "GET", "/hub/form"))[1]
        for kwargs in (
            {"headers": {"X-XSRFToken": text}},
            {"params": {"_xsrf": text}},
            {"data": {"_xsrf": text}},
        ):
            assert await ask(ada, "POST", "/hub/api/change", **kwargs) == (200, {"name": "ada"})
        for kwargs in (
            {"headers": {"X-XSRFToken": text + "x"}},
            {"headers": {"X-XSRFToken": ""}},
            {"params": {"_xsrf": "x"}},
            {"data": {"_xsrf": text[::-1]}},
            {"json": {"_xsrf": text}},
        ):
            assert (await ask(ada, "POST", "/hub/api/change", **kwargs))[0] == 403, kwargs


async def test_a_token_of_another_session_does_not_count(api: Replica) -> None:
    async with api.browser(session("u-root", "evil")) as mallory, api.browser(session()) as ada:
        text = (await ask(mallory, "GET", "/hub/form"))[1]
        ada.cookie_jar.update_cookies({"_xsrf": text})
        assert (await ask(ada, "POST", "/hub/api/change", headers={"X-XSRFToken": text}))[0] == 403


async def test_forms_for_everybody_need_the_token_too(api: Replica) -> None:
    async with api.browser() as http:
        assert (await ask(http, "POST", "/hub/form", data={"name": "x"}))[0] == 403
        text = (await ask(http, "GET", "/hub/form"))[1]
        assert await ask(http, "POST", "/hub/form", data={"name": "x", "_xsrf": text}) == (200, "x")
        (cookie,) = [c for c in http.cookie_jar if c.key == "_xsrf"]
        assert cookie["path"] == "/hub/"
        assert cookie["samesite"] == "Lax"
        again = (await ask(http, "GET", "/hub/form"))[1]
        assert again == text, "a good token is kept, so that a second tab does not break the first"
    async with api.browser(session()) as ada:
        ada.cookie_jar.update_cookies({"_xsrf": text})
        assert (await ask(ada, "GET", "/hub/form"))[1] != text, "after sign-in there is a new one"


async def test_a_request_with_a_token_needs_no_xsrf(api: Replica) -> None:
    async with api.browser(session()) as ada:
        headers = {"Authorization": f"token {token()}"}
        assert await ask(ada, "POST", "/hub/api/change", headers=headers) == (200, {"name": "ada"})


# Errors and limits


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("log", 503, "event log"),
        ("conflict", 409, "same moment"),
        ("name", 400, "server name"),
        ("teapot", 418, "<b>short & stout</b>"),
        ("bug", 500, "should not have happened"),
    ],
)
async def test_errors_are_json_for_the_api_and_a_page_for_people(
    api: Replica, how: str, status: int, message: str
) -> None:
    async with api.browser() as http:
        got, answer = await ask(http, "GET", f"/hub/api/fail/{how}")
        assert got == status
        assert answer["status"] == status
        assert message in answer["message"]
        got, page = await ask(http, "GET", f"/hub/fail/{how}")
        assert got == status
        assert page.startswith("<!doctype html>")
        assert "<b>" not in page
        assert "secret detail" not in page + answer["message"]
        async with http.get(f"/hub/fail/{how}") as raw:
            assert raw.headers["X-Request-Id"] in await raw.text()
            assert ("Retry-After" in raw.headers) == (status == 503)


async def test_unknown_paths_methods_and_redirects(api: Replica) -> None:
    async with api.browser() as http:
        assert await ask(http, "GET", "/hub/api/nowhere") == (404, {"status": 404, "message": "Not Found"})
        assert (await ask(http, "GET", "/hub/nowhere"))[1].startswith("<!doctype html>")
        async with http.delete("/hub/api/whoami") as answer:
            assert answer.status == 405
            assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD", "POST"}
            assert (await answer.json())["status"] == 405
        assert (await ask(http, "GET", "/hub/fail/redirect"))[0] == 302


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[1", b"\xff\xfe", b'{"name": 1}', b'{"name": "a", "x": 1}', b"[]", b"null", b'"x"', b"[" * 100_000, b"{}"],
)
async def test_a_bad_body_is_400(api: Replica, raw: bytes) -> None:
    async with api.browser() as http:
        status, answer = await ask(http, "POST", "/hub/api/body", data=raw)
        assert status == 400
        assert answer["status"] == 400


async def test_an_empty_body_is_the_default_if_there_is_one(api: Replica) -> None:
    async with api.browser() as http:
        assert await ask(http, "POST", "/hub/api/body") == (200, {"name": "none", "count": 1})
        assert (await ask(http, "POST", "/hub/api/required"))[0] == 400
        assert await ask(http, "POST", "/hub/api/body", json={"name": "x"}) == (200, {"name": "x", "count": 1})


async def test_too_large_a_body_is_413(api: Replica) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    async with api.browser() as http:
        assert (await ask(http, "POST", "/hub/api/body", data=io.BytesIO(b" " * (1 << 20))))[0] == 200
        for data in (io.BytesIO(b" " * ((1 << 20) + 1)), chunks()):
            status, answer = await ask(http, "POST", "/hub/api/body", data=data)
            assert (status, answer["status"]) == (413, 413)
        status, page = await ask(http, "POST", "/hub/form", data=io.BytesIO(b"x" * ((1 << 20) + 1)))
        assert (status, page[:15]) == (413, "<!doctype html>")


async def raw_answer(url: str, request: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(65_536), 5)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /hub/api/whoami HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET /hub/api/whoami?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(1000)) + b"\r\n", 431),
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
async def test_a_head_that_is_too_large_or_malformed(api: Replica, head: bytes, status: int) -> None:
    answer = await raw_answer(api.url, head)
    assert answer.split()[1] == b"%d" % status, answer[:200]
    assert b"nosniff" in answer
    assert b"Traceback" not in answer
    assert b"aiohttp" not in answer


# Headers


async def test_every_answer_carries_the_security_headers(api: Replica) -> None:
    async with api.browser() as http:
        for path in ("/hub/api/whoami", "/hub/form", "/hub/nowhere", "/hub/api/fail/bug"):
            async with http.get(path) as answer:
                policy = answer.headers["Content-Security-Policy"]
                assert "script-src 'self';" in policy
                assert "'unsafe-inline'" not in policy
                assert "frame-ancestors 'none'" in policy
                assert answer.headers["X-Frame-Options"] == "DENY"
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Referrer-Policy"] == "same-origin"
                assert answer.headers["Cache-Control"] == "no-store"
                assert answer.headers["X-JupyterHub-Version"] == "6.1.1"
                assert answer.headers["traceresponse"].startswith("00-")


async def test_forwarded_headers_count_only_from_a_router(api: Replica) -> None:
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    genuine = {**forged, "X-Forwarded-For": "6.6.6.6, 10.1.2.3", "X-Orrery-Edge": api.process.secrets.edge_proof}
    async with api.browser() as http:
        address, https, origin = (await ask(http, "GET", "/hub/api/where", headers=forged))[1]
        assert (address, https) == ("127.0.0.1", False)
        assert "evil" not in origin
        wrong = {**genuine, "X-Orrery-Edge": "0" * 64}
        assert (await ask(http, "GET", "/hub/api/where", headers=wrong))[1][0] == "127.0.0.1"
        assert (await ask(http, "GET", "/hub/api/where", headers=genuine))[1] == [
            "10.1.2.3", True, "https://evil.example",
        ]  # fmt: skip
        async with http.get("/hub/form", headers=genuine) as answer:
            assert "secure" in answer.headers["Set-Cookie"].lower()


async def test_a_trace_goes_on_through_the_process(api: Replica) -> None:
    headers = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
    async with api.browser() as http, http.get("/hub/api/whoami", headers=headers) as answer:
        assert answer.headers["traceresponse"].split("-")[1] == "ab" * 16


async def test_metrics_name_routes_and_never_paths(api: Replica) -> None:
    async with api.browser() as http:
        await ask(http, "GET", "/hub/api/fail/fine")
        await ask(http, "GET", "/hub/some/secret/path")
        async with http.get(f"{api.process.ops_url}/metrics") as answer:
            text = await answer.text()
    assert 'route="/hub/api/fail/{how}"' in text
    assert 'route="unmatched"' in text
    assert "secret" not in text


# Reading one's own writes


async def test_a_read_waits_for_the_position_that_it_names(api: Replica) -> None:
    async with api.browser() as http:
        future = api.tail.position + 1
        reading = asyncio.create_task(ask(http, "GET", "/hub/api/position", headers={"Orrery-Position": str(future)}))
        await eventually(lambda: REGISTRY.get_sample_value("orrery_http_requests_in_progress") == 1)
        await api.append(user_stream("x"), UserCreated(user_id="u-x", name="x"))
        await api.tail.catch_up(5)
        assert (await reading)[1] >= future
        for nonsense in ("x", "-1", "9" * 30, "٣"):
            assert (await ask(http, "GET", "/hub/api/whoami", headers={"Orrery-Position": nonsense}))[0] == 200


async def test_a_browser_carries_its_position_along(api: Replica) -> None:
    async with api.browser() as http:
        async with http.get("/hub/wrote?p=7") as answer:
            assert answer.headers["Orrery-Position"] == "7"
        (cookie,) = [c for c in http.cookie_jar if c.key == "orrery-position"]
        assert (cookie.value, cookie["path"], bool(cookie["httponly"])) == ("7", "/hub/", True)
    async with api.browser() as curl:
        await ask(curl, "GET", "/hub/wrote?p=7", headers={"Authorization": f"token {token()}"})
        assert not list(curl.cookie_jar)


async def test_everything_is_below_the_base_url(database_url: str, nats_server: NatsServer) -> None:
    async with replica(database_url, nats_server.url, "api-b", base_url="/a/b") as one, one.browser() as http:
        assert (await ask(http, "GET", "/hub/form"))[0] == 404
        assert (await ask(http, "GET", "/a/b/hub/form"))[0] == 200
        (cookie,) = [c for c in http.cookie_jar if c.key == "_xsrf"]
        assert cookie["path"] == "/a/b/hub/"
        assert (await ask(http, "GET", "/a/b/hub/api/nowhere"))[1] == {"status": 404, "message": "Not Found"}
        assert 'href="/a/b/hub/home"' in (await ask(http, "GET", "/a/b/hub/nowhere"))[1]
