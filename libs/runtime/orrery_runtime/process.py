"""The life of a process: start, serve, drain, stop; the same for every service.

    async def body(process: Process) -> None:
        tail = Tail(process.events, process.bus, State, categories=("route",), name="routes")
        await tail.start()
        process.track(tail)
        url = await process.serve_http(make_app(...))
        await process.register(url)
        await process.run_until_stopped()

    def main() -> int:
        return run("api", body)

Start: logs, ops port, Postgres, bus, log; then the body. Stop, on SIGTERM, SIGINT, a lost lease or a dead supervisor:
unready, `instance.draining`, notice; then whatever the body started in reverse order (listeners finish what is under
way), lease, log (flushed), bus, Postgres, ops port. Every step has a bound, and no failing step keeps the next from
happening.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cached_property
from typing import Any, Final

import asyncpg
import structlog
import uvloop
from aiohttp import web

from orrery_events.bus import Bus
from orrery_events.ids import new_id
from orrery_events.log import EventLog
from orrery_events.tail import Tail
from orrery_events.tasks import end_tasks

from . import checks, logging, metrics, redaction, startup, telemetry
from .checks import Follower
from .config import Settings
from .errors import OrreryError
from .health import Health, OpsServer, url_of
from .listener import listen
from .membership import LeaseLoss, Membership
from .runfile import RunFile
from .secrets import Secrets
from .stopping import STEP_TIMEOUT_S
from .version import version

DEATH_FD_ENV: Final = "ORRERY_DEATH_FD"
"""Read end of a pipe whose write end the supervisor holds: end of file means that the supervisor is gone."""
TASK_BACKOFF_MIN_S: Final = 0.2
TASK_BACKOFF_MAX_S: Final = 10.0
TASK_HEALTHY_S: Final = 60.0
"""A task that ran this long starts again with the shortest back-off."""
LOOP_LAG_INTERVAL_S: Final = 0.5

Step = Callable[[], Awaitable[object]]
Body = Callable[["Process"], Awaitable[None]]


class Ended(Exception):
    """The process was told to stop before its body waited for that."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped with exit code {exit_code}")
        self.exit_code = exit_code


class Process:
    """One running process of one service. Made by `Process.open`."""

    pool: asyncpg.Pool
    events: EventLog
    bus: Bus

    def __init__(self, service: str, settings: Settings) -> None:
        self.service = service
        self.settings = settings
        self.slot = settings.slot or f"{service}-{socket.gethostname()}-{os.getpid()}"
        self.instance_id = new_id()
        self.version = version()
        self.started_at = time.time()
        """Unix seconds."""
        self.url = ""
        """Where routers reach this process; empty until `serve_http` or `register`."""
        self.exit_code = 0
        self.logger: structlog.stdlib.BoundLogger = logging.configure(
            service, self.instance_id, level=settings.log_level, fmt=settings.log_format
        )
        self.health = Health(service)
        self.membership: Membership | None = None
        self.tails: list[Follower] = []
        self.details: Callable[[], dict[str, Any]] = dict  # What the service adds to /status.
        self.started_alone = False  # Postgres was away.
        self._ops = OpsServer(self.health, self.status, self.digests)
        self._run_file: RunFile | None = None
        self._stop = asyncio.Event()
        self._waiting = False
        self._main_task = asyncio.current_task()
        self._body = AsyncExitStack()
        self._membership_end = AsyncExitStack()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, service: str, settings: Settings, *, pool_size: int = 5, may_start_alone: bool = False
    ) -> AsyncIterator[Process]:
        """Starts what every process needs and stops it at the end. `may_start_alone`: without Postgres, if need be.
        Raises StartupError, and Ended when the process was told to stop before the body reached `run_until_stopped`."""
        redaction.add_own_secrets(*startup.own_secrets(settings))
        self = cls(service, settings)
        telemetry.configure(service, self.instance_id, otlp_endpoint=settings.otlp_endpoint)
        metrics.BUILD_INFO.labels(self.version, service).set(1)
        try:
            async with AsyncExitStack() as base:
                await self._start(base, pool_size, may_start_alone=may_start_alone)
                try:
                    yield self
                finally:
                    self.health.state = "draining"
        except asyncio.CancelledError:
            if self.stopping:
                raise Ended(self.exit_code) from None
            raise
        except Exception:
            self.exit_code = self.exit_code or 1
            raise
        finally:
            self.logger.info("process_stopped", exit_code=self.exit_code)
            await asyncio.to_thread(telemetry.shutdown)

    @cached_property
    def secrets(self) -> Secrets:
        """Raises ConfigError when `secret_key` is not set."""
        return Secrets(self.settings.secret_key)

    @property
    def ops_url(self) -> str:
        return self._ops.url

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    async def serve_http(self, app: web.Application, *, host: str | None = None, port: int | None = None) -> str:
        """Listens (on the settings' host and port unless told) and returns the URL. At exit the listener closes, and
        requests under way have `drain_timeout_s`. Raises StartupError when the port is taken."""
        settings = self.settings
        wanted = settings.port if port is None else port
        try:
            runner = await listen(app, host or settings.host, wanted, shutdown_timeout_s=settings.drain_timeout_s)
        except OSError as error:
            raise startup.cannot_listen(error, "port", wanted) from None
        self._at_exit(self._body, "http", runner.cleanup, timeout_s=settings.drain_timeout_s + STEP_TIMEOUT_S)
        url = url_of(runner)
        self.url = self.url or settings.advertise_url or url
        return url

    def task(self, name: str, run: Step) -> None:
        """Runs `run` in the background: logged and started again with back-off when it raises, not started again when
        it returns, cancelled at exit."""
        self._begin(self._body, name, run)

    def on_stop(self, name: str, stop: Step) -> None:
        """Calls `stop` at exit, before everything that was started earlier is stopped."""
        self._at_exit(self._body, name, stop)

    def track(self, tail: Follower) -> None:
        """Shows a (started) tail, or whatever else follows the log, in /status and /readyz, and stops it at exit."""
        self.tails.append(tail)
        checks.add_follower(self, tail)
        self._at_exit(self._body, f"follow {tail.name}", tail.stop)

    async def register(self, url: str = "", *, lease_loss: LeaseLoss = "stop") -> None:
        """Announces this process and holds its lease from now on; it counts as ready.

        `url`: where routers reach it (`advertise_url` wins). `lease_loss`: `stop` for a process that claims things,
        `renew` for one that does not (see `Membership`).
        """
        self.url = self.settings.advertise_url or url or self.url
        self.membership = Membership(self, on_loss=lease_loss, stop=self.request_stop)
        try:
            await self.membership.join()
        except OrreryError:
            if not self.started_alone:
                raise  # Otherwise `hold` joins as soon as that is possible.
        # Held until requests under way are finished: to the others this process is alive as long as it works.
        self._at_exit(self._membership_end, "lease", self.membership.leave)
        self._begin(self._membership_end, "lease", self.membership.hold)
        self.health.state = "ready"
        if self._run_file is not None:
            self._run_file.write()
        self.logger.info("process_ready", url=self.url, ops_url=self.ops_url)

    async def run_until_stopped(self) -> None:
        """Returns when the process is to end, after the drain notice."""
        self._waiting = True
        await self._stop.wait()
        self.health.state = "draining"
        self.logger.info("process_draining", exit_code=self.exit_code)
        if self.exit_code == 0:
            if self.membership is not None:
                await self.membership.drain()
            await asyncio.sleep(self.settings.drain_notice_s)

    def request_stop(self, exit_code: int = 0) -> None:
        """Begins the end, as SIGTERM does. The first exit code that is not 0 stays."""
        self.exit_code = self.exit_code or exit_code
        self._stop.set()
        if not self._waiting and self._main_task is not None:
            self._main_task.cancel()

    def status(self) -> dict[str, Any]:
        """What /status says, `ready` and `checks` aside."""
        tails = [
            {
                "name": tail.name,
                "position": tail.position,
                "epoch": tail.epoch,
                "lag": tail.lag,
                "mode": tail.mode,
                "staleness_s": round(tail.staleness_s, 3),
                "restored": isinstance(tail, Tail) and tail.restored,
            }
            for tail in self.tails
        ]
        metrics.BUS_CONNECTED.set(1 if self.bus_connected else 0)
        return {
            "service": self.service,
            "slot": self.slot,
            "instance": self.instance_id,
            "pid": os.getpid(),
            "url": self.url,
            "ops_url": self.ops_url,
            "version": self.version,
            "started_at": self.started_at,
            "state": self.health.state,
            "position": min((tail.position for tail in self.tails), default=0),
            "lag": max((tail.lag for tail in self.tails), default=0),
            "tails": tails,
            "bus": {"connected": self.bus_connected, "last_error": self.bus.last_error if self._has_bus else ""},
            "lease_fresh": self.membership is not None and self.membership.fresh(),
            **self.details(),
        }

    def digests(self) -> list[dict[str, Any]]:
        """Position and digest of every projection, all of one moment: what `orrery replay --verify` compares."""
        tails = [tail for tail in self.tails if isinstance(tail, Tail)]
        return [{"name": t.name, "epoch": t.epoch, "position": t.position, "digest": t.state.digest()} for t in tails]

    @property
    def _has_bus(self) -> bool:
        return hasattr(self, "bus")

    @property
    def bus_connected(self) -> bool:
        return self._has_bus and self.bus.connected

    def _watch_for_the_end(self, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
            stack.callback(loop.remove_signal_handler, number)
        text = os.environ.pop(DEATH_FD_ENV, "")
        if text.isdigit():
            fd = int(text)
            os.set_inheritable(fd, False)
            loop.add_reader(fd, self._on_supervisor_gone, fd)
            stack.callback(loop.remove_reader, fd)

    def _on_signal(self, number: signal.Signals) -> None:
        self.logger.info("signal_received", signal=number.name)
        self.request_stop()

    def _on_supervisor_gone(self, fd: int) -> None:
        with suppress(BlockingIOError):
            if os.read(fd, 64):
                return
        asyncio.get_running_loop().remove_reader(fd)
        self.logger.warning("supervisor_gone")
        self.request_stop()

    async def _start(self, base: AsyncExitStack, pool_size: int, *, may_start_alone: bool) -> None:
        """Brings up what every process has; `base` takes it down again, in reverse order."""
        settings = self.settings
        self._watch_for_the_end(base)
        await self._start_ops()
        self._at_exit(base, "ops", self._ops.stop)
        self.pool, self.started_alone = await startup.connect(
            settings, f"orrery-{self.slot}", pool_size=pool_size, may_start_alone=may_start_alone
        )
        self._at_exit(base, "postgres", lambda: startup.close_pool(self.pool))
        self.bus = Bus(settings.nats_url, name=f"orrery-{self.slot}")
        self._at_exit(base, "bus", self.bus.stop)
        await self.bus.start()
        self.events = EventLog(self.pool, producer=f"{self.service}/{self.instance_id}", nudge=self.bus.nudge)
        self._at_exit(base, "log", self.events.close)
        await self.events.start()
        await startup.require_nats_login(self.bus)
        checks.add_defaults(self)
        await base.enter_async_context(self._membership_end)
        await base.enter_async_context(self._body)
        if settings.run_dir is not None:
            self._run_file = RunFile(settings.run_dir, self)
            base.callback(self._run_file.remove)
        self.task("loop_lag", self._measure_loop_lag)
        self.logger.info("process_started", slot=self.slot, pid=os.getpid(), version=self.version)

    async def _start_ops(self) -> None:
        host, port = self.settings.ops_host, self.settings.ops_port
        try:
            await self._ops.start(host, port)
        except OSError as error:
            raise startup.cannot_listen(error, "ops_port", port) from None

    def _begin(self, stack: AsyncExitStack, name: str, run: Step) -> None:
        task = asyncio.create_task(self._supervise(name, run), name=name)

        self._at_exit(stack, f"task {name}", lambda: end_tasks(task))

    async def _supervise(self, name: str, run: Step) -> None:
        backoff_s = TASK_BACKOFF_MIN_S
        while True:
            started = time.monotonic()
            try:
                await run()
            except Exception:
                metrics.TASK_FAILURES.labels(name).inc()
                if time.monotonic() - started > TASK_HEALTHY_S:
                    backoff_s = TASK_BACKOFF_MIN_S
                self.logger.exception("task_failed", task=name, again_in_s=round(backoff_s, 3))
            else:
                return
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
            backoff_s = min(backoff_s * 2, TASK_BACKOFF_MAX_S)

    async def _measure_loop_lag(self) -> None:
        gauge = metrics.EVENT_LOOP_LAG.labels(self.service)
        while True:
            due = time.monotonic() + LOOP_LAG_INTERVAL_S
            await asyncio.sleep(LOOP_LAG_INTERVAL_S)
            gauge.set(max(0.0, time.monotonic() - due))

    def _at_exit(self, stack: AsyncExitStack, name: str, stop: Step, *, timeout_s: float = STEP_TIMEOUT_S) -> None:
        """Stops something at exit; it can neither hang nor keep the others from being stopped."""

        async def step() -> None:
            try:
                await asyncio.wait_for(_awaited(stop), timeout_s)
            except Exception:
                self.logger.exception("stop_step_failed", step=name)

        stack.push_async_callback(step)


async def _awaited(stop: Step) -> None:
    await stop()


def run(
    service: str, body: Body, *, settings: Settings | None = None,
    may_start_alone: Callable[[Settings], bool] = lambda _settings: False,
) -> int:  # fmt: skip
    """Runs a service to its end and returns the exit code. A process that cannot start says why in one sentence."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            settings = settings or Settings.load()
            return runner.run(_main(service, body, settings, alone=may_start_alone(settings)))
    except OrreryError as error:
        sys.stderr.write(f"orrery {service}: {redaction.redact_text(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        return 130


async def _main(service: str, body: Body, settings: Settings, *, alone: bool) -> int:
    try:
        async with Process.open(service, settings, may_start_alone=alone) as process:
            await body(process)
    except Ended as ended:
        return ended.exit_code
    except OrreryError:
        raise
    except Exception:  # noqa: BLE001 (the last frame of the service)
        # Through the log, so that the traceback passes the redaction like everything else.
        structlog.get_logger("orrery.process").exception("process_failed", service=service)
        return 1
    return process.exit_code
