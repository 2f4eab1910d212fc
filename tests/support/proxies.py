"""The two implementations of one contract: `orrery proxy`, and the configurable-http-proxy that npm has."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import pytest
from yarl import URL

from tests.support.platform import free_port
from tests.support.wait import eventually

Kind = Literal["orrery", "original"]
VERSION: Final = "5.3.0"
TOKEN: Final = secrets.token_hex(16)
READY_TIMEOUT_S: Final = 40
INSTALL_TIMEOUT_S: Final = 180


class Answered:
    """A whole answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"<{self.status} {dict(self.headers)} {self.body[:300]!r}>"


class Proxy:
    """One running process of one implementation."""

    def __init__(
        self, kind: Kind, *flags: str, env: dict[str, str] | None = None, token: str = TOKEN,
        program: Path | None = None, port: int = 0, api_port: int = 0, tls: ssl.SSLContext | None = None,
        api_tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self.kind, self.token = kind, token
        self.port, self.api_port = port or free_port(), api_port or free_port()
        self.root = Path(tempfile.mkdtemp(prefix=f"orrery-{kind}-"))
        self.root.chmod(0o711)
        self.output = self.root / "output"
        self._program, self._flags, self._env = program, flags, env or {}
        self._launched = 0
        self.tls, self.api_tls = tls, api_tls
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def ours(self) -> bool:
        return self.kind == "orrery"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{'https' if self.api_tls else 'http'}://127.0.0.1:{self.api_port}"

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def launch(self) -> None:
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("ORRERY_", "CONFIGPROXY_"))}
        env = {**inherited, "ORRERY_DATA_DIR": str(self.root / "data"), **self._env}
        if self.token:
            env["CONFIGPROXY_AUTH_TOKEN"] = self.token
        command = [str(self._program)] if self._program else [sys.executable, "-m", "orrery_cli.main", "proxy"]
        listen = ["--ip", "127.0.0.1", "--port", str(self.port), "--api-ip", "127.0.0.1"]
        listen += ["--api-port", str(self.api_port)]
        self._launched += 1
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, *listen, *self._flags], env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    async def ready(self) -> Proxy:
        """Returns when both ports answer."""

        async def answers() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"it ended with code {self.process.returncode}: {self.log}")
            if self.ours and self.log.count("orrery proxy: serves ") < self._launched:
                return False
            try:
                health = await self.get("/_chp_healthz")
                statuses = {health.status, (await self.api("GET", "/")).status}
            except (OSError, aiohttp.ClientError):
                return False
            return statuses == {200, 404}

        await eventually(answers, timeout_s=READY_TIMEOUT_S)
        return self

    async def start(self) -> Proxy:
        self.launch()
        return await self.ready()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 30)

    def remove(self) -> None:
        process = self.process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        shutil.rmtree(self.root, ignore_errors=True)

    # The REST API

    async def api(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, raw: bytes | None = None,
        headers: dict[str, str] | None = None, timeout_s: float = 10,
    ) -> Answered:  # fmt: skip
        given = dict(headers or {})
        token = self.token if token is None else token
        if token and "Authorization" not in given:
            given["Authorization"] = f"token {token}"
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        return await fetch(method, self.api_url + path, headers=given, data=data, timeout_s=timeout_s, tls=self.api_tls)

    async def add(self, path: str, target: str, **data: Any) -> None:
        answered = await self.api("POST", f"/api/routes{path}", {"target": target, **data})
        assert answered.status == 201, answered

    async def remove_route(self, path: str) -> int:
        return (await self.api("DELETE", f"/api/routes{path}")).status

    async def routes(self) -> dict[str, Any]:
        answered = await self.api("GET", "/api/routes")
        assert answered.status == 200, answered
        return dict(answered.json())

    async def clear(self) -> None:
        for key in await self.routes():
            await self.api("DELETE", str(URL("/api/routes").joinpath(key[1:])) if key != "/" else "/api/routes/")

    # The public port

    async def get(self, path: str, **more: Any) -> Answered:
        return await fetch("GET", self.url + path, tls=self.tls, **more)

    async def raw(self, request: bytes, *, timeout_s: float = 10) -> bytes:
        """Everything that is answered to these bytes, until the proxy closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            with suppress(ConnectionError):
                return await asyncio.wait_for(reader.read(), timeout_s)
            return b""
        finally:
            writer.close()


async def fetch(
    method: str, url: str, *, headers: dict[str, str] | None = None, data: Any = None, timeout_s: float = 10,
    tls: ssl.SSLContext | None = None,
) -> Answered:  # fmt: skip
    """One request on a connection of its own, its path as it is written; redirects are not followed."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with (
        aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False) as http,
        http.request(
            method, URL(url, encoded=True), headers=headers, data=data, allow_redirects=False, ssl=tls or True,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        ) as answer,
    ):  # fmt: skip
        return Answered(answer.status, answer.headers.copy(), await answer.read())


def original() -> Path:
    """The original's program, installed by npm into a folder that is kept between runs. Skips the test, saying so,
    where that cannot be done."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js and npm are not here: the contract is not compared with the original")
    folder = Path(tempfile.gettempdir()) / f"orrery-configurable-http-proxy-{VERSION}"
    program = folder / "node_modules" / ".bin" / "configurable-http-proxy"
    if not program.exists():
        command = [
            npm,
            "install",
            "--prefix",
            str(folder),
            "--no-audit",
            "--no-fund",
            f"configurable-http-proxy@{VERSION}",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm did not install configurable-http-proxy in time: the contract is not compared with it")
        if done.returncode != 0 or not program.exists():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(
                f"npm could not install configurable-http-proxy ({reason}): the contract is not compared with it"
            )
    return program
