"""What one route may have that others have not: paths, hosts, who the visitor is, timeouts, redirects put right."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from orrery_events.catalog.route import RouteRemoved, RouteSet, route_id_of
from orrery_events.catalog.server import server_stream
from orrery_events.ids import derived_id
from tests.support.backbone import PostgresServer
from tests.support.routers import Bench, Person, answering, head_of, serving
from tests.support.wait import eventually

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("router-options"),
    pytest.mark.timeout(90),
]


async def echo(request: web.Request) -> web.Response:
    """Says what arrived; redirects where it is told to."""
    if "to" in request.query:
        return web.Response(status=302, headers={"Location": request.query["to"], "X-Location": request.query["to"]})
    return web.json_response({"path": request.raw_path, "headers": [list(h) for h in request.headers.items()]})


def application() -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", echo)
    return app


class Edge:
    """A router below a base path, and one server behind it."""

    def __init__(self, bench: Bench, target: str, bob: Person) -> None:
        self.bench, self.target, self.bob = bench, target, bob

    async def set(self, prefix: str, **fields: Any) -> None:
        values = {
            "route_id": route_id_of(prefix, fields.get("host", "")), "prefix": prefix, "target": self.target,
            "policy": "authenticated", **fields,
        }  # fmt: skip
        await self.bench.log.append(server_stream(str(values["route_id"])), [RouteSet(**values)])

    async def ask(self, path: str, *, who: Person | None = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers, and what the server saw (if it said so)."""
        who = who or self.bench.ada
        status, answered, body = await self.bench.fetch(path, headers={**who.cookie, **headers})
        return status, dict(answered), json.loads(body) if body.startswith(b'{"path"') else body

    async def seen(self, path: str, *, who: Person | None = None, **headers: str) -> tuple[str, dict[str, str]]:
        """Path and headers that the server got."""
        status, _, body = await self.ask(path, who=who, **headers)
        assert status == 200, body
        return body["path"], {name.title(): value for name, value in body["headers"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> AsyncIterator[Edge]:
    url = await postgres.create_database(migrated=True)
    templates = tmp_path_factory.mktemp("templates")
    (templates / "404.html").write_text("<p>Lost at {{ base_url }}? {{ message }}</p>")
    async with Bench.open(tmp_path_factory.mktemp("options"), url) as bench, serving(application()) as target:
        await bench.router(
            ORRERY_BASE_URL="/base/",
            ORRERY_UPSTREAM_CONNECT_TIMEOUT_S="30",
            ORRERY_TEMPLATES_DIR=str(templates),
        )
        yield Edge(bench, target, await bench.person("bob", admin=True))
    await postgres.drop_database(url)


@pytest.mark.parametrize(
    ("path", "strip", "asked", "forwarded"),
    [
        ("", False, "x/y?a=1", "{prefix}x/y?a=1"),
        ("", True, "x/y?a=1", "/x/y?a=1"),
        ("", True, "", "/"),
        ("/pre", False, "x/y?a=1", "/pre{prefix}x/y?a=1"),
        ("/pre/fix/", True, "x/y?a=1", "/pre/fix/x/y?a=1"),
        ("/pre%20fix", True, "x%2Fy", "/pre%20fix/x%2Fy"),
        ("/pre", True, "", "/pre/"),
    ],
)
async def test_paths(edge: Edge, path: str, strip: bool, asked: str, forwarded: str) -> None:
    prefix = f"/{derived_id(path, str(strip), asked)}/"
    await edge.set(prefix, target=edge.target + path, strip_prefix=strip)
    forged: dict[str, Any] = {"X-Forwarded-Prefix": "/forged", "X_Forwarded_Prefix": "/too"}
    _, _, body = await edge.ask(f"/base{prefix}{asked}", **forged)
    assert body["path"] == forwarded.format(prefix=f"/base{prefix}")
    told = [value for name, value in body["headers"] if name.lower().replace("_", "-") == "x-forwarded-prefix"]
    assert told == ([f"/base{prefix}"] if strip else [])


async def test_a_server_learns_who_its_visitor_is_if_its_route_says_so(edge: Edge) -> None:
    forged: dict[str, Any] = {
        "X-Orrery-User": "root", "X_Orrery_User": "root", "x-orrery-admin": "true", "X-Orrery-User-Id": "1",
        "X-Orrery-Groups": "wheel",
    }  # fmt: skip
    await edge.set("/plain/")
    _, headers = await edge.seen("/base/plain/x", **forged)
    assert not [name for name in headers if "Orrery" in name], "what is not asked for is not told"
    await edge.set("/told/", identity_headers=True)
    for who, admin in ((edge.bench.ada, "false"), (edge.bob, "true")):
        for _ in range(2):  # Known heads go another way than new ones.
            _, headers = await edge.seen("/base/told/x", who=who, **forged)
            ours = {name: value for name, value in headers.items() if "Orrery" in name}
            assert ours == {"X-Orrery-User": who.name, "X-Orrery-User-Id": who.user_id, "X-Orrery-Admin": admin}


async def test_strangers_on_a_public_route_are_nobody(edge: Edge) -> None:
    await edge.set("/open/", identity_headers=True, policy="public")
    _, headers = await edge.seen("/base/open/x")
    assert headers["X-Orrery-User"] == "ada"
    status, _, body = await edge.bench.fetch("/base/open/x", headers={"X-Orrery-User": "root"})
    assert status == 200
    assert "orrery" not in json.dumps(json.loads(body)["headers"]).lower()
    status, _, _ = await edge.bench.fetch("/base/open/x", headers={"Cookie": "orrery-session=nonsense"})
    assert status == 200


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("/x?y=1", "/base/l/x?y=1"),
        ("/", "/base/l/"),
        ("/base/l/x", "/base/l/x"),
        ("{target}/x", "/base/l/x"),
        ("{target}", "/base/l/"),
        ("{target}?y", "/base/l/?y"),
        ("http://{host}/x", "/base/l/x"),
        ("https://{host}/base/l/x", "/base/l/x"),
        ("//{host}/x", "/base/l/x"),
        ("HTTP://{host}/x", "/base/l/x"),
        ("{target}//evil.example/x", "/base/l/evil.example/x"),
        ("x/y", "x/y"),
        ("../x", "../x"),
        ("?page=2", "?page=2"),
        ("https://elsewhere.example/x", "https://elsewhere.example/x"),
        ("//elsewhere.example/x", "//elsewhere.example/x"),
        ("{target}.evil.example/x", "{target}.evil.example/x"),
        ("mailto:ada@example.org", "mailto:ada@example.org"),
    ],
)
async def test_redirects_are_put_right(edge: Edge, said: str, seen: str) -> None:
    await edge.set("/l/", strip_prefix=True, rewrite_location=True)
    known = {"target": edge.target, "host": edge.bench.host}
    said, seen = said.format(**known), seen.format(**known)
    status, headers, _ = await edge.ask(f"/base/l/?to={said.replace('?', '%3F')}")
    assert (status, headers["Location"], headers["X-Location"]) == (302, seen, said)


async def test_redirects_of_a_server_below_a_path(edge: Edge) -> None:
    await edge.set("/p/", target=edge.target + "/app", strip_prefix=True, rewrite_location=True)
    for said, seen in (
        ("/app/x", "/base/p/x"),
        ("/app", "/base/p/"),
        ("/app?y", "/base/p/?y"),
        (edge.target + "/app/x", "/base/p/x"),
        ("/apple", "/apple"),
    ):
        _, headers, _ = await edge.ask(f"/base/p/?to={said.replace('?', '%3F')}")
        assert headers["Location"] == seen, said
    await edge.set("/q/", target=edge.target + "/app", rewrite_location=True)
    _, headers, _ = await edge.ask("/base/q/?to=/app/base/q/x")
    assert headers["Location"] == "/base/q/x"


async def test_redirects_stay_as_they_are_otherwise(edge: Edge) -> None:
    await edge.set("/n/", strip_prefix=True)
    for said in ("/x", edge.target + "/x"):
        assert (await edge.ask(f"/base/n/?to={said}"))[1]["Location"] == said


async def test_a_route_has_its_own_patience(edge: Edge) -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        await asyncio.Event().wait()

    async with answering(silent) as url:
        await edge.set("/slow/", target=url, response_timeout_s=0.5)
        began = time.monotonic()
        status, _, _ = await edge.ask("/base/slow/x")
        assert status == 503
        assert time.monotonic() - began < 15, "and not an hour, as the setting says"
    # Nobody answers there (RFC 5737): the connection itself takes too long, or there is no way to begin with.
    await edge.set("/far/", target="http://192.0.2.1:9", connect_timeout_s=0.3)
    began = time.monotonic()
    assert (await edge.ask("/base/far/x"))[0] == 503
    assert time.monotonic() - began < 15


async def test_hosts_and_paths_in_one_table(edge: Edge) -> None:
    """configurable-http-proxy knows one or the other."""
    async with serving(application()) as a, serving(application()) as b:
        await edge.set("/site/", target=a + "/by-path")
        await edge.set("/site/", target=b + "/by-host", host="a.example.org")
        await edge.set("/", target=b + "/all-of-a", host="a.example.org")
        await edge.set("/site/deep/", target=a + "/deeper")
        await edge.set("/last/")
        await edge.seen("/base/last/x")  # A miss catches up with the log, and with all that came before.
        for host, path, found in (
            ("a.example.org", "site/x", "by-host"),
            ("A.Example.ORG:8000", "site/x", "by-host"),
            ("b.example.org", "site/x", "by-path"),
            ("a.example.org", "elsewhere/x", "all-of-a"),
            ("a.example.org", "site/deep/x", "by-host"),
            ("b.example.org", "site/deep/x", "deeper"),
        ):
            got, _ = await edge.seen(f"/base/{path}", Host=host)
            assert got == f"/{found}/base/{path}", (host, path)
        assert (await edge.ask("/base/elsewhere/x", Host="b.example.org"))[0] == 404
        host_route = route_id_of("/site/", "a.example.org")
        removed = RouteRemoved(route_id=host_route, prefix="/site/", host="a.example.org")
        await edge.bench.log.append(server_stream(host_route), [removed])

        async def falls_back() -> bool:
            return (await edge.seen("/base/site/x", Host="a.example.org"))[0] == "/all-of-a/base/site/x"

        await eventually(falls_back)


async def test_a_target_that_cannot_be_understood_changes_nothing(edge: Edge) -> None:
    await edge.set("/kept/")
    await edge.set("/kept/", target="gopher://x")
    await edge.set("/later/")
    assert (await edge.seen("/base/later/x"))[0] == "/base/later/x"
    assert (await edge.seen("/base/kept/x"))[0] == "/base/kept/x"
    line = next(line for line in edge.bench.routers[0].lines() if line["event"] == "route_refused")
    assert "http+unix://" in line["reason"], "what would be right"


async def test_an_error_page_of_the_admins_own(edge: Edge) -> None:
    status, headers, body = await edge.ask("/base/nowhere/", Accept="text/html")
    assert (status, body) == (404, b"<p>Lost at /base/? Nothing is served at this address.</p>")
    assert "'unsafe-inline'" in headers["Content-Security-Policy"]
    await edge.set("/gone/", target="http://127.0.0.1:9")
    status, _, body = await edge.ask("/base/gone/x", Accept="text/html")
    assert status == 503
    assert body.startswith(b"<!doctype html>"), "for others the built-in one"
