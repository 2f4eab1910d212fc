"""A whole platform as a person runs it: `orrery up` as a real process, driven through its public port."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.support.wait import eventually

PASSWORD = "correct horse battery staple"
ORRERY = [sys.executable, "-m", "orrery_cli.main"]


PORTS_PER_WORKER = 500
FIRST_PORT = 20_000
"""Below the range that Linux takes ports for outgoing connections and for port 0 from (32768 and up): what is free here
when a test chooses it is still free when the process that was told to use it has started."""


def free_port() -> int:
    """A port that no other test of this run is given, for what must know its port before it is started."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST_PORT + worker % 20 * PORTS_PER_WORKER
    for _ in range(PORTS_PER_WORKER):
        port = first + next(_counter) % PORTS_PER_WORKER
        with socket.socket() as s, suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"none of the ports from {first} to {first + PORTS_PER_WORKER - 1} is free")


_counter = itertools.count(os.getpid())


class Platform:
    """One `orrery up` on a data directory of its own. `stop()` also ends every user server that is still running."""

    def __init__(self, *, routers: int = 2, env: dict[str, str] | None = None) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="orrery-e2e-"))
        # The database runs as an unprivileged user when the tests run as root, and must be able to get there.
        self.root.chmod(0o711)
        self.data_dir = self.root / "data"
        self.port = free_port()
        self.routers = routers
        self.env = env or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.output = self.root / "up.log"
        self.orrery = ORRERY

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Platform]:
        """A started one, gone in the end."""
        platform = cls()
        try:
            await platform.start()
            yield platform
        finally:
            await asyncio.to_thread(platform.stop)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs `orrery ARGS --data-dir …` to its end."""
        return subprocess.run(
            [*ORRERY, *args, "--data-dir", str(self.data_dir)],
            env={**os.environ, **self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    async def start(self, *, bootstrap: bool = True, timeout_s: float = 60) -> None:
        args = [*ORRERY, "up", "--data-dir", str(self.data_dir), "--port", str(self.port)]
        args += ["--routers", str(self.routers)]
        if bootstrap:
            args += ["--bootstrap-admin", "ada"]
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                args,
                env={**os.environ, **self.env, "ORRERY_BOOTSTRAP_PASSWORD": PASSWORD},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        banner_from = self.output.stat().st_size if self.output.exists() else 0
        seen = banner_from

        def ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"orrery up ended with {self.process.returncode}:\n{self.output.read_text()}")
            return (
                re.search(r"ready in [0-9.]+ s", self.output.read_bytes()[seen:].decode(errors="replace")) is not None
            )

        await eventually(ready, timeout_s=timeout_s)

    async def interrupt(self, *, timeout_s: float = 30) -> str:
        """Ctrl-C, and what the terminal then says."""
        assert self.process is not None
        before = self.output.stat().st_size
        self.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(self.process.wait, timeout_s)
        return self.output.read_bytes()[before:].decode(errors="replace")

    async def status(self) -> list[dict[str, Any]]:
        done = await asyncio.to_thread(self.command, "status", "-o", "json")
        body = json.loads(done.stdout)
        return list(body["processes"])

    async def pid(self, slot: str) -> int:
        for row in await self.status():
            if row["slot"] == slot and row["pid"]:
                return int(row["pid"])
        raise AssertionError(f"no running process in slot {slot}")

    async def kill(self, slot: str, *, wait: bool = True, timeout_s: float = 20) -> int:
        """SIGKILL; then waits until another process has taken the slot and is ready, without a hand."""
        old = await self.pid(slot)
        os.kill(old, signal.SIGKILL)
        if wait:
            await self.replaced(slot, old, timeout_s=timeout_s)
        return old

    async def replaced(self, slot: str, old: int, *, timeout_s: float = 20) -> None:
        async def back() -> bool:
            return any(
                row["slot"] == slot and row["pid"] not in (old, None) and row["ready"] for row in await self.status()
            )

        await eventually(back, timeout_s=timeout_s, interval_s=0.2)

    def server_pids(self) -> dict[int, str]:
        """pid → server id of every process that carries this platform's server marker and home folder."""
        found = {}
        for p in psutil.process_iter():
            with suppress(psutil.Error):
                env = p.environ()
                if "ORRERY_SERVER_ID" in env and str(self.data_dir) in env.get("HOME", ""):
                    found[p.pid] = env["ORRERY_SERVER_ID"]
        return found

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        for pid in self.server_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    @asynccontextmanager
    async def sign_in(self, name: str = "ada", password: str = PASSWORD) -> AsyncIterator[Person]:
        """A signed-in browser without JavaScript."""
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(self.url, cookie_jar=jar) as http:
            person = Person(self, http, name)
            await person.sign_in(password)
            yield person


class Person:
    """Somebody with a browser (cookies, forms) who also knows curl (the API)."""

    def __init__(self, platform: Platform, http: aiohttp.ClientSession, name: str) -> None:
        self.platform = platform
        self.http = http
        self.name = name
        self.token = ""

    async def sign_in(self, password: str) -> None:
        async with self.http.get("/hub/login") as page:
            assert page.status == 200, await page.text()
            field = re.search(r'name="_xsrf"[^>]*value="([^"]+)"', await page.text())
            assert field, "the login form has no _xsrf field"
        form = {"username": self.name, "password": password, "_xsrf": field.group(1)}
        async with self.http.post("/hub/login", data=form, allow_redirects=False) as answer:
            assert answer.status == 302, (answer.status, await answer.text())
        body = {"auth": {"username": self.name, "password": password}, "note": "tests"}
        async with self.http.post(f"/hub/api/users/{self.name}/tokens", json=body) as answer:
            assert answer.status == 201, (answer.status, await answer.text())
            self.token = (await answer.json())["token"]

    async def api(self, method: str, path: str, body: Any = None, **kwargs: Any) -> tuple[int, Any]:
        """One API call with the token, without cookies. Returns status and decoded body."""
        headers = {"Authorization": f"token {self.token}", **kwargs.pop("headers", {})}
        async with (
            aiohttp.ClientSession(self.platform.url, cookie_jar=aiohttp.DummyCookieJar()) as http,
            http.request(method, f"/hub/api{path}", json=body, headers=headers, **kwargs) as answer,
        ):
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith(("{", "[")) else text

    def server_path(self, server: str = "") -> str:
        return f"/users/{self.name}/servers/{server}" if server else f"/users/{self.name}/server"

    async def start_server(self, server: str = "", profile: str = "", timeout_s: float = 60) -> dict[str, Any]:
        """Asks for a start and waits until it is ready."""
        body = {"profile": profile} if profile else {}
        status, answer = await self.api("POST", self.server_path(server), body)
        assert status in (201, 202), (status, answer)
        return await self.ready_server(server, timeout_s=timeout_s)

    async def server(self, server: str = "") -> dict[str, Any] | None:
        status, user = await self.api("GET", f"/users/{self.name}?include_stopped_servers=1")
        assert status == 200, (status, user)
        found: dict[str, Any] | None = user["servers"].get(server)
        return found

    async def ready_server(self, server: str = "", timeout_s: float = 60) -> dict[str, Any]:
        async def ready() -> dict[str, Any] | None:
            with suppress(aiohttp.ClientError, AssertionError):
                found = await self.server(server)
                return found if found and found["ready"] else None
            return None

        found = await eventually(ready, timeout_s=timeout_s, interval_s=0.1)
        assert found
        return dict(found)

    async def stop_server(self, server: str = "", timeout_s: float = 30) -> None:
        status, answer = await self.api("DELETE", self.server_path(server))
        assert status in (202, 204), (status, answer)

        async def stopped() -> bool:
            found = await self.server(server)
            return found is None or (found["stopped"] and not found["pending"])

        await eventually(stopped, timeout_s=timeout_s, interval_s=0.1)

    async def fetch(self, path: str, **kwargs: Any) -> tuple[int, str]:
        """A browser's GET, with cookies."""
        async with self.http.get(path, **kwargs) as answer:
            return answer.status, await answer.text()


class Kernel:
    """A Python kernel behind the router."""

    def __init__(self, person: Person, base: str, kernel_id: str) -> None:
        self.person, self.base, self.id = person, base, kernel_id

    @classmethod
    async def start(cls, person: Person, base: str) -> Kernel:
        headers = {"Origin": person.platform.url}
        async with person.http.post(f"{base}api/kernels", json={"name": "python3"}, headers=headers) as answer:
            assert answer.status == 201, (answer.status, await answer.text())
            return cls(person, base, (await answer.json())["id"])

    async def run(self, code: str, timeout_s: float = 30) -> str:
        """Executes code over a new WebSocket and returns the text of its result."""
        deadline = time.monotonic() + timeout_s
        origin = self.person.platform.url
        async with self.person.http.ws_connect(f"{self.base}api/kernels/{self.id}/channels", origin=origin) as ws:
            message_id = uuid.uuid4().hex
            header = {"msg_id": message_id, "msg_type": "execute_request", "username": "", "session": message_id}
            content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
            await ws.send_json(
                {
                    "channel": "shell",
                    "header": {**header, "version": "5.3", "date": ""},
                    "parent_header": {},
                    "metadata": {},
                    "content": {**content, "allow_stdin": False, "stop_on_error": True},
                }
            )
            while True:
                message = await ws.receive(timeout=max(0.01, deadline - time.monotonic()))
                assert message.type is aiohttp.WSMsgType.TEXT, message
                body = json.loads(message.data)
                if body.get("parent_header", {}).get("msg_id") != message_id:
                    continue
                if body["msg_type"] == "execute_result":
                    return str(body["content"]["data"]["text/plain"])
                if body["msg_type"] == "error":
                    raise AssertionError("\n".join(body["content"]["traceback"]))

    async def answers(self) -> bool:
        """True once the kernel executes code, through whichever router takes the connection."""
        with suppress(aiohttp.ClientError, AssertionError, TimeoutError, OSError):
            return await self.run("6*7", timeout_s=5) == "42"
        return False
