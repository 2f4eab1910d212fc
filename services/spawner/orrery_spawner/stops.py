"""Ending servers: claim (which takes the route away), end the process, say so."""

from __future__ import annotations

import asyncio
import contextvars
import random
import time

import structlog

from orrery_events.errors import Conflict, LogUnavailable
from orrery_events.server_state import Phase, Server
from orrery_events.tasks import end_tasks
from orrery_runtime.telemetry import processing

from . import domain, metrics
from .drivers.base import Driver, DriverUnavailable, ServerKey
from .failpoints import failpoint
from .ledger import Fenced
from .starts import NOTICE_DELAY_S, Context

STOPS_MAX = 32
"""Servers that are being ended here at once; more wait."""

_log = structlog.get_logger("orrery.spawner.stops")


class Stops:
    """All stops of this process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._claims: dict[str, asyncio.Event] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._slots = asyncio.Semaphore(STOPS_MAX)
        self._closed = False

    @property
    def busy(self) -> frozenset[str]:
        """Servers that are being ended here."""
        return frozenset(self._tasks)

    def notice(self, server: Server) -> None:
        """It is to end, as everybody has heard: the spawner that started it goes first, others a little later."""
        if server.claimed_by == self._context.instance_id or self._context.eager():
            self.offer(server.server_id)
            return
        delay_s = NOTICE_DELAY_S * random.uniform(1.0, 2.0)  # noqa: S311 (jitter, not a secret)

        def due() -> None:
            self._timers.discard(timer)
            self.offer(server.server_id)

        timer = asyncio.get_running_loop().call_later(delay_s, due)
        self._timers.add(timer)

    def offer(self, server_id: str, *, dead: str = "") -> None:
        """It is to end, or the instance that was ending it is `dead`: end it, unless another has claimed that."""
        known = server_id in self._context.state().servers
        if self._closed or not known or server_id in self._tasks or not self._context.accepting():
            return
        self._claims[server_id] = asyncio.Event()
        self._tasks[server_id] = asyncio.create_task(
            self._work(server_id, dead), name=f"stop-{server_id}", context=contextvars.Context()
        )

    async def offered(self, server_id: str) -> None:
        """The same; returns once it is claimed or was lost to somebody else."""
        self.offer(server_id)
        claim = self._claims.get(server_id)
        if claim is not None:
            await claim.wait()

    async def close(self) -> None:
        """Walks away; the next spawner claims them again."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        tasks = list(self._tasks.values())
        await end_tasks(*tasks)

    async def _work(self, server_id: str, dead: str) -> None:
        try:
            entry = self._context.state().servers[server_id]
            async with self._slots:
                with processing("stop server", entry.meta, age_s=time.time() - entry.recorded_at) as span:
                    span.set_attribute("orrery.server.id", server_id)
                    await self._stop(server_id, dead)
        except (LogUnavailable, Conflict, Fenced, DriverUnavailable) as error:
            # The reconciler comes back to it, here or elsewhere.
            _log.warning("stop_left", server_id=server_id, reason=str(error))
        except Exception:  # noqa: BLE001 (one stop's fault must not end the others)
            _log.exception("stop_left", server_id=server_id)
        finally:
            self._claims.pop(server_id).set()
            self._tasks.pop(server_id, None)

    async def _stop(self, server_id: str, dead: str) -> None:
        context, me = self._context, self._context.instance_id
        context.ledger.fence()
        await failpoint("spawner.before_stop_claim")
        server = await context.ledger.settle(server_id, lambda server: domain.claim_stop(server, me, dead=dead))
        await failpoint("spawner.after_stop_claim")
        self._claims[server_id].set()
        if server.phase is not Phase.STOP_CLAIMED or server.claimed_by != me:
            return
        exit_code = await self._end(server)
        await failpoint("spawner.before_stopped")
        after = await context.ledger.settle_surely(
            server_id, lambda now: domain.stopped(now, me, exit_code=exit_code, log_tail=[])
        )
        await failpoint("spawner.after_stopped")
        _log.info("server_stopped", server_id=server_id, generation=server.generation, exit_code=exit_code)
        metrics.STOPS.labels("requested").inc()
        if after.phase is Phase.REMOVED:
            for driver in context.drivers.values():
                await driver.purge(server_id)

    async def _end(self, server: Server) -> int | None:
        """Ends the server wherever it is found. Returns its exit code if that can be known."""
        key = ServerKey(server.server_id, server.generation)
        exit_code: int | None = None
        for driver in self._candidates(server):
            observed = await driver.stop(key, self._context.stop_grace_s)
            await failpoint("spawner.after_kill")
            exit_code = observed.exit_code if observed.exit_code is not None else exit_code
            await driver.remove(key)
        return exit_code

    def _candidates(self, server: Server) -> list[Driver]:
        """The driver that its profile names; all of them if the profile is gone."""
        driver = self._context.driver_of(server)
        return [driver] if driver is not None else list(self._context.drivers.values())
