"""Who passes the router, what of them goes on, and what comes back: real routers, real Postgres, real upstreams."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from orrery_api import http as api_http
from orrery_api import web as api_web
from orrery_auth import http as auth_http
from orrery_events.catalog.auth import (
    SessionRevoked,
    TokenRevoked,
    UserEpochBumped,
    epoch_stream,
    session_stream,
    token_stream,
)
from orrery_events.catalog.user import UserDeleted, user_stream
from orrery_events.ids import new_id
from orrery_events.principal import SESSION_COOKIE
from orrery_runtime.identity import Claims, sign
from orrery_runtime.jws import SigningKey
from orrery_runtime.secrets import EDGE_HEADER
from tests.support.backbone import PostgresServer
from tests.support.routers import Bench, serving
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-access"),
    pytest.mark.timeout(90),
]

Seen = list[web.Request]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Bench]:
    """One router, ada's and bob's servers, an auth and an api that write down what reaches them."""
    root: Path = tmp_path_factory.mktemp("routers")
    url = await postgres.create_database(migrated=True)
    async with (
        Bench.open(root, url) as bench,
        serving(recorder(REACHED_SERVER)) as server,
        serving(recorder(REACHED_CONTROL)) as control,
    ):
        await bench.route(server)
        for service in ("auth", "api"):
            await bench.instance(service, control)
        await bench.router()
        yield bench
    await postgres.drop_database(url)


REACHED_SERVER: Seen = []
REACHED_CONTROL: Seen = []


def recorder(seen: Seen) -> web.Application:
    async def record(request: web.Request) -> web.Response:
        seen.append(request)
        response = web.json_response({"path": request.raw_path, "headers": [list(h) for h in request.headers.items()]})
        for name in (SESSION_COOKIE, "orrery-position", "_xsrf", "own"):
            response.headers.add("Set-Cookie", f"{name}=theirs; Path=/")
        response.headers.add("Set-Cookie", "_xsrf=own; Path=/user/ada/")
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", record)
    return app


def routes() -> set[tuple[str, str]]:
    """Every method and path that auth and api answer."""
    defined = [*api_http.routes(), *api_web.routes(), *api_web.pages.LAST, *auth_http.routes()]
    found: set[tuple[str, str]] = set()
    for route in defined:
        assert isinstance(route, web.RouteDef)
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        found |= {(m, path) for m in (("GET", "POST", "PUT", "DELETE") if route.method == "*" else (route.method,))}
    return found


PUBLIC = {
    ("GET", "/favicon.ico"),
    ("GET", "/hub/api"),
    ("GET", "/hub/api/"),
    ("GET", "/hub/api/health"),
    ("GET", "/hub/health"),
    ("GET", "/hub/login"),
    ("GET", "/hub/logo"),
    ("GET", "/hub/logout"),
    ("GET", "/hub/setup/x"),
    ("GET", "/hub/static/x"),
    ("GET", "/setup/x"),
    ("POST", "/hub/api/users/x/tokens"),
    ("POST", "/hub/login"),
    ("POST", "/hub/setup/x"),
}
"""All that anybody may reach, as ARCHITECTURE.md says. Whoever adds to it thinks twice."""


@pytest.mark.invariant(9)
async def test_the_public_paths_are_these_and_no_others(bench: Bench) -> None:
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")
    paths = sorted({path for _, path in routes()} | {"/hub", "/setup", "/hub/unheard-of", "/hub/api/unheard-of"})
    assert len(paths) > 30
    reached = set()
    for path, method in product(paths, methods):
        REACHED_CONTROL.clear()
        status, headers, _ = await bench.fetch(path, method=method)
        if REACHED_CONTROL:
            reached.add((method, path))
        elif path != "/":
            signs_in = status == 302 and headers["Location"] == f"/hub/login?next={quote(path, safe='')}"
            assert signs_in or status == 403, (method, path, status)
    assert {(m, p) for m, p in reached if m != "HEAD"} == PUBLIC
    assert {("GET", p) for m, p in reached if m == "HEAD"} <= PUBLIC


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    "path",
    [
        "/hub/login/../home", "/hub/login/%2e%2e/home", "/hub/static/../home", "/hub/static/%2e%2e%2fhome",
        "/hub/static/..%5chome", "/hub//login", "//hub/login", "/hub/static/x%2f..%2f..%2fhome", "/hub/api/./user",
        "/hub/%6cogin/../api/users", "/./hub/home", "/hub/static/%252e%252e/home", "/%68ub/home", "/hub/login%00",
        "/hub/static/x\\..\\..\\home", "/hub/home;/hub/login", "/HUB/home", "/hub/login/", "/hub%2fhome",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_path_gets_round_it(bench: Bench, path: str) -> None:
    REACHED_CONTROL.clear()
    answer = await bench.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"400", b"302", b"403"), answer
    assert not REACHED_CONTROL


@pytest.mark.invariant(9)
async def test_nobody_else_reaches_a_server(bench: Bench) -> None:
    bob = await bench.person("bob2")
    now = time.time()
    stranger = SigningKey.generate(bench.key.kid)
    claims = Claims(sub=bench.ada.user_id, jti=new_id(), iat=now, exp=now + 60)
    narrow = bench.ada.make_token(bench, scopes=("read:users",))
    stale = sign(Claims(sub=bench.ada.user_id, jti=new_id(), iat=now - 60, exp=now - 1), bench.key, kind="session")
    attempts: dict[str, dict[str, str]] = {
        "nothing": {},
        "another person's session": bob.cookie,
        "another person's token": bob.authorization,
        "another key": {"Cookie": f"{SESSION_COOKIE}={sign(claims, stranger, kind='session')}"},
        "a token as a session": {"Cookie": f"{SESSION_COOKIE}={bench.ada.token}"},
        "a session as a token": {"Authorization": f"token {bench.ada.session}"},
        "an expired session": {"Cookie": f"{SESSION_COOKIE}={stale}"},
        "a token for something else": {"Authorization": f"Bearer {narrow}"},
        "the server's own secret": {"Authorization": f"token {bench.secrets.server_secret('x', 1)}"},
        "the routers' own proof": {EDGE_HEADER: bench.secrets.edge_proof},
        "garbage": {"Cookie": f"{SESSION_COOKIE}=.....", "Authorization": "token orr_x.y.z"},
        "much of it": {"Cookie": f"{SESSION_COOKIE}={'a' * 5000}"},
        "not ASCII": {"Cookie": f"{SESSION_COOKIE}=\u00e9"},
    }
    for what, headers in attempts.items():
        for path, method in product(("/user/ada/", "/user/ada/lab?x", "/user/ada/api/kernels"), ("GET", "POST")):
            REACHED_SERVER.clear()
            status, answered, _ = await bench.fetch(path, method=method, headers=headers)
            assert status in (302, 403), what
            assert status == 403 or answered["Location"].startswith("/hub/login?next="), what
            assert not REACHED_SERVER, what


async def test_whoever_may_does(bench: Bench) -> None:
    admin = await bench.person("chief", admin=True)
    wide = {"Authorization": f"Bearer {bench.ada.make_token(bench, scopes=('access:servers!user=ada',))}"}
    for headers in (bench.ada.cookie, bench.ada.authorization, admin.cookie, admin.authorization, wide):
        assert (await bench.fetch("/user/ada/", headers=headers))[0] == 200


@pytest.mark.parametrize("what", ["session", "token", "everything", "deleted"])
async def test_what_is_revoked_stops_at_once(bench: Bench, what: str) -> None:
    """By event, without NATS: a router that hears nothing asks Postgres."""
    person = await bench.person(f"leaver-{what}")
    await bench.route("http://127.0.0.1:9", owner=person)
    token_id, now = token_id_of(person.token), time.time()
    headers = person.authorization if what == "token" else person.cookie
    assert (await bench.fetch(f"/user/{person.name}/", headers=headers))[0] == 503, "reaches a server that is gone"
    stream, event = {
        "session": (
            session_stream(person.session_id),
            SessionRevoked(session_id=person.session_id, user_id=person.user_id, issued_at=now, expires_at=now + 60),
        ),
        "token": (
            token_stream(token_id),
            TokenRevoked(token_id=token_id, user_id=person.user_id, issued_at=now, expires_at=None),
        ),
        "everything": (epoch_stream(person.user_id), UserEpochBumped(user_id=person.user_id, epoch=1)),
        "deleted": (user_stream(person.name), UserDeleted(user_id=person.user_id, name=person.name, created_at=now)),
    }[what]
    await bench.log.append(stream, [event])

    async def refused() -> bool:
        return (await bench.fetch(f"/user/{person.name}/", headers=headers))[0] in (302, 403)

    await eventually(refused, timeout_s=5)


def token_id_of(token: str) -> str:
    payload = token.removeprefix("orr_").split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["jti"])


@pytest.mark.invariant(10)
async def test_a_server_never_gets_its_visitors_credentials(bench: Bench) -> None:
    token, session = bench.ada.token, bench.ada.session
    spellings: list[tuple[str, dict[str, str]]] = [
        ("/user/ada/", {"Cookie": f"a=1; {SESSION_COOKIE}={session}; b=2"}),
        ("/user/ada/", {"Cookie": f"{SESSION_COOKIE}={session}; orrery-position=77"}),
        ("/user/ada/", {"Authorization": f"token {token}"}),
        ("/user/ada/", {"Authorization": f"Bearer {token}", "Cookie": "a=1"}),
        ("/user/ada/", {"authorization": f"BEARER {token}"}),
        (f"/user/ada/?token={token}&x=1", {"Cookie": f"{SESSION_COOKIE}={session}"}),
        (f"/user/ada/?x=1&to%6ben=orr%5F{token[4:]}", {"Cookie": f"{SESSION_COOKIE}={session}"}),
        ("/user/ada/", {"Referer": f"http://x/?token={token}", "Cookie": f"{SESSION_COOKIE}={session}"}),
        ("/user/ada/", {"X-XSRFToken": token, "Cookie": f"{SESSION_COOKIE}={session}"}),
        ("/user/ada/", {"X-Orrery-Anything": session, "Cookie": f"{SESSION_COOKIE}={session}"}),
    ]
    for path, headers in spellings:
        status, _, body = await bench.fetch(path, headers=headers)
        assert status == 200, (path, headers, body)
        text = body.decode()
        for secret in (token, token[4:], session, bench.secrets.edge_proof, "orrery-position"):
            assert secret not in text, (path, headers)
        assert json.loads(text)["path"].partition("?")[2] in ("", "x=1")
    got = json.loads((await bench.fetch("/user/ada/", headers=spellings[0][1]))[2])
    assert ["Cookie", "a=1; b=2"] in got["headers"], "what is the server's own stays"


async def test_a_server_sets_no_cookies_of_the_platform(bench: Bench) -> None:
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
        http.get(bench.url + "/user/ada/", headers=bench.ada.cookie) as answer,
    ):
        assert answer.headers.getall("Set-Cookie") == ["own=theirs; Path=/", "_xsrf=own; Path=/user/ada/"]
        async with http.get(bench.url + "/hub/home", headers=bench.ada.cookie) as control:
            assert len(control.headers.getall("Set-Cookie")) == 5


async def test_control_services_get_credentials_and_the_routers_proof(bench: Bench) -> None:
    REACHED_CONTROL.clear()
    forged = {EDGE_HEADER: "guess", "X_Orrery_Edge": "guess", "X-Forwarded-For": "6.6.6.6"}
    assert (await bench.fetch("/hub/home", headers={**bench.ada.cookie, **forged}))[0] == 200
    (got,) = REACHED_CONTROL
    assert got.headers["Cookie"] == bench.ada.cookie["Cookie"]
    assert got.headers.getall(EDGE_HEADER) == [bench.secrets.edge_proof]
    assert got.headers.getall("X-Forwarded-For") == ["127.0.0.1"]
    assert "guess" not in json.dumps([list(h) for h in got.headers.items()])


async def test_after_a_refused_websocket_the_connection_ends_and_the_client_is_told(bench: Bench) -> None:
    """Else the next request on it would be taken for what follows the switch, and never be answered."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    headers = {**bench.ada.cookie, **upgrade, "Sec-WebSocket-Version": "13", "Origin": "http://evil.example"}
    async with aiohttp.ClientSession(bench.url) as http:
        async with http.get("/user/ada/ws", headers=headers) as refused:
            assert (refused.status, refused.headers["Connection"]) == (403, "close")
        async with asyncio.timeout(10), http.get("/user/ada/api", headers=bench.ada.cookie) as next_one:
            assert next_one.status == 200


@pytest.mark.parametrize(
    ("origin", "passes"),
    [("", True), ("http://{host}", True), ("http://evil.example", False), ("https://{host}", False), ("null", False)],
)
async def test_pages_of_other_sites_act_in_nobodys_name(bench: Bench, origin: str, passes: bool) -> None:
    headers = {**bench.ada.cookie, **({"Origin": origin.format(host=bench.host)} if origin else {})}
    status, _, _ = await bench.fetch("/user/ada/api/contents", method="POST", headers=headers)
    assert status == (200 if passes else 403)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    status, _, _ = await bench.fetch("/user/ada/ws", headers={**headers, **upgrade, "Sec-WebSocket-Version": "13"})
    assert status == (200 if passes else 403), "a WebSocket reads what is answered, too"
    status, _, _ = await bench.fetch(
        "/user/ada/", headers={**headers, **bench.ada.authorization, "Cookie": ""}, method="POST"
    )
    assert status == 200, "a token is nothing that a browser adds by itself"


async def test_a_server_that_does_not_run_and_one_that_is_not(bench: Bench) -> None:
    person = await bench.person("idle")
    await bench.route("http://127.0.0.1:9", owner=person, server="app")
    await bench.unroute(owner=person, server="app")
    page = {**person.cookie, "Accept": "text/html"}
    for path, start in (("/user/idle/", "/hub/spawn/idle"), ("/user/idle/app/x", "/hub/spawn/idle/app")):
        status, headers, body = await bench.fetch(path, headers=page)
        assert status == 424
        assert f'href="{start}"'.encode() in body, path
        assert headers["Content-Type"].startswith("text/html")
    status, _, body = await bench.fetch("/user/idle/api/status", headers=person.authorization)
    message = json.loads(body)["message"]
    assert (status, message) == (424, "JupyterHub server no longer running at /user/idle/")
    status, _, theirs = await bench.fetch("/user/idle/", headers=(await bench.person("nosy")).cookie)
    missing = await bench.fetch("/user/nobody/", headers=(await bench.person("nosier")).cookie)
    assert (status, missing[0]) == (403, 403), "whether a person exists is not for everybody to know"
    assert re.sub(rb"<code>\w+", b"", theirs) == re.sub(rb"<code>\w+", b"", missing[2])
    admin = await bench.person("boss", admin=True)
    assert (await bench.fetch("/user/nobody/", headers=admin.cookie))[0] == 404


async def test_a_named_server_is_never_answered_by_the_default_one(bench: Bench) -> None:
    person = await bench.person("two")
    async with serving(recorder([])) as url:
        await bench.route(url, owner=person)
        await bench.route(url, owner=person, server="app")
        await bench.unroute(owner=person, server="app")
        await eventually(lambda: told(bench, person.cookie, "/user/two/app/", 424))
        assert (await bench.fetch("/user/two/apple/", headers=person.cookie))[0] == 200
        assert (await bench.fetch("/user/two/", headers=person.cookie))[0] == 200


async def told(bench: Bench, headers: dict[str, str], path: str, status: int) -> bool:
    return (await bench.fetch(path, headers=headers))[0] == status


async def test_instances_share_the_work_and_a_dead_one_is_skipped(bench: Bench) -> None:
    seen: dict[str, Seen] = {"a": [], "b": []}
    async with serving(recorder(seen["a"])) as a, serving(recorder(seen["b"])) as b:
        await bench.instance("api", a, slot="api-1")
        await bench.instance("api", b, slot="api-2")
        await eventually(lambda: spread(bench, seen))
        await bench.instance("api", "http://127.0.0.1:9", slot="api-2")
        statuses = [(await bench.fetch("/hub/home", headers=bench.ada.cookie))[0] for _ in range(10)]
        assert statuses == [200] * 10, "the one that is gone costs nobody an answer"
        await bench.instance("api", a, slot="api-1", draining=True)
        await bench.instance("api", b, slot="api-2")
        await eventually(lambda: only(bench, seen, "b"))
    status, headers, body = await bench.fetch("/hub/home", headers={**bench.ada.cookie, "Accept": "text/html"})
    assert (status, headers["Retry-After"]) == (503, "2")
    assert b"Try again" in body


async def spread(bench: Bench, seen: dict[str, Seen]) -> bool:
    await asyncio.gather(*(bench.fetch("/hub/home", headers=bench.ada.cookie) for _ in range(4)))
    return all(seen.values())


async def only(bench: Bench, seen: dict[str, Seen], which: str) -> bool:
    for requests in seen.values():
        requests.clear()
    for _ in range(4):
        await bench.fetch("/hub/home", headers=bench.ada.cookie)
    return [name for name, requests in seen.items() if requests] == [which]
