"""Real spawner processes on a test's own database, and a client that asks for servers as the api does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from orrery_events.catalog.profile import Profile, ProfileDefined, profile_stream
from orrery_events.catalog.route import RouteRemoved, RouteSet
from orrery_events.catalog.server import (
    Ready,
    ServerEvent,
    StartCancelled,
    StartRequested,
    StopRequested,
    server_id_of,
    server_stream,
)
from orrery_events.errors import Conflict
from orrery_events.ids import derived_id
from orrery_events.log import EventLog, create_pool
from orrery_events.registry import Event
from orrery_runtime.secrets import Secrets
from orrery_spawner.drivers.environment import GENERATION_MARKER, ID_MARKER
from orrery_spawner.drivers.processes import settled_environ
from tests.support.wait import eventually

SECRET_KEY = "a secret key of a test, forty characters"
NOWHERE = "nats://127.0.0.1:9"
"""A NATS that is down."""
MAIN = "import sys; from orrery_spawner.app import main; sys.exit(main())"

HTTP_SERVER = ["{python}", "-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", "{home}"]
QUICK = Profile(name="quick", display_name="Quick", command=HTTP_SERVER, strip_prefix=True, start_timeout_s=20)

SERVE = (
    "import http.server, sys\n"
    "class H(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response({status}); self.end_headers()\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
)
"""A server that answers everything with one status."""


def python_profile(name: str, code: str, *, start_timeout_s: float = 20, **more: Any) -> Profile:
    """A profile that runs Python code; its arguments are the port and the base URL."""
    command = ["{python}", "-c", code, "{port}", "{base_url}"]
    return Profile(name=name, command=command, start_timeout_s=start_timeout_s, **more)


class SpawnerProcess:
    """One spawner, as a process of its own."""

    def __init__(self, bench: Bench, slot: str, **env: str) -> None:
        self.slot = slot
        self.output = bench.root / f"{slot}-{time.monotonic_ns()}.log"
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN],
                env=bench.environment(slot, **env),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace")

    async def ready(self) -> SpawnerProcess:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log
            return "process_ready" in self.log

        await eventually(is_ready, timeout_s=20, interval_s=0.01)
        return self

    async def died(self, timeout_s: float = 20) -> None:
        """Returns once it has ended, by a failpoint or otherwise."""
        await eventually(lambda: self.process.poll() is not None, timeout_s=timeout_s, what=f"{self.slot} ends")

    async def kill(self) -> None:
        self.process.kill()
        await asyncio.to_thread(self.process.wait, 10)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 20)

    def remove(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


class Bench:
    """A log, a data directory, any number of spawners, and the part of the api."""

    def __init__(self, root: Path, database_url: str, nats_url: str, log: EventLog, pool: asyncpg.Pool) -> None:
        self.root = root
        self.data_dir = root / "data"
        self.database_url = database_url
        self.nats_url = nats_url
        self.log = log
        self.pool = pool
        self.secrets = Secrets(SECRET_KEY)
        self.spawners: list[SpawnerProcess] = []
        self.server_ids: set[str] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, root: Path, database_url: str, nats_url: str = NOWHERE) -> AsyncIterator[Bench]:
        pool = await create_pool(database_url, application_name="bench")
        log = EventLog(pool, producer="bench")
        await log.start()
        bench = cls(root, database_url, nats_url, log, pool)
        try:
            await bench.define(QUICK)
            yield bench
        finally:
            for spawner in bench.spawners:
                spawner.remove()
            bench.end_servers()
            await log.close()
            await pool.close()

    def environment(self, slot: str, **more: str) -> dict[str, str]:
        """Of a spawner process."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORRERY_")}
        return {
            **inherited,
            "ORRERY_DATABASE_URL": self.database_url,
            "ORRERY_NATS_URL": self.nats_url,
            "ORRERY_SECRET_KEY": SECRET_KEY,
            "ORRERY_DATA_DIR": str(self.data_dir),
            "ORRERY_SLOT": slot,
            "ORRERY_LOG_FORMAT": "json",
            "ORRERY_DRAIN_NOTICE_S": "0",
            "ORRERY_RECONCILE_INTERVAL_S": "1",
            **more,
        }

    def launch(self, slot: str = "spawner-1", **env: str) -> SpawnerProcess:
        """Starts a spawner and does not wait for it."""
        spawner = SpawnerProcess(self, slot, **env)
        self.spawners.append(spawner)
        return spawner

    async def spawner(self, slot: str = "spawner-1", **env: str) -> SpawnerProcess:
        return await self.launch(slot, **env).ready()

    async def expire_leases(self, slot: str) -> None:
        """As if twenty seconds had gone by for a spawner that was killed."""
        await self.pool.execute("UPDATE es.instances SET expires_at = now() - interval '1 s' WHERE slot = $1", slot)

    async def define(self, profile: Profile) -> str:
        await self.log.append(profile_stream(profile.name), [ProfileDefined(profile=profile)])
        return profile.name

    # As the api does

    async def request(self, name: str = "", profile: str = "quick", *, user: str = "ada", timeout_s: float = 30) -> str:
        """Asks for a start of the next generation; returns the server's id."""
        user_id = derived_id("user", user, str(self.root))
        server_id = server_id_of(user_id, name)
        self.server_ids.add(server_id)
        history = await self.history(server_id)
        last = [event for event in history if isinstance(event, ServerEvent)]
        now = time.time()
        event = StartRequested(
            server_id=server_id,
            user_id=user_id,
            user_name=user,
            name=name,
            profile=profile,
            generation=last[-1].generation + 1 if last else 1,
            requested_at=now,
            deadline=now + timeout_s,
        )
        await self.log.append(server_stream(server_id), [event], expected_version=await self.version(server_id))
        return server_id

    async def request_stop(self, server_id: str, *, remove: bool = False) -> None:
        await self._about(server_id, StopRequested, remove=remove)

    async def cancel(self, server_id: str) -> None:
        await self._about(server_id, StartCancelled)

    async def _about(self, server_id: str, kind: type[ServerEvent], **more: Any) -> None:
        """As the api does it: against the folded version, decided anew when the stream moved."""

        async def appended() -> bool:
            version = await self.version(server_id)
            last = [e for e in await self.history(server_id) if isinstance(e, ServerEvent)][-1]
            facts = {name: getattr(last, name) for name in ServerEvent.__struct_fields__}
            with suppress(Conflict):
                await self.log.append(server_stream(server_id), [kind(**facts, **more)], expected_version=version)
                return True
            return False

        await eventually(appended)

    # What came of it

    async def version(self, server_id: str) -> int:
        found = await self.pool.fetchval(
            "SELECT version FROM es.stream_head WHERE stream_id = $1", server_stream(server_id)
        )
        return int(found or 0)

    async def history(self, server_id: str) -> list[Event]:
        return [recorded.event() for recorded in await self.log.read_stream(server_stream(server_id))]

    async def types(self, server_id: str) -> list[str]:
        """The types of its events, the timeline's lines left out."""
        return [event.TYPE for event in await self.history(server_id) if event.TYPE != "server.progressed"]

    async def until(self, server_id: str, *types: str, timeout_s: float = 20) -> Event:
        """Waits for the newest event to be of one of the types."""

        async def newest() -> Event | None:
            history = await self.history(server_id)
            return history[-1] if history and history[-1].TYPE in types else None

        try:
            found = await eventually(newest, timeout_s=timeout_s)
        except AssertionError:
            logs = "\n".join(spawner.log for spawner in self.spawners)
            raise AssertionError(f"never {types}: {await self.history(server_id)}\n{logs}") from None
        assert found is not None
        return found

    async def routes(self) -> dict[str, str]:
        """Prefix to target, folded from the whole log."""
        table: dict[str, str] = {}
        for recorded in await self.log.read_category("route", after_seq=0):
            event = recorded.event()
            if isinstance(event, RouteSet):
                table[event.prefix] = event.target
            elif isinstance(event, RouteRemoved):
                table.pop(event.prefix, None)
        return table

    async def starts_again(self, server_id: str) -> None:
        """The next start, with a profile that works, becomes ready."""
        last = [event for event in await self.history(server_id) if isinstance(event, ServerEvent)][-1]
        assert await self.request(last.name, "quick", user=last.user_name) == server_id
        ready = await self.until(server_id, "server.ready")
        assert isinstance(ready, Ready)
        assert ready.generation == last.generation + 1

    def processes(self, server_id: str = "") -> list[psutil.Process]:
        """Everything that carries the markers of a server of this bench."""
        wanted = {server_id} if server_id else self.server_ids
        return [p for p, env in marked_processes() if env[ID_MARKER] in wanted]

    def roots(self, server_id: str, generation: int | None = None) -> list[psutil.Process]:
        """Those of them that a spawner started, not what these started themselves."""
        ours = self.processes(server_id)
        pids = {p.pid for p in ours}
        found = []
        for process in ours:
            with suppress(psutil.Error):
                same = generation is None or process.environ()[GENERATION_MARKER] == str(generation)
                if process.ppid() not in pids and same:
                    found.append(process)
        return found

    def end_servers(self) -> None:
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        # Those that this very process started would stay zombies.
        for process in self.processes():
            with suppress(psutil.Error):
                process.wait(5)


def marked_processes() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Every running process that says which server it belongs to."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            env = settled_environ(process)
            if ID_MARKER in env and process.status() != psutil.STATUS_ZOMBIE:
                yield process, env
