"""`orrery up`, from the first check to the last word.

The order: what can be wrong is found before anything is started (data directory, another `up`, the port); then Postgres
and NATS come up side by side while the forking process imports what services need; then migrations; then all services
at once; then every process is asked whether it is ready, and the public port whether it answers. Only then the banner.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from orrery_cli import leftovers, ports
from orrery_cli.console import announce, complain, paint
from orrery_cli.datadir import DataDir
from orrery_cli.errors import UsageError
from orrery_cli.given import base_path, public_url, text
from orrery_runtime.version import version

from . import banner, readiness
from .backbone import Backbone
from .jobs import Job, Jobs, Outcome
from .lifetime import Lifetime, spawn
from .logs import Logs
from .preload import Preloader
from .services import Backends, Services
from .shutdown import Shutdown
from .slot import Slot

ROUTERS_MAX: Final = 64
NOT_FOR_UP: Final = ("listen", "proxy_protocol", "tls_client_ca_file")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `orrery up`."""

    data_dir: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    routers: int = 2
    database_url: str = ""
    nats_url: str = ""
    bootstrap_admin: str = ""
    logs: bool = False
    stop_servers: bool = False
    preload: bool = True


class Up:
    """One run of `orrery up`."""

    def __init__(self, options: Options, *, began: float) -> None:
        """`began`: `time.monotonic()` of the moment the command was given."""
        if not 1 <= options.routers <= ROUTERS_MAX:
            raise UsageError(f"--routers must be between 1 and {ROUTERS_MAX}")
        for name in NOT_FOR_UP:
            if text(name) not in ("", "false", "False"):
                raise UsageError(
                    f"setting {name} is for routers that are started by `orrery serve router`: here they share one "
                    "port that this command asks whether it answers; leave it out"
                )
        self.options = options
        self.began = began
        self.data_dir = DataDir(options.data_dir)
        self.bootstrap_password = os.environ.pop("ORRERY_BOOTSTRAP_PASSWORD", "")
        if options.bootstrap_admin and not self.bootstrap_password:
            raise UsageError("--bootstrap-admin needs the password in the environment: set ORRERY_BOOTSTRAP_PASSWORD")
        self.database_url = options.database_url or text("database_url")
        self.nats_url = options.nats_url or text("nats_url")
        self.logs = Logs(self.data_dir.logs)
        self.preloader = Preloader(wanted=options.preload)
        self.backbone = Backbone(self.data_dir, self.logs, note=self._note, moved=self._record)
        self.backbone_slots: list[Slot] = []
        self.service_slots: list[Slot] = []
        self.jobs: Jobs | None = None
        self.url = ""
        self._quiet = False

    async def run(self) -> int:
        """Returns the exit code. Raises CliError when the platform cannot be started; what was started is ended."""
        lifetime = Lifetime()
        stop = lifetime.stop
        async with AsyncExitStack() as stack:
            try:
                await lifetime.last(self._start(stack))
            finally:
                self._quiet = True
                shutdown = Shutdown(self.data_dir, self.backbone_slots, self.service_slots, lifetime.hurry)
                if stop.is_set() and self.jobs is not None:
                    await shutdown.servers(self.jobs, self._backend_url(), stop=self.options.stop_servers)
                await shutdown.run(narrate=stop.is_set())
        return 0

    async def _start(self, stack: AsyncExitStack) -> None:
        self.data_dir.prepare()
        self.data_dir.lock()
        leftovers.end(self.data_dir)
        reserved = stack.enter_context(ports.reserve(self.options.host, self.options.port))
        port = reserved.getsockname()[1]
        scheme = "https" if text("tls_cert_files") else "http"
        self.url = f"{scheme}://{_in_url(self.options.host)}:{port}{base_path()}"
        stack.callback(self.data_dir.remove_run_file, "up")
        stack.callback(self.preloader.close)
        self.preloader.warm()
        death_fd, held = os.pipe()  # `held` closes when this process ends, however it ends
        stack.callback(os.close, held)
        stack.callback(os.close, death_fd)
        spawn(stack, self.logs.keep_bounded())
        if self.options.logs:
            spawn(stack, self.logs.show())
        await self._open_backbone()
        backends = self._backends()
        self.jobs = Jobs(self.data_dir, self.logs, self.preloader, death_fd=death_fd)
        outcome = await self._prepare(self.jobs)
        services = Services(
            self.data_dir,
            backends,
            self.logs,
            self.preloader,
            host=self.options.host,
            port=port,
            death_fd=death_fd,
            note=self._note,
            moved=self._record,
        )
        self.service_slots = services.slots(self.options.routers)
        await asyncio.gather(*(slot.open() for slot in self.service_slots))
        await readiness.all_ready(self.service_slots, self.data_dir, self.logs)
        await readiness.public_port_answers(self.url)
        announce(banner.text(self._facts(outcome)))

    async def _open_backbone(self) -> None:
        if not self.database_url:
            self.backbone_slots.append(self.backbone.postgres_slot())
        if not self.nats_url:
            self.backbone_slots.append(self.backbone.nats_slot())
        await asyncio.gather(*(slot.open() for slot in self.backbone_slots))

    def _backend_url(self) -> str:
        return self.database_url or self.backbone.postgres.url()

    def _backends(self) -> Backends:
        backbone = self.backbone
        nats_url = self.nats_url or backbone.nats.url("service")
        relay_nats_url = self.nats_url or backbone.nats.url("relay")
        return Backends(
            database_url_file=self.data_dir.keep_secret("database_url", self._backend_url()),
            nats_url_file=self.data_dir.keep_secret("nats_url", nats_url),
            relay_nats_url_file=self.data_dir.keep_secret("relay_nats_url", relay_nats_url),
        )

    async def _prepare(self, jobs: Jobs) -> Outcome:
        """Migrations, first admin, set-up link; and whether an external NATS lets us in."""
        return await jobs.run(
            Job(
                kind="prepare",
                database_url=self._backend_url(),
                provision=None if self.database_url else self.backbone.postgres.roles(),
                nats_url=self.nats_url,
                bootstrap_admin=self.options.bootstrap_admin,
                bootstrap_password=self.bootstrap_password,
            )
        )

    def _facts(self, outcome: Outcome) -> banner.Facts:
        backbone = self.backbone
        postgres = "PostgreSQL, yours" if self.database_url else f"PostgreSQL {backbone.postgres.version()}, embedded"
        nats = "NATS, yours" if self.nats_url else f"NATS {backbone.nats.version}, embedded"
        return banner.Facts(
            version=version(),
            seconds=time.monotonic() - self.began,
            url=public_url(self.url),
            setup_token=outcome.setup_token,
            bootstrap_admin=self.options.bootstrap_admin,
            data_dir=self.data_dir.path,
            option=self.data_dir.option(),
            database=postgres,
            database_place="" if self.database_url else banner.shown(self.data_dir.postgres),
            events=nats,
            events_place="" if self.nats_url else banner.shown(self.data_dir.nats),
            services=[slot.name for slot in self.service_slots],
            stop_servers=self.options.stop_servers,
        )

    def _note(self, sentence: str) -> None:
        """Something happened to a process."""
        if not self._quiet:
            complain(f"  {time.strftime('%H:%M:%S')}  {paint(sentence, 'yellow')}")

    def _record(self) -> None:
        """Tells other commands, and the `orrery up` after us, which processes are ours."""
        slots = {
            slot.name: {"pid": slot.identity.pid, "create_time": slot.identity.create_time, "service": slot.service}
            for slot in (*self.backbone_slots, *self.service_slots)
            if slot.identity is not None
        }
        body = {"service": "up", "slot": "up", "pid": os.getpid(), "url": self.url, "version": version()}
        embedded = {"postgres": not self.database_url, "nats": not self.nats_url}
        self.data_dir.write_run_file("up", {**body, "embedded": embedded, "slots": slots})


def _in_url(host: str) -> str:
    """How a person on this machine reaches what listens on `host`."""
    if host in ("", "0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
