"""Encryption as JupyterHub's internal_ssl uses it: the public port, the REST API with clients' certificates, targets
that ask for the proxy's own; redirects to HTTPS; and targets on unix sockets."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.support.certificates import Authority
from tests.support.platform import free_port
from tests.support.proxies import Proxy, fetch

from .conftest import Upstream, described

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("proxy-contract")]

REDIRECT_PORT = free_port()


@cache
def authority() -> Authority:
    """Signs for everybody here."""
    folder = tempfile.mkdtemp(prefix="orrery-certificates-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    found = Authority(Path(folder))
    for name in ("public", "api", "hub", "proxy", "target"):
        found.issue(name, "127.0.0.1", "localhost")
    return found


def file(name: str) -> str:
    return str(authority().root / name)


def FLAGS() -> list[str]:  # noqa: N802 (what other modules have as a constant)
    flags = ["--ssl-key", file("public.key"), "--ssl-cert", file("public.pem")]
    flags += [
        "--api-ssl-key",
        file("api.key"),
        "--api-ssl-cert",
        file("api.pem"),
        "--api-ssl-ca",
        str(authority().file),
    ]
    flags += ["--api-ssl-request-cert", "--api-ssl-reject-unauthorized"]
    flags += ["--client-ssl-key", file("proxy.key"), "--client-ssl-cert", file("proxy.pem")]
    flags += ["--client-ssl-ca", str(authority().file), "--client-ssl-request-cert", "--client-ssl-reject-unauthorized"]
    return [*flags, "--redirect-port", str(REDIRECT_PORT)]


def TLS() -> tuple[ssl.SSLContext, ssl.SSLContext]:  # noqa: N802
    hub = (Path(file("hub.pem")), Path(file("hub.key")))
    return authority().trusting(), authority().trusting(hub)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def empty(proxy: Proxy) -> None:
    await proxy.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def targets() -> AsyncIterator[dict[str, str]]:
    """A server by HTTPS that asks for certificates, and one on a unix socket."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(await described(request))

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    pair = (Path(file("target.pem")), Path(file("target.key")))
    https = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority().serving(pair, ask_clients=True))
    await https.start()
    port = runner.addresses[0][1]
    path = file("s")
    await web.UnixSite(runner, path).start()
    try:
        yield {"https": f"https://127.0.0.1:{port}", "unix": f"http+unix://{path.replace('/', '%2F')}"}
    finally:
        await runner.cleanup()


async def test_the_public_port_speaks_tls(proxy: Proxy, upstream: Upstream) -> None:
    await proxy.add("/", upstream.url)
    headers = (await proxy.get("/x", headers={"Host": "hub.example.org"})).json()["headers"]
    assert (headers["x-forwarded-proto"], headers["x-forwarded-port"]) == ("https", "443")
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{proxy.url}/ws", ssl=proxy.tls or True) as ws,
    ):
        assert (await ws.receive_json(timeout=5))["headers"]["x-forwarded-proto"] == "wss"
        await ws.send_str("x")
        assert await ws.receive_str(timeout=5) == "x"


async def test_the_api_wants_a_certificate(proxy: Proxy) -> None:
    with pytest.raises((aiohttp.ClientError, ConnectionError, ssl.SSLError)):
        await fetch("GET", f"{proxy.api_url}/api/routes", tls=authority().trusting())
    assert (await proxy.api("GET", "/api/routes", token="", headers={})).status == 403, "the token is asked for, too"
    assert await proxy.routes() == {}


async def test_a_target_that_asks_for_the_proxy_s_certificate(proxy: Proxy, targets: dict[str, str]) -> None:
    await proxy.add("/", f"{targets['https']}/pre")
    assert (await proxy.get("/x?y=1")).json()["path"] == "/pre/x?y=1"


async def test_a_target_with_a_certificate_of_somebody_else(proxy: Proxy, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    context = stranger.serving(stranger.issue("target", "127.0.0.1"))
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        await proxy.add("/", f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert (await proxy.get("/x")).status == 503


async def test_a_target_on_a_unix_socket(proxy: Proxy, targets: dict[str, str]) -> None:
    await proxy.add("/", f"{targets['unix']}/pre")
    assert (await proxy.get("/x?y=1")).json()["path"] == "/pre/x?y=1"


async def test_plain_requests_are_redirected(proxy: Proxy) -> None:
    for host in ("hub.example.org", "hub.example.org:80"):
        answered = await fetch("GET", f"http://127.0.0.1:{REDIRECT_PORT}/a?b=c", headers={"Host": host})
        assert (answered.status, answered.headers["Location"]) == (301, f"https://hub.example.org:{proxy.port}/a?b=c")
