"""Auth as processes of its own, reached as a router reaches it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg
import pytest
from yarl import URL

from orrery_auth.setup import issue_setup_link
from orrery_events.bus import Bus
from orrery_events.catalog.user import UserDeleted, user_stream
from orrery_events.tail import Tail
from orrery_runtime.identity import CATEGORIES, IdentityState, Verifier
from tests.support.backbone import NatsServer
from tests.support.services import PASSWORD, Bench, ServiceProcess, bench_on
from tests.support.wait import eventually


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


@asynccontextmanager
async def browser(bench: Bench, service: ServiceProcess) -> AsyncIterator[aiohttp.ClientSession]:
    jar = aiohttp.CookieJar(unsafe=True)
    headers = {**bench.edge, "X-Forwarded-For": "192.0.2.7"}
    async with aiohttp.ClientSession(service.url, cookie_jar=jar, headers=headers) as http:
        yield http


async def xsrf_of(http: aiohttp.ClientSession, path: str = "/hub/login") -> str:
    async with http.get(path) as page:
        assert page.status == 200, await page.text()
        field = re.search(r'name="_xsrf" value="([^"]+)"', await page.text())
    assert field
    return field.group(1)


async def sign_in(http: aiohttp.ClientSession, name: str = "ada", password: str = PASSWORD) -> tuple[int, str]:
    """Status and Location."""
    form = {"username": name, "password": password, "_xsrf": await xsrf_of(http)}
    async with http.post("/hub/login", data=form, allow_redirects=False) as answer:
        return answer.status, answer.headers.get("Location", "")


async def token_of(http: aiohttp.ClientSession, **body: object) -> str:
    auth = {"username": "ada", "password": PASSWORD}
    async with http.post("/hub/api/users/ada/tokens", json={"auth": auth, **body}) as answer:
        assert answer.status == 201, await answer.text()
        return str((await answer.json())["token"])


async def test_the_form_signs_in_and_out(bench: Bench) -> None:
    await bench.admin()
    auth = await bench.start("auth")
    async with browser(bench, auth) as http:
        assert await sign_in(http) == (302, "/hub/home")
        (cookie,) = [c for c in http.cookie_jar if c.key == "orrery-session"]
        assert cookie["httponly"]
        assert cookie["samesite"] == "Lax"
        async with http.get("/hub/api/users/ada/tokens") as answer:
            assert answer.status == 200
        async with http.get("/hub/logout", headers={"Sec-Fetch-Site": "cross-site"}) as page:
            assert page.status == 200, "a link on another site does not sign anybody out"
        async with http.get("/hub/logout", allow_redirects=False) as answer:
            assert answer.headers["Location"] == "/hub/login"
        headers = {"Cookie": f"orrery-session={cookie.value}"}
        async with http.get("/hub/api/users/ada/tokens", headers=headers) as answer:
            assert answer.status == 403, "a session that was ended is no good even if somebody kept the cookie"


@pytest.mark.parametrize(
    ("target", "leads_to"),
    [
        ("/user/ada/lab?reset", "/user/ada/lab?reset"),
        ("https://evil.example/", "/hub/home"),
        ("//evil.example/", "/hub/home"),
        ("/\\evil.example/", "/hub/home"),
        ("/%09/evil.example", "/%09/evil.example"),
    ],
)
async def test_a_sign_in_leads_only_to_this_platform(bench: Bench, target: str, leads_to: str) -> None:
    await bench.admin()
    auth = await bench.start("auth")
    async with browser(bench, auth) as http:
        form = {"username": "ada", "password": PASSWORD, "_xsrf": await xsrf_of(http), "next": target}
        async with http.post("/hub/login", data=form, allow_redirects=False) as answer:
            assert answer.headers["Location"] == leads_to


async def test_a_form_without_its_token_does_nothing(bench: Bench) -> None:
    await bench.admin()
    auth = await bench.start("auth")
    async with browser(bench, auth) as http:
        genuine = await xsrf_of(http)
        for forged in ("", "x" + genuine[1:], genuine[:-2] + "AA"):
            form = {"username": "ada", "password": PASSWORD, "_xsrf": forged}
            async with http.post("/hub/login", data=form, allow_redirects=False) as answer:
                assert answer.status == 403
    assert not [r for r in await bench.log.read_all(after_position=0) if r.type == "auth.session_started"]


async def test_guessing_is_slowed_for_the_guesser_alone(bench: Bench) -> None:
    """Two replicas count together; the owner, elsewhere, is not locked out."""
    await bench.admin()
    first, second = await bench.start("auth", "auth-1"), await bench.start("auth", "auth-2")
    async with browser(bench, first) as one, browser(bench, second) as other:
        statuses = [(await sign_in((one, other)[number % 2], "ada", "guess"))[0] for number in range(8)]
        assert statuses[:5] == [403] * 5
        assert 429 in statuses[5:7], statuses
    jar = aiohttp.CookieJar(unsafe=True)
    headers = {**bench.edge, "X-Forwarded-For": "198.51.100.9"}
    async with aiohttp.ClientSession(first.url, cookie_jar=jar, headers=headers) as owner:
        assert (await sign_in(owner))[0] == 302


async def test_nobody_can_pretend_another_address(bench: Bench) -> None:
    """X-Forwarded-For counts only with a router's proof."""
    await bench.admin()
    auth = await bench.start("auth")
    async with aiohttp.ClientSession(auth.url) as http:
        statuses = []
        for number in range(7):
            body = {"auth": {"username": "ada", "password": "guess"}}
            headers = {"X-Forwarded-For": f"203.0.113.{number}"}
            async with http.post("/hub/api/users/ada/tokens", json=body, headers=headers) as answer:
                statuses.append(answer.status)
    assert statuses[-1] == 429, statuses


async def test_the_set_up_link_makes_one_admin_once(bench: Bench) -> None:
    token = await issue_setup_link(bench.database_url)
    assert token
    auth = await bench.start("auth")
    async with browser(bench, auth) as http:
        field = await xsrf_of(http, f"/hub/setup/{token}")
        form = {"username": "grace", "password": "short", "password_again": "short", "_xsrf": field}
        async with http.post(f"/hub/setup/{token}", data=form) as page:
            assert page.status == 400
            assert "at least 8 characters" in await page.text()
        form |= {"password": PASSWORD, "password_again": PASSWORD}
        posts = [http.post(f"/hub/setup/{token}", data=form, allow_redirects=False) for _ in range(3)]
        statuses = sorted(answer.status for answer in await asyncio.gather(*posts))
        assert statuses == [302, 404, 404]
    assert await issue_setup_link(bench.database_url) is None, "there is an admin now"


async def test_an_expired_set_up_link_says_what_to_do(bench: Bench) -> None:
    token = await issue_setup_link(bench.database_url)
    await bench.log.pool.execute("UPDATE auth.setup_links SET expires_at = now() - interval '1 second'")
    auth = await bench.start("auth")
    async with browser(bench, auth) as http, http.get(f"/hub/setup/{token}") as page:
        assert page.status == 404
        assert "orrery setup-link" in await page.text()


async def test_a_revocation_reaches_every_replica_within_a_second(bench: Bench, nats_server: NatsServer) -> None:
    """Another replica's verifier, fed by the bus, refuses the token; measured from the revoker's answer."""
    bench.nats_url, bench.relay_url = nats_server.url, nats_server.relay_url
    await bench.admin()
    await bench.start("relay")
    auth = await bench.start("auth")
    bus = Bus(nats_server.url, name="test")
    await bus.start()
    tail = Tail(bench.log, bus, IdentityState, categories=CATEGORIES, name="test")
    await tail.start()
    verifier = Verifier(lambda: tail.state)
    try:
        async with browser(bench, auth) as http:
            token = await token_of(http)
            await eventually(lambda: verifier.verify(token, time.time()) is not None)
            headers = {"Authorization": f"token {token}"}
            async with http.get("/hub/api/users/ada/tokens", headers=headers) as answer:
                (issued,) = (await answer.json())["api_tokens"]
            async with http.delete(f"/hub/api/users/ada/tokens/{issued['id']}", headers=headers) as answer:
                assert answer.status == 204
            await eventually(lambda: verifier.verify(token, time.time()) is None, timeout_s=5)
    finally:
        await tail.stop()
        await bus.stop()


async def test_a_new_password_ends_everything_that_the_old_one_opened(bench: Bench) -> None:
    await bench.admin()
    auth = await bench.start("auth")
    async with browser(bench, auth) as http:
        token = await token_of(http)
        headers = {"Authorization": f"token {token}"}
        change = {"password": "a new password", "current_password": "wrong"}
        async with http.post("/hub/api/users/ada/password", json=change, headers=headers) as answer:
            assert answer.status == 403
        change["current_password"] = PASSWORD
        async with http.post("/hub/api/users/ada/password", json=change, headers=headers) as answer:
            assert answer.status == 204, await answer.text()
        async with http.get("/hub/api/users/ada/tokens", headers=headers) as answer:
            assert answer.status == 403
        assert (await sign_in(http))[0] == 403
        assert (await sign_in(http, password="a new password"))[0] == 302


async def test_tokens_as_jupyterhub_has_them(bench: Bench) -> None:
    await bench.admin()
    auth = await bench.start("auth")
    async with browser(bench, auth) as http:
        narrow = await token_of(http, scopes=["read:users!user"], note="narrow", expires_in=60)
        wide = {"Authorization": f"Bearer {await token_of(http)}"}
        headers = {"Authorization": f"token {narrow}"}
        async with http.post("/hub/api/users/ada/tokens", json={}, headers=headers) as answer:
            assert answer.status in (403, 404), "a narrow token cannot mint a wide one"
        async with http.get("/hub/api/users/ada/tokens", headers=wide) as answer:
            tokens = (await answer.json())["api_tokens"]
        assert {t["note"] for t in tokens} == {"narrow", "Requested by ada"}
        assert all("token" not in t for t in tokens)
        assert [t["expires_at"] is None for t in tokens] == [False, True]
        for body, status in (({"expires_in": -1}, 400), ({"scopes": ["fly"]}, 400), ({"expires_in": "soon"}, 400)):
            async with http.post("/hub/api/users/ada/tokens", json=body, headers=wide) as answer:
                assert answer.status == status, body
        async with http.get("/hub/api/users/nobody/tokens", headers=wide) as answer:
            assert answer.status == 404
        async with http.get("/hub/api/users/ada/tokens") as answer:
            assert answer.status == 403, "no credentials"


async def test_a_deleted_person_cannot_come_back(bench: Bench) -> None:
    await bench.admin()
    auth = await bench.start("auth")
    async with browser(bench, auth) as http:
        token = await token_of(http)
        (created,) = [r.event() for r in await bench.log.read_all(after_position=0) if r.type == "user.created"]
        await bench.log.append(user_stream("ada"), [UserDeleted(user_id=created.user_id, name="ada")])  # type: ignore[attr-defined]

        async def refused() -> bool:
            headers = {"Authorization": f"token {token}"}
            async with http.get("/hub/api/users/ada/tokens", headers=headers) as answer:
                return answer.status == 403

        await eventually(refused)
        assert (await sign_in(http))[0] == 403
        await eventually(lambda: account_count(bench, 0), timeout_s=10)


async def account_count(bench: Bench, expected: int) -> bool:
    return bool(await bench.log.pool.fetchval("SELECT count(*) = $1 FROM auth.accounts", expected))


@pytest.mark.invariant(8)
async def test_no_secret_leaves_auths_own_tables(bench: Bench) -> None:
    await bench.admin()
    auth = await bench.start("auth", ORRERY_LOG_LEVEL="debug")
    async with browser(bench, auth) as http:
        await sign_in(http, password="a wrong password that somebody typed")
        await sign_in(http)
        session = http.cookie_jar.filter_cookies(URL(auth.url))["orrery-session"].value
        token = await token_of(http)
    account = await bench.log.pool.fetchval("SELECT password_hash FROM auth.accounts")
    secrets = [PASSWORD, session, token, token.rpartition(".")[2], account, "a wrong password that somebody typed"]
    connection = await asyncpg.connect(bench.database_url)
    try:
        rows = await connection.fetch("SELECT convert_from(data, 'utf8') || meta::text || stream_id FROM es.events")
    finally:
        await connection.close()
    log = "\n".join([row[0] for row in rows])
    for secret in secrets:
        assert secret not in log, "in an event"
        assert secret not in auth.log, "in a log line"
