"""Real router processes on a test's own database, with people, routes and upstreams."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from aiohttp import web

from orrery_events.bus import Bus
from orrery_events.catalog.auth import KeyAnnounced, key_stream
from orrery_events.catalog.instance import InstanceDraining, InstanceStarted, instance_stream
from orrery_events.catalog.route import RouteRemoved, RouteSet, route_id_of
from orrery_events.catalog.server import Ready, Stopped, server_id_of, server_stream
from orrery_events.catalog.user import UserCreated, user_stream
from orrery_events.ids import derived_id, new_id
from orrery_events.log import Appended, EventLog, create_pool
from orrery_events.principal import SESSION_COOKIE
from orrery_events.relay import Relay
from orrery_events.tasks import end_tasks
from orrery_runtime.identity import Claims, sign
from orrery_runtime.jws import SigningKey
from orrery_runtime.secrets import Secrets
from tests.support.platform import free_port
from tests.support.wait import eventually

SECRET_KEY = "a secret key of a test, forty characters"
NOWHERE = "nats://127.0.0.1:9"
"""A NATS that is down."""
MAIN = "import sys; from orrery_router.app import main; sys.exit(main())"


class RouterProcess:
    """One router, as a process of its own."""

    def __init__(self, bench: Bench, slot: str, env: dict[str, str]) -> None:
        self.slot = slot
        self.output = bench.root / f"{slot}-{time.monotonic_ns()}.log"
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN], env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    @property
    def ops_url(self) -> str:
        return str(next(line["ops_url"] for line in self.lines() if line["event"] == "process_ready"))

    async def ready(self) -> RouterProcess:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log
            return "process_ready" in self.log

        await eventually(is_ready, timeout_s=30)
        return self

    async def ops(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as http, http.get(self.ops_url + path) as answer:
            return answer.status, await answer.text()

    async def status(self) -> dict[str, Any]:
        return dict(json.loads((await self.ops("/status"))[1]))

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def stop(self) -> int:
        self.terminate()
        return await asyncio.to_thread(self.process.wait, 30)

    async def kill(self) -> None:
        self.process.kill()
        await asyncio.to_thread(self.process.wait, 10)

    def remove(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


class Person:
    """Somebody with a session and a token."""

    def __init__(self, bench: Bench, name: str, *, admin: bool = False) -> None:
        self.name, self.admin = name, admin
        self.user_id = derived_id("user", name)
        self.session_id = new_id()
        now = time.time()
        session = Claims(sub=self.user_id, jti=self.session_id, iat=now, exp=now + 3600)
        self.session = sign(session, bench.key, kind="session")
        self.token = self.make_token(bench)
        self.cookie = {"Cookie": f"{SESSION_COOKIE}={self.session}"}
        self.authorization = {"Authorization": f"token {self.token}"}

    def facts(self, server: str = "") -> dict[str, Any]:
        """What every event about one of their servers repeats."""
        server_id = server_id_of(self.user_id, server)
        return {"server_id": server_id, "user_id": self.user_id, "user_name": self.name, "name": server}

    def make_token(self, bench: Bench, *, scopes: tuple[str, ...] = ("inherit",), life_s: float | None = None) -> str:
        now = time.time()
        claims = Claims(
            sub=self.user_id, jti=new_id(), iat=now, exp=None if life_s is None else now + life_s, scp=scopes
        )
        return sign(claims, bench.key, kind="token")


class Bench:
    """A log, any number of routers on one port, and the part of the other services."""

    def __init__(self, root: Path, database_url: str, nats_url: str, log: EventLog, pool: asyncpg.Pool) -> None:
        self.root = root
        self.database_url = database_url
        self.nats_url = nats_url
        self.log = log
        self.pool = pool
        self.port = free_port()
        self.key = SigningKey.generate("k1")
        self.secrets = Secrets(SECRET_KEY)
        self.routers: list[RouterProcess] = []
        self.stack = AsyncExitStack()

    @classmethod
    @asynccontextmanager
    async def open(cls, root: Path, database_url: str, nats_url: str = NOWHERE) -> AsyncIterator[Bench]:
        pool = await create_pool(database_url, application_name="bench")
        log = EventLog(pool, producer="bench")
        await log.start()
        bench = cls(root, database_url, nats_url, log, pool)
        try:
            async with bench.stack:
                announced = KeyAnnounced(kid=bench.key.kid, public_key=bench.key.public_key, not_before=0.0)
                await log.append(key_stream(bench.key.kid), [announced])
                bench.ada = await bench.person("ada")
                yield bench
        finally:
            for router in bench.routers:
                router.remove()
            await log.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(pool.close(), 2)

    ada: Person

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def environment(self, slot: str, **more: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORRERY_")}
        return {
            **inherited,
            "ORRERY_DATABASE_URL": self.database_url,
            "ORRERY_NATS_URL": self.nats_url,
            "ORRERY_SECRET_KEY": SECRET_KEY,
            "ORRERY_DATA_DIR": str(self.root / "data"),
            "ORRERY_SLOT": slot,
            "ORRERY_PORT": str(self.port),
            "ORRERY_LOG_FORMAT": "json",
            "ORRERY_DRAIN_NOTICE_S": "0",
            **more,
        }

    def launch(self, slot: str = "router-1", **env: str) -> RouterProcess:
        """Starts a router and does not wait for it."""
        router = RouterProcess(self, slot, self.environment(slot, **env))
        self.routers.append(router)
        return router

    async def router(self, slot: str = "router-1", **env: str) -> RouterProcess:
        return await self.launch(slot, **env).ready()

    async def relay(self, nats_url: str) -> None:
        """The relay, inside the test."""
        bus = Bus(nats_url, name="bench-relay")
        await bus.start()
        self.stack.push_async_callback(bus.stop)
        relay = Relay(self.log, self.pool, bus, database_url=self.database_url, name="bench")
        task = asyncio.create_task(relay.run())

        self.stack.push_async_callback(end_tasks, task)

    # As the other services do

    async def person(self, name: str, *, admin: bool = False) -> Person:
        person = Person(self, name, admin=admin)
        created = UserCreated(user_id=person.user_id, name=name, admin=admin, created_at=time.time())
        await self.log.append(user_stream(name), [created])
        return person

    async def route(
        self, target: str, *, owner: Person | None = None, server: str = "", prefix: str = "", policy: str = "owner",
        generation: int = 1, strip: bool = False, secret_header: str = "Authorization", secret_prefix: str = "token ",  # noqa: S107
        host: str = "",
    ) -> Appended:  # fmt: skip
        """As a spawner does it when a server is ready."""
        owner = owner or self.ada
        prefix = prefix or (f"/user/{owner.name}/{server}/" if server else f"/user/{owner.name}/")
        server_id = server_id_of(owner.user_id, server)
        facts = owner.facts(server)
        route = RouteSet(
            route_id=route_id_of(prefix, host), prefix=prefix, host=host, target=target, policy=policy,
            owner_id=owner.user_id, owner_name=owner.name, server_id=server_id, server_name=server,
            generation=generation, strip_prefix=strip, secret_header=secret_header, secret_prefix=secret_prefix,
        )  # fmt: skip
        return await self.log.append(server_stream(server_id), [Ready(**facts, generation=generation), route])

    async def unroute(self, *, owner: Person | None = None, server: str = "") -> Appended:
        owner = owner or self.ada
        prefix = f"/user/{owner.name}/{server}/" if server else f"/user/{owner.name}/"
        server_id = server_id_of(owner.user_id, server)
        facts = owner.facts(server)
        events = [
            Stopped(**facts, generation=1),
            RouteRemoved(route_id=route_id_of(prefix), prefix=prefix, server_id=server_id, generation=1),
        ]
        return await self.log.append(server_stream(server_id), events)

    async def instance(self, service: str, url: str, *, slot: str = "", draining: bool = False) -> None:
        slot = slot or f"{service}-1"
        kind = InstanceDraining if draining else InstanceStarted
        event = kind(instance_id=derived_id(slot, url), slot=slot, service=service, url=url)
        await self.log.append(instance_stream(slot), [event])

    # As a browser does

    async def fetch(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, data: Any = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of one request on a connection of its own; redirects are not followed."""
        from yarl import URL  # noqa: PLC0415

        connector = aiohttp.TCPConnector(force_close=True)
        jar = aiohttp.DummyCookieJar()
        async with (
            aiohttp.ClientSession(connector=connector, cookie_jar=jar) as http,
            http.request(
                method, URL(self.url + path, encoded=True), headers=headers, data=data, allow_redirects=False
            ) as answer,
        ):
            return answer.status, answer.headers, await answer.read()

    async def raw(self, request: bytes, *, timeout_s: float = 10, end: bool = False) -> bytes:
        """Everything that is answered to these bytes, until the router closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            if end:
                writer.write_eof()
            return await asyncio.wait_for(reader.read(), timeout_s)
        finally:
            writer.close()


@asynccontextmanager
async def serving(app: web.Application, **more: Any) -> AsyncIterator[str]:
    """A real aiohttp server; its URL. `more`: for its runner."""
    settings = {"access_log": None, "handler_cancellation": True, "shutdown_timeout": 0.1, **more}
    runner = web.AppRunner(app, **settings)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def answering(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A raw server that does whatever `handle` does with each connection; its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await handle(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0, limit=2**20)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await end_tasks(*tasks)


async def head_of(reader: asyncio.StreamReader) -> bytes:
    """One request's head."""
    return await reader.readuntil(b"\r\n\r\n")
