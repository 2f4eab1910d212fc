"""Starting servers: who waits, who gets a slot, and one task per start from the claim to its end.

Every spawner's projection knows every server that waits, so there is no queue to lose: a free slot goes to the waiting
server whose owner has the fewest starts under way, and among those to the one that asked first. A message from NATS
only says "now, and you": without it (or when it went to a spawner without a free slot) a server becomes everybody's
after NOTICE_DELAY_S.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from orrery_events.errors import Conflict, LogUnavailable
from orrery_events.server_state import ENDED, Phase, Server
from orrery_events.tasks import end_tasks
from orrery_runtime.telemetry import processing, tracer

from . import domain, metrics, saga
from .domain import Failure
from .drivers.base import Driver, DriverUnavailable, LaunchSpec, ServerKey
from .failpoints import failpoint
from .ledger import Fenced, Ledger
from .projections import SpawnerState
from .saga import LAUNCH_STEPS, Launch, StartFailed, Superseded

NOTICE_DELAY_S = 0.25
"""How long a start that some spawner was told about by NATS is left to it, jittered upwards by as much again."""

_log = structlog.get_logger("orrery.spawner.starts")


@dataclass(kw_only=True)
class Context:
    """What starts and stops need of the process around them."""

    instance_id: str
    ledger: Ledger
    state: Callable[[], SpawnerState]
    drivers: dict[str, Driver]
    accepting: Callable[[], bool]
    """False while draining or without a fresh lease: nothing new is claimed."""
    eager: Callable[[], bool]
    """True while NATS is away, so that nobody else was told either."""
    server_secret: Callable[[str, int], str]
    base_path: str
    """The platform's base path; ends with `/`."""
    stop_grace_s: float

    def driver_of(self, server: Server) -> Driver | None:
        profile = self.state().profile(server.last.profile) if server.last is not None else None
        return self.drivers.get(profile.driver) if profile is not None else None


@dataclass(kw_only=True)
class Running:
    """A start that this process works on."""

    task: asyncio.Task[None]
    user_id: str
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the claim is won or lost."""
    saga: asyncio.Task[None] | None = None
    over: bool = False
    """The log says that this start has ended or belongs to somebody else."""


class Starts:
    """All starts of this process."""

    def __init__(self, context: Context, *, slots: int) -> None:
        self._context = context
        self._slots = slots
        self._running: dict[str, Running] = {}
        self._waiting: dict[str, str] = {}
        """Server id to the instance whose claim may be taken over; empty: none."""
        self._timers: set[asyncio.TimerHandle] = set()
        self._closed = False

    @property
    def busy(self) -> frozenset[str]:
        """Servers that are being started here."""
        return frozenset(self._running)

    def notice(self, server_id: str) -> None:
        """It waits, as everybody has heard: it is taken at once if nobody was told by NATS, else a little later."""
        if self._context.eager():
            self.offer(server_id)
            return
        delay_s = NOTICE_DELAY_S * random.uniform(1.0, 2.0)  # noqa: S311 (jitter, not a secret)

        def due() -> None:
            self._timers.discard(timer)
            self.offer(server_id)

        timer = asyncio.get_running_loop().call_later(delay_s, due)
        self._timers.add(timer)

    def offer(self, server_id: str, *, dead: str = "") -> None:
        """It waits, or the instance that has claimed it is `dead`: it may be claimed here once a slot is free."""
        if self._closed or server_id in self._running:
            return
        self._waiting[server_id] = dead
        # A little later, so that of many who are offered together the right one goes first.
        asyncio.get_running_loop().call_soon(self._fill)

    async def offered(self, server_id: str) -> None:
        """The same; returns once it is claimed, or was lost to somebody else, or has to wait for a slot."""
        self.offer(server_id)
        self._fill()
        running = self._running.get(server_id)
        if running is not None:
            await running.decided.wait()

    def heard(self, server: Server) -> None:
        """An event about a server: a start of it that is under way here may be over."""
        running = self._running.get(server.server_id)
        if running is None or running.saga is None or running.over:
            return
        if server.phase is not Phase.CLAIMED or server.claimed_by != self._context.instance_id:
            running.over = True
            running.saga.cancel()

    async def close(self) -> None:
        """Walks away from all starts; what was begun is adopted by the next spawner."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        tasks = [running.task for running in self._running.values()]
        await end_tasks(*tasks)

    def _fill(self) -> None:
        while not self._closed and len(self._running) < self._slots and self._context.accepting():
            server_id = self._choose()
            if server_id is None:
                break
            dead = self._waiting.pop(server_id)
            # In a context of its own: what frees a slot has nothing to do with who gets it.
            task = asyncio.create_task(
                self._work(server_id, dead), name=f"start-{server_id}", context=contextvars.Context()
            )
            self._running[server_id] = Running(task=task, user_id=self._user_of(server_id))
        metrics.STARTS_WAITING.set(len(self._waiting))

    def _choose(self) -> str | None:
        state = self._context.state()
        servers = state.servers
        under_way = Counter(running.user_id for running in self._running.values())
        elsewhere = (entry.server for entry in state.in_phase(Phase.CLAIMED))
        under_way.update(s.last.user_id for s in elsewhere if s.last and s.server_id not in self._running)
        best: tuple[int, int, str] | None = None
        for server_id in list(self._waiting):
            entry = servers.get(server_id)
            if entry is None or not self._claimable(entry.server, self._waiting[server_id]):
                del self._waiting[server_id]
                continue
            rank = (under_way[self._user_of(server_id)], entry.position, server_id)
            best = min(best, rank) if best is not None else rank
        return best[2] if best is not None else None

    def _user_of(self, server_id: str) -> str:
        entry = self._context.state().servers.get(server_id)
        return entry.server.last.user_id if entry is not None and entry.server.last is not None else ""

    @staticmethod
    def _claimable(server: Server, dead: str) -> bool:
        return server.phase is Phase.REQUESTED or (server.phase is Phase.CLAIMED and server.claimed_by == dead)

    async def _work(self, server_id: str, dead: str) -> None:
        running = self._running[server_id]
        try:
            entry = self._context.state().servers[server_id]
            age_s = time.time() - entry.recorded_at
            with processing("spawn server", entry.meta, age_s=age_s) as span:
                span.set_attribute("orrery.server.id", server_id)
                await self._claim_and_launch(server_id, dead, running)
        except (LogUnavailable, Conflict, Fenced) as error:
            # The reconciler comes back to it, here or elsewhere.
            _log.warning("start_left", server_id=server_id, reason=str(error))
        except Exception:  # noqa: BLE001 (one start's fault must not end the others)
            _log.exception("start_left", server_id=server_id)
        finally:
            running.decided.set()
            self._running.pop(server_id, None)
            self._fill()

    async def _claim_and_launch(self, server_id: str, dead: str, running: Running) -> None:
        context, me = self._context, self._context.instance_id
        context.ledger.fence()
        await failpoint("spawner.before_claim")
        server = await context.ledger.settle(
            server_id, lambda server: domain.claim_start(server, me, dead=dead, now=time.time())
        )
        await failpoint("spawner.after_claim")
        running.decided.set()
        if not server.is_start_of(me, server.generation):
            return
        _log.info("start_claimed", server_id=server_id, generation=server.generation, taken_over_from=dead)
        backend = driver.name if (driver := context.driver_of(server)) else "none"
        with metrics.STARTS_IN_PROGRESS.labels(backend).track_inprogress():
            outcome = await self._launch(server, running, taken_over=bool(dead))
        metrics.STARTS.labels(backend, outcome).inc()

    async def _launch(self, server: Server, running: Running, *, taken_over: bool) -> str:
        """The saga and its end. Returns how it ended, in a word."""
        began = time.monotonic()
        try:
            launch = await self._plan(server)
        except StartFailed as error:
            outcome = await self._fail(server, None, error.failure)
            _log.warning("start_failed", server_id=server.server_id, reason=error.failure.reason)
            return outcome
        running.saga = asyncio.create_task(self._run(launch, taken_over=taken_over))
        known = self._context.state().servers.get(server.server_id)
        if known is not None and known.server.version > server.version:
            self.heard(known.server)
        try:
            await asyncio.shield(running.saga)
        except StartFailed as error:
            outcome = await self._fail(server, launch, error.failure)
        except Superseded:
            outcome = await self._abandon(launch)
        except asyncio.CancelledError:
            if not running.over:
                running.saga.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await running.saga
                raise
            outcome = await self._abandon(launch)
        else:
            outcome = await self._finish(server, launch)
        _log.info(
            "start_ended",
            server_id=server.server_id,
            generation=server.generation,
            outcome=outcome,
            target=launch.target,
            attempts=launch.attempt,
            duration_s=round(time.monotonic() - began, 3),
            since_request_s=round(time.time() - (server.last.requested_at if server.last else 0.0), 3),
        )
        return outcome

    async def _run(self, launch: Launch, *, taken_over: bool) -> None:
        with tracer().start_as_current_span(f"spawn {launch.driver.name}") as span:
            span.set_attribute("orrery.server.id", launch.spec.key.server_id)
            span.set_attribute("orrery.server.generation", launch.spec.key.generation)
            if taken_over:
                await launch.say("claim", 5, "The start was interrupted and goes on…")
            await saga.run(launch, LAUNCH_STEPS)

    async def _plan(self, server: Server) -> Launch:
        """Raises StartFailed if nothing can be started by this profile."""
        context, last = self._context, server.last
        if last is None:
            raise ValueError(f"server {server.server_id} has no history")
        profile = context.state().profile(last.profile)
        if profile is None:
            message = f"There is no profile {last.profile!r} any more. Choose another one."
            raise StartFailed(Failure(reason="profile_unknown", message=message))
        driver = context.drivers.get(profile.driver)
        if driver is None:
            message = f"The profile {last.profile!r} asks for the driver {profile.driver!r}, which is not set up here."
            raise StartFailed(Failure(reason="driver_error", message=message))
        public_path = context.base_path.rstrip("/") + server.url_path
        spec = LaunchSpec(
            key=ServerKey(server.server_id, server.generation),
            user_name=last.user_name,
            command=tuple(profile.command),
            public_path=public_path,
            base_url="/" if profile.strip_prefix else public_path,
            secret_env=profile.secret_env,
            secret=context.server_secret(server.server_id, server.generation),
        )

        async def say(step: str, percent: int, message: str) -> None:
            await self._say(server, step, percent, message)

        deadline = min(server.deadline, time.time() + profile.start_timeout_s)
        return Launch(spec=spec, profile=profile, driver=driver, deadline=deadline, say=say, fence=context.ledger.fence)

    async def _say(self, server: Server, step: str, percent: int, message: str) -> None:
        me, generation = self._context.instance_id, server.generation
        after = await self._context.ledger.settle_surely(
            server.server_id,
            lambda now: domain.progress(now, me, generation, step=step, percent=percent, message=message),
        )
        if not after.is_start_of(me, generation):
            raise Superseded

    async def _finish(self, server: Server, launch: Launch) -> str:
        me, generation = self._context.instance_id, server.generation
        await failpoint("spawner.before_ready")
        after = await self._context.ledger.settle_surely(
            server.server_id,
            lambda now: domain.ready(
                now, me, generation, target=launch.target, profile=launch.profile, now=time.time()
            ),
        )
        await failpoint("spawner.after_ready")
        if after.phase is Phase.READY and after.generation == generation and after.claimed_by == me:
            return "ready"
        return await self._abandon(launch)

    async def _fail(self, server: Server, launch: Launch | None, failure: Failure) -> str:
        """Says so in the log; only then is anything taken back."""
        me, generation = self._context.instance_id, server.generation
        await failpoint("spawner.before_failed")
        after = await self._context.ledger.settle_surely(
            server.server_id, lambda now: domain.fail(now, me, generation, failure)
        )
        await failpoint("spawner.after_failed")
        if launch is not None:
            await self._undo_if_over(launch, after)
        return failure.reason

    async def _abandon(self, launch: Launch) -> str:
        """The start was cancelled, or belongs to somebody else by now."""
        after = await self._context.ledger.load(launch.spec.key.server_id)
        return "cancelled" if await self._undo_if_over(launch, after) else "superseded"

    async def _undo_if_over(self, launch: Launch, server: Server) -> bool:
        """Takes the start back if the log says that this generation has ended. True if it does."""
        key = launch.spec.key
        over = server.generation > key.generation or (server.generation == key.generation and server.phase in ENDED)
        if over:
            try:
                await saga.undo(launch, LAUNCH_STEPS)
            except DriverUnavailable as error:
                # What is left is found by the reconciler.
                _log.warning("undo_left", server=str(key), reason=str(error))
            await failpoint("spawner.after_undo")
        return over
