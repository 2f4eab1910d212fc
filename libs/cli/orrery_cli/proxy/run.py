"""One `orrery proxy`: a small process that starts what the proxy needs and keeps it running.

orrery proxy ─┬─ proxy      serves the public port and the REST API
              ├─ relay      copies the log to NATS; one replica's leads
              └─ postgres, nats   embedded, unless both are somebody else's (see backbone.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from orrery_cli import datadir, ports
from orrery_cli.console import complain
from orrery_cli.datadir import DataDir
from orrery_cli.errors import CliError, UsageError
from orrery_cli.given import text
from orrery_cli.supervisor import readiness
from orrery_cli.supervisor.children import Child, Identity, Spec, clean_environment
from orrery_cli.supervisor.jobs import Job, Jobs
from orrery_cli.supervisor.lifetime import Lifetime, service_stop_timeout_s, spawn
from orrery_cli.supervisor.logs import Logs
from orrery_cli.supervisor.preload import Preloader
from orrery_cli.supervisor.slot import Slot
from orrery_router.chp.options import ENV, TOKEN_ENV, encode

from .backbone import SharedBackbone
from .early import Early
from .flags import Flags

MODULES: Final = ("orrery_cli.supervisor.work", "orrery_runtime.relay_main", "orrery_router.chp.app")
TARGETS: Final = {"relay": "orrery_runtime.relay_main:main", "proxy": "orrery_router.chp.app:main"}
READY_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.02
NOBODY_LISTENS_S: Final = 2.0
KEEPER: Final = ".keeper"
"""`run/<pid>.keeper`: of a process like this one."""
PREPARE_TIMEOUT_S: Final = 30.0
PREPARE_RETRY_S: Final = 0.2


class ProxyRun:
    """One run of `orrery proxy`."""

    def __init__(self, flags: Flags) -> None:
        self.flags = flags
        self.data_dir = DataDir(
            flags.data_dir or data_dir_for(flags.options.socket.strip("/").replace("/", "-") or str(flags.options.port))
        )
        self.database_url = flags.database_url or text("database_url")
        self.nats_url = flags.nats_url or text("nats_url")
        if bool(self.database_url) != bool(self.nats_url):
            missing = "--nats-url (ORRERY_NATS_URL)" if self.database_url else "--database-url (ORRERY_DATABASE_URL)"
            raise UsageError(f"{missing} is missing: give both to share them with other replicas, or neither")
        if text("workers") not in ("", "1"):
            raise UsageError(
                "ORRERY_WORKERS is not for the proxy: start another one on the same data directory instead"
            )
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self.preloader = Preloader(modules=MODULES)
        self.backbone = None if self.database_url else SharedBackbone(self.data_dir, _note)
        self.slots: list[Slot] = []
        self._lifetime = Lifetime()

    async def run(self) -> int:
        """Returns the exit code. Raises CliError when the proxy cannot be started; what was started is ended."""
        async with AsyncExitStack() as stack:
            try:
                await self._lifetime.last(self._start(stack))
            finally:
                for slot in reversed(self.slots):
                    await slot.close(hurry=self._lifetime.hurry)
                    self.data_dir.remove_run_file(slot.name)
        return 0

    async def _start(self, stack: AsyncExitStack) -> None:
        self.data_dir.prepare()
        stack.callback(self._announce().unlink, missing_ok=True)
        early = Early()
        stack.push_async_callback(early.close)
        for host, port, plain in self._addresses():
            reserved = await self._reserve(stack, host, port)
            if reserved is not None and plain:
                await early.listen(reserved)
        spawn(stack, self._give_way(early))
        if self.flags.pid_file is not None:
            stack.enter_context(_pid_file(self.flags.pid_file))
        stack.callback(self.preloader.close)
        self.preloader.warm()
        death_fd, held = os.pipe()  # `held` closes when this process ends, however it ends
        stack.callback(os.close, held)
        stack.callback(os.close, death_fd)
        await self._open_backbone(stack)
        await self._prepare(Jobs(self.data_dir, Logs(self.data_dir.logs), self.preloader, death_fd=death_fd))
        proxy, relay = (self._slot(service, death_fd) for service in ("proxy", "relay"))
        self.slots = [relay, proxy]
        await asyncio.gather(relay.open(), proxy.open())
        await self._ready(proxy)
        await early.close()
        options = self.flags.options
        public = options.socket or f"{options.ip or '*'}:{options.port}"
        api = options.api_socket or f"{options.api_ip or '*'}:{options.api_port}"
        _note(f"serves {public}, and its REST API at {api}")

    async def _open_backbone(self, stack: AsyncExitStack) -> None:
        if self.backbone is None:
            self.data_dir.keep_secret("database_url", self.database_url)
            for name in ("nats_url", "relay_nats_url"):
                self.data_dir.keep_secret(name, self.nats_url)
            return
        stack.push_async_callback(self.backbone.close, self._lifetime.hurry)
        await self.backbone.open()
        if not self.backbone.holds:
            spawn(stack, self.backbone.succeed())
        spawn(stack, self.backbone.keep_logs())

    async def _prepare(self, jobs: Jobs) -> None:
        """Migrations. Another replica's database may be on its way up."""
        deadline = asyncio.get_running_loop().time() + PREPARE_TIMEOUT_S
        while True:
            job = Job(
                kind="prepare_proxy",
                database_url=self.data_dir.secret("database_url"),
                provision=self.backbone.roles if self.backbone is not None else None,
                nats_url=self.nats_url,
            )
            try:
                await jobs.run(job)
            except CliError as error:
                if self.backbone is None and any(self._snapshots()):
                    _note(f"{error}; until then the routes are those that were known here")
                    return
                if self.backbone is None or self.backbone.holds or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(PREPARE_RETRY_S)
            else:
                return

    def _slot(self, service: str, death_fd: int) -> Slot:
        name = f"{service}-{self.name}"
        spec = Spec(
            target=TARGETS[service],
            name=f"orrery-{service}",
            title=("orrery", "serve", service),
            env=self.environment(service, name, death_fd),
        )

        async def start() -> Child:
            return await self.preloader.start(spec, output=sys.stderr.fileno(), death_fd=death_fd)

        return Slot(name, service, start, note=_note, stop_timeout_s=service_stop_timeout_s())

    def environment(self, service: str, name: str, death_fd: int) -> dict[str, str]:
        """Everything that a process is told. The addresses of database and broker are named by file."""
        secrets = self.data_dir.secrets
        nats = "relay_nats_url" if service == "relay" else "nats_url"
        told = {
            "ORRERY_SLOT": name,
            "ORRERY_DATA_DIR": str(self.data_dir.path),
            "ORRERY_RUN_DIR": str(self.data_dir.run),
            "ORRERY_DEATH_FD": str(death_fd),
            "ORRERY_LOG_LEVEL": self.flags.log_level,
            "ORRERY_DATABASE_URL_FILE": str(secrets / "database_url"),
            "ORRERY_NATS_URL_FILE": str(secrets / nats),
        }
        if service == "proxy":
            if not os.environ.get("ORRERY_SECRET_KEY") and not os.environ.get("ORRERY_SECRET_KEY_FILE"):
                # It seals the snapshots; there is nothing else here that it could be for.
                told["ORRERY_SECRET_KEY_FILE"] = str(self.data_dir.generated_secret("secret_key"))
            told[ENV] = encode(self.flags.options)
            if ops_port := os.environ.get("ORRERY_OPS_PORT"):
                told["ORRERY_OPS_PORT"] = ops_port
        env = clean_environment(told)
        for given in ("ORRERY_DATABASE_URL", "ORRERY_NATS_URL", *([] if service == "proxy" else [TOKEN_ENV])):
            env.pop(given, None)
        return env

    def _snapshots(self, of: str = "*") -> list[Path]:
        """What replicas keep on disk of the routes, the oldest first."""
        return sorted((self.data_dir.snapshots / "proxy").glob(f"{of}.snapshot"), key=lambda file: file.stat().st_mtime)

    async def _ready(self, slot: Slot) -> None:
        """Returns when the proxy serves. Raises CliError when it ends instead; it has said why."""
        deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        while not await readiness.ready(slot, self.data_dir):
            if slot.deaths:
                raise CliError("the proxy could not be started: see the message above")
            if asyncio.get_running_loop().time() > deadline:
                raise CliError(f"the proxy was not ready within {READY_TIMEOUT_S:.0f} s: see its messages above")
            await asyncio.sleep(POLL_S)

    # Ports

    def _addresses(self) -> list[tuple[str, int, bool]]:
        """Host, port, and whether plain HTTP is spoken there."""
        options = self.flags.options
        return [
            (host, port, plain)
            for host, port, plain, wanted in (
                (options.ip, options.port, not options.ssl.cert, not options.socket),
                (options.api_ip, options.api_port, not options.api_ssl.cert, not options.api_socket),
                (options.metrics_ip, options.metrics_port, True, options.metrics_port and not options.metrics_socket),
                (options.ip, options.redirect_port, True, options.redirect_port),
            )
            if wanted
        ]

    async def _reserve(self, stack: AsyncExitStack, host: str, port: int) -> socket.socket | None:
        """Keeps the port ours. None: another replica on this data directory has it, and shares. A stranger does not:
        he would answer from other routes. Raises CliError naming who is in the way."""
        deadline = asyncio.get_running_loop().time() + NOBODY_LISTENS_S
        while True:
            try:
                return stack.enter_context(ports.reserve(host, port))
            except CliError:
                holders = set(ports.holders(port))
                if holders and holders <= self._replicas():
                    return None
                # Somebody may have taken it a moment ago and not listen yet.
                if holders or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(POLL_S)

    async def _give_way(self, early: Early) -> None:
        """Another replica that shares the port, and is ready before us, is to have all requests."""
        port = f":{self.flags.options.port}"
        while True:
            files = self.data_dir.run_files().values()
            if any(file.get("service") == "proxy" and str(file.get("url", "")).endswith(port) for file in files):
                await early.close()
                return
            await asyncio.sleep(POLL_S)

    def _replicas(self) -> set[int]:
        """Pids of the proxies on this data directory, and of those who look after them."""
        files = self.data_dir.run_files().values()
        proxies = {f["pid"] for f in files if f.get("service") == "proxy" and isinstance(f.get("pid"), int)}
        return proxies | {int(file.stem) for file in self.data_dir.run.glob(f"*{KEEPER}")}

    def _announce(self) -> Path:
        """Replicas that were killed leave their files behind; here is ours."""
        for slot, described in self.data_dir.run_files().items():
            if described.get("service") in TARGETS and Identity.of(int(described.get("pid") or 0)) is None:
                self.data_dir.remove_run_file(slot)
        for file in self.data_dir.run.glob(f"*{KEEPER}"):
            if Identity.of(int(file.stem)) is None:
                file.unlink(missing_ok=True)
        ours = self.data_dir.run / f"{os.getpid()}{KEEPER}"
        ours.touch(mode=0o600)
        self._forget_snapshots()
        return ours

    def _forget_snapshots(self) -> None:
        """Of replicas on this machine that are gone, all but the newest."""
        own = f"proxy-{socket.gethostname()}-"
        alive = {f"{own}{file.stem}" for file in self.data_dir.run.glob(f"*{KEEPER}")}
        gone = [file for file in self._snapshots(f"{own}*") if file.stem not in alive]
        for file in gone[:-1]:
            file.unlink(missing_ok=True)


def data_dir_for(place: str) -> Path:
    """`ORRERY_DATA_DIR`, or a folder of its own for every public port or socket: two hubs on one machine must not share
    routes by accident."""
    given = os.environ.get(datadir.ENV)
    return Path(given) if given else datadir.default().with_name(f"{datadir.default().name}-proxy-{place}")


def _note(sentence: str) -> None:
    complain(f"orrery proxy: {sentence}")


@contextlib.contextmanager
def _pid_file(path: Path):  # type: ignore[no-untyped-def]
    try:
        path.write_text(str(os.getpid()))
    except OSError as error:
        raise CliError(f"cannot write --pid-file {path} ({error.strerror}): choose another") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
