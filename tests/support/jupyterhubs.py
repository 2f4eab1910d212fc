"""A stock JupyterHub from the package registry, in a virtual environment of its own that is kept between runs."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import aiohttp
import psutil
import pytest
from yarl import URL

from tests.support.platform import free_port
from tests.support.wait import eventually

INSTALL_TIMEOUT_S: Final = 400
SERVICE_TOKEN: Final = "of-the-service-of-a-hub-in-a-test"

CONFIG: Final = """\
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub_port}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"
c.ConfigurableHTTPProxy.check_running_interval = 1
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = "{root}/homes/{{username}}"
c.Spawner.args = ["--allow-root"]
c.Spawner.http_timeout = 60
c.JupyterHub.last_activity_interval = 3
c.JupyterHub.services = [{{"name": "test", "api_token": "{service_token}"}}]
c.JupyterHub.load_roles = [
    {{"name": "test", "services": ["test"], "scopes": ["admin:users", "admin:servers", "access:servers", "proxy"]}}
]
"""


def installed(version: str) -> Path:
    """The `bin` folder of a virtual environment with JupyterHub `version`. Skips the test, saying so, where none can be
    made."""
    venv = Path(tempfile.gettempdir()) / f"orrery-jupyterhub-{version}-py{sys.version_info[0]}{sys.version_info[1]}"
    whole = venv / "complete"
    venv.parent.mkdir(exist_ok=True)
    with venv.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(venv, ignore_errors=True)
            make = [sys.executable, "-m", "venv", str(venv)]
            fill = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
            for command in (make, [*fill, f"jupyterhub=={version}.*", "jupyter_server>=2"]):
                done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
                if done.returncode != 0:
                    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                    pytest.skip(f"JupyterHub {version} could not be installed ({reason})")
            whole.touch()
    return venv / "bin"


class Hub:
    """One hub, which starts its proxy itself, as it comes: it looks for `configurable-http-proxy` on PATH."""

    def __init__(self, version: str, env: dict[str, str]) -> None:
        """`env`: for the proxy that it starts."""
        self.bin = installed(version)
        self.version = version
        self.root = Path(tempfile.mkdtemp(prefix="orrery-hub-"))
        self.root.chmod(0o711)
        self.port, self.api_port, self.hub_port = free_port(), free_port(), free_port()
        self.output = self.root / "hub.log"
        self._env = env
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    @property
    def proxy_pid(self) -> int:
        """Of the proxy that it started; 0: there is none now."""
        try:
            return int((self.root / "jupyterhub-proxy.pid").read_text())
        except (OSError, ValueError):
            return 0

    def launch(self) -> None:
        config = CONFIG.format(
            port=self.port, hub_port=self.hub_port, api_port=self.api_port, root=self.root, service_token=SERVICE_TOKEN
        )
        (self.root / "jupyterhub_config.py").write_text(config)
        (self.root / "homes").mkdir(exist_ok=True)
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("ORRERY_", "CONFIGPROXY_", "JUPYTER"))}
        path = os.pathsep.join([str(self.bin), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                [self.bin / "jupyterhub"], cwd=self.root, env={**inherited, **self._env, "PATH": path}, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    async def ready(self) -> None:
        def runs() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"JupyterHub ended with code {self.process.returncode}: {self.log}")
            return "JupyterHub is now running" in self.log

        await eventually(runs, timeout_s=60)

    def remove(self) -> None:
        process = self.process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self._end_proxies()
        shutil.rmtree(self.root, ignore_errors=True)

    def _end_proxies(self) -> None:
        """A hub that ends while its proxy is being replaced leaves that behind."""
        left = [p for p in psutil.process_iter() if self._is_proxy(p)]
        for proxy in left:
            with suppress(psutil.Error):
                proxy.terminate()
        psutil.wait_procs(left, timeout=20)

    def _is_proxy(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return f"--api-port {self.api_port}" in " ".join(process.cmdline())
        return False


class Visitor:
    """Somebody with a browser."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub, self.name = hub, name
        jar = aiohttp.CookieJar(unsafe=True)
        self.http = aiohttp.ClientSession(hub.url, cookie_jar=jar, timeout=aiohttp.ClientTimeout(total=60))

    async def __aenter__(self) -> Visitor:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.close()

    async def sign_in(self) -> None:
        async with self.http.get("/hub/login") as page:
            assert page.status == 200, await page.text()
        form = {"username": self.name, "password": "any", "_xsrf": self.cookie("_xsrf", "/hub/")}
        async with self.http.post("/hub/login", data=form, allow_redirects=False) as answer:
            assert answer.status == 302, await answer.text()

    async def start_server(self) -> None:
        """As a person does it: asks for it and waits until the hub's page leads there."""
        async with self.http.get("/hub/spawn") as page:
            assert page.status == 200, await page.text()

        async def there() -> bool:
            # A page signs in to the server by way of the hub, whether it exists or not; the server's API does not.
            await self.get(f"/user/{self.name}/files/any")
            status, body = await self.get(f"/user/{self.name}/api/status")
            return status == 200 and "started" in body

        await eventually(there, timeout_s=60, interval_s=0.2)

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.http.get(path) as answer:
            kind = answer.content_type
            return answer.status, await (answer.json() if kind == "application/json" else answer.text())

    def cookie(self, name: str, path: str) -> str:
        cookies = self.http.cookie_jar.filter_cookies(URL(self.hub.url + path))
        assert name in cookies, list(cookies)
        return re.sub(r'^"|"$', "", cookies[name].value)

    async def terminal(self) -> aiohttp.ClientWebSocketResponse:
        """A shell on their server, over a WebSocket."""
        base = f"/user/{self.name}/"
        xsrf = {"X-XSRFToken": self.cookie("_xsrf", base)}
        async with self.http.post(f"{base}api/terminals", headers=xsrf) as answer:
            assert answer.status == 200, (answer.status, await answer.text())
            name = (await answer.json())["name"]
        return await self.http.ws_connect(f"{base}terminals/websocket/{name}", origin=self.hub.url)


async def types(terminal: aiohttp.ClientWebSocketResponse, sum_of: tuple[int, int]) -> None:
    """Has the shell add two numbers, and waits for the result."""
    await terminal.send_json(["stdin", f"echo =$(({sum_of[0]} + {sum_of[1]}))=\r"])
    seen = ""
    while f"={sum(sum_of)}=" not in seen:
        message = await terminal.receive(timeout=20)
        assert message.type is aiohttp.WSMsgType.TEXT, (message, seen)
        kind, *rest = message.json()
        seen += str(rest[0]) if kind == "stdout" else ""
