"""One replica as several processes, so that it uses every core: `workers` of them share the port (SO_REUSEPORT).

Each worker is a whole process of the service with its own projection, lease, snapshot and slot (`router-1.2` is the
second worker of `router-1`). The parent holds the port's number, starts again with back-off what ends, forwards the
stop to all and waits for them to drain. It does no work of its own, so that nothing can slow it down; should it be
killed, the workers notice and end.

To the outside there is one replica with one ops port, the parent's:

`/livez`    the parent runs.
`/readyz`   200 once every worker has been ready, and from then on while at least one is: while another starts again,
            the port is served. `?verbose` names those that are not.
`/metrics`  all workers' metrics, each with the label `worker`, and the parent's own.
`/status`   the workers, and where to ask each.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
import uvloop
from prometheus_client import Counter, Gauge

from orrery_events.errors import OrreryError
from orrery_events.ids import new_id
from orrery_events.tasks import end_tasks

from . import logging, metrics, redaction, startup
from .config import ENV_PREFIX, Settings
from .exposition import merged
from .health import Health, OpsServer
from .process import DEATH_FD_ENV
from .runfile import RunFile, read_run_file
from .stopping import stop_timeout_s
from .version import version

BACKOFF_S: Final = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Before a worker that ended is started again; the last one for all later ones."""
HEALTHY_S: Final = 30.0
"""A worker that ran this long starts again without delay."""
STARTING_INTERVAL_S: Final = 0.1
ASK_INTERVAL_S: Final = 1.0
ASK_TIMEOUT_S: Final = 2.0
METRICS_BYTES_MAX: Final = 8 * 2**20

ENDED: Final = Counter("orrery_workers_ended", "Workers that ended without being told to.")
WORKERS_READY: Final = Gauge("orrery_workers_ready", "Workers that take work.")

_log = structlog.get_logger("orrery.workers")


class Worker:
    """The place of one worker."""

    def __init__(self, slot: str, number: int) -> None:
        self.number, self.slot = number, f"{slot}.{number}"
        self.process: asyncio.subprocess.Process | None = None
        self.ready = self.was_ready = False
        self.ops_url = ""
        self.failures = 0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None


class Workers:
    """The parent."""

    def __init__(self, service: str, settings: Settings, program: Sequence[str], run_dir: Path) -> None:
        """`program`: what each worker runs. `run_dir`: where workers write where they can be asked."""
        self.service, self.settings = service, settings
        self.slot = settings.slot or f"{service}-{socket.gethostname()}-{os.getpid()}"
        self.instance_id = new_id()
        self.workers = [Worker(self.slot, number) for number in range(1, settings.workers + 1)]
        self.exit_code = 0
        self.started_at = time.time()
        self._program, self._run_dir = list(program), run_dir
        self._health = Health(service)
        self._ops = OpsServer(self._health, self.status, exposition=self._exposition)
        self._stop = asyncio.Event()
        self._port = settings.port

    async def run(self) -> int:
        """Returns the exit code when all have ended. Raises StartupError when a port cannot be had."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with AsyncExitStack() as stack:
            if not self.settings.listen:
                stack.callback(self._reserve().close)
            stack.push_async_callback(self._ops.stop)
            try:
                await self._ops.start(self.settings.ops_host, self.settings.ops_port)
            except OSError as error:
                raise startup.cannot_listen(error, "ops_port", self.settings.ops_port) from None
            self._http = await stack.enter_async_context(
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_TIMEOUT_S))
            )
            self._death_fd, held = os.pipe()  # `held` closes when this process ends, however it ends.
            stack.callback(os.close, held)
            stack.callback(os.close, self._death_fd)
            self._health.add("workers", self._some_ready, code="ORR-WRK-01")
            self._health.add("every worker", self._all_ready, code="ORR-WRK-02", required=False)
            if self.settings.run_dir is not None:
                run_file = RunFile(self.settings.run_dir, self)
                stack.callback(run_file.remove)
            tasks = [asyncio.create_task(self._keep(worker)) for worker in self.workers]
            asking = asyncio.create_task(self._ask())
            _log.info("workers_started", slot=self.slot, pid=os.getpid(), count=len(tasks), ops_url=self._ops.url)
            await self._stop.wait()
            self._health.state = "draining"
            await end_tasks(asking, *tasks)
            await asyncio.gather(*(self._end(worker) for worker in self.workers))
        _log.info("workers_stopped", exit_code=self.exit_code)
        return self.exit_code

    def status(self) -> dict[str, Any]:
        """As of a process; its workers have the details."""
        told = [{"slot": w.slot, "pid": w.pid, "ready": w.ready, "ops_url": w.ops_url} for w in self.workers]
        return {
            "service": self.service,
            "slot": self.slot,
            "instance": self.instance_id,
            "pid": os.getpid(),
            "url": self._url,
            "ops_url": self._ops.url,
            "version": version(),
            "started_at": self.started_at,
            "state": self._health.state,
            "workers": told,
        }

    @property
    def _url(self) -> str:
        """Where the workers listen together; the first place if there are several."""
        if self.settings.listen:
            return self.settings.listen.split(",")[0].strip()
        host = self.settings.host
        scheme = "https" if self.settings.tls_cert_files else "http"
        return f"{scheme}://[{host}]:{self._port}" if ":" in host else f"{scheme}://{host}:{self._port}"

    # The workers' life

    async def _keep(self, worker: Worker) -> None:
        while True:
            await asyncio.sleep(BACKOFF_S[min(worker.failures, len(BACKOFF_S) - 1)])
            began = time.monotonic()
            worker.process = process = await asyncio.create_subprocess_exec(
                *self._program,
                env=self._environment(worker),
                pass_fds=[self._death_fd],
                stdin=asyncio.subprocess.DEVNULL,
            )
            code = await process.wait()
            worker.ready, worker.ops_url = False, ""
            ENDED.inc()
            _log.warning("worker_ended", slot=worker.slot, pid=process.pid, exit_code=code)
            if not any(other.was_ready for other in self.workers):
                # None can start, and it has said why: whoever runs us decides what to do.
                self.exit_code = code if code > 0 else 1
                self._stop.set()
                return
            worker.failures = 1 if time.monotonic() - began > HEALTHY_S else worker.failures + 1

    async def _end(self, worker: Worker) -> None:
        process = worker.process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        settings = self.settings
        try:
            timeout_s = stop_timeout_s(
                drain_notice_s=settings.drain_notice_s,
                drain_timeout_s=settings.drain_timeout_s,
                websocket_drain_s=settings.websocket_drain_s,
            )
            async with asyncio.timeout(timeout_s):
                code = await process.wait()
        except TimeoutError:
            _log.error("worker_killed", slot=worker.slot, pid=process.pid, reason="it did not end in time")
            with suppress(ProcessLookupError):
                process.kill()
            code = await process.wait()
        self.exit_code = self.exit_code or (code if code >= 0 else 1)

    def _environment(self, worker: Worker) -> dict[str, str]:
        own = {
            "workers": "1",
            "slot": worker.slot,
            "port": str(self._port),
            "ops_host": "127.0.0.1",
            "ops_port": "0",
            "run_dir": str(self._run_dir),
            # Without a slot of ours, the worker's is another one after each start.
            "snapshots": str(self.settings.snapshots and bool(self.settings.slot)),
        }
        told = {f"{ENV_PREFIX}{name.upper()}": value for name, value in own.items()}
        return {**os.environ, **told, DEATH_FD_ENV: str(self._death_fd)}

    def _reserve(self) -> socket.socket:
        """Holds the port's number without listening, so that it is one for all, and known to be free. Raises
        StartupError."""
        host = self.settings.host
        holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((host, self.settings.port))
        except OSError as error:
            holder.close()
            raise startup.cannot_listen(error, "port", self.settings.port) from None
        self._port = holder.getsockname()[1]
        return holder

    # How they are

    async def _ask(self) -> None:
        while True:
            await asyncio.gather(*(self._ask_one(worker) for worker in self.workers))
            WORKERS_READY.set(sum(worker.ready for worker in self.workers))
            if self._health.state == "starting" and all(worker.was_ready for worker in self.workers):
                self._health.state = "ready"
                _log.info("process_ready", url=self.status()["url"], ops_url=self._ops.url)
            await asyncio.sleep(ASK_INTERVAL_S if self._health.state == "ready" else STARTING_INTERVAL_S)

    async def _ask_one(self, worker: Worker) -> None:
        found = read_run_file(self._run_dir, worker.slot)
        worker.ops_url = str(found["ops_url"]) if found.get("pid") == worker.pid and worker.pid is not None else ""
        worker.ready = bool(worker.ops_url) and (await self._get(worker, "/readyz"))[0] == 200
        if worker.ready and not worker.was_ready:
            worker.was_ready, worker.failures = True, 0

    async def _get(self, worker: Worker, path: str) -> tuple[int, bytes]:
        try:
            async with self._http.get(worker.ops_url + path) as answer:
                return answer.status, await answer.content.read(METRICS_BYTES_MAX)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0, b""

    async def _some_ready(self) -> str:
        return "" if any(worker.ready for worker in self.workers) else "no worker is ready"

    async def _all_ready(self) -> str:
        missing = [worker.slot for worker in self.workers if not worker.ready]
        return f"not ready: {', '.join(missing)}" if missing else ""

    async def _exposition(self) -> bytes:
        asked = [worker for worker in self.workers if worker.ops_url]
        answers = await asyncio.gather(*(self._get(worker, "/metrics") for worker in asked))
        texts = {str(worker.number): body.decode() for worker, (_, body) in zip(asked, answers, strict=True)}
        return merged(metrics.exposition().decode(), texts).encode()


def run_workers(service: str, settings: Settings, program: Sequence[str]) -> int:
    """Runs the parent to its end and returns the exit code. A parent that cannot start says why in one sentence."""
    redaction.add_own_secrets(*startup.own_secrets(settings))
    logging.configure(service, new_id(), level=settings.log_level, fmt=settings.log_format)

    async def main() -> int:
        with tempfile.TemporaryDirectory(prefix="orrery-workers-") as private:
            return await Workers(service, settings, program, settings.run_dir or Path(private)).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except OrreryError as error:
        sys.stderr.write(f"orrery {service}: {redaction.redact_text(str(error))}\n")
        return 1
