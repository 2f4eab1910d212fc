"""What should be against what is, every few seconds and whenever there is reason to look.

This is what makes starts and stops correct; messages only make them fast. One pass:

    1. note which servers the projection has as ready
    2. survey the drivers
    3. catch up with the log's head (it is read after the survey)
    4. who is alive?
    5. `plan` compares, and every difference is handed to whoever deals with it

The order is the point. What a driver shows is only judged by a log that is at least as new, so a start that was
claimed and forked meanwhile is never taken for an orphan; and a server counts as vanished only if it was ready before
the survey that does not show it. A driver or a database that does not answer says nothing: then nothing is done.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Literal, NamedTuple, get_args

import structlog

from orrery_events.errors import Conflict, LogUnavailable
from orrery_events.server_state import ENDED, Phase, Server
from orrery_events.tasks import end_tasks

from . import domain, metrics
from .domain import OVERDUE_GRACE_S
from .drivers.base import DriverUnavailable, Observed, ServerKey
from .failpoints import failpoint
from .ledger import Fenced
from .logtail import LINES_MAX, presentable
from .projections import Entry
from .saga import UNDO_GRACE_S, ending
from .starts import Context, Starts
from .stops import Stops

ORPHAN_GRACE_S = 15.0
"""Age below which nothing is taken for an orphan."""
CATCH_UP_TIMEOUT_S = 2.0
PASS_INTERVAL_MIN_S = 0.2
"""However much happens, passes are at least this far apart."""
CLEANUPS_MAX = 16
"""Leftovers that are ended at once."""

Kind = Literal["start", "take_over", "stop", "take_over_stop", "expire", "suspect", "vanished", "cleanup"]
"""`suspect`: vanished, but left for one pass to the live spawner that started it and may know its exit code."""

_log = structlog.get_logger("orrery.spawner.reconcile")


class Drift(NamedTuple):
    """One difference between what should be and what is."""

    kind: Kind
    key: ServerKey
    dead: str = ""
    """The instance whose claim may be taken over."""
    driver: str = ""


class Survey(NamedTuple):
    """What a pass has found out. `live` is None when nobody could say; so is a driver's list, by being absent."""

    ready_before: Mapping[str, int]
    """Server id to generation of the servers that were ready before the drivers were asked."""
    observed: Mapping[str, list[Observed]]
    """Driver name to what it has."""
    servers: Mapping[str, Entry]
    """The projection, after it caught up."""
    caught_up: bool
    live: Collection[str] | None


def plan(
    survey: Survey,
    *,
    instance_id: str,
    busy: Collection[str],
    driver_of: Callable[[Server], str],
    suspects: Collection[ServerKey],
    now: float,
) -> list[Drift]:
    """All differences. `busy`: servers that this process works on. `suspects`: ready servers that the last pass already
    did not see, but left to the live spawner that started them."""
    seen = {name: {o.key: o for o in listed} for name, listed in survey.observed.items()}
    found: list[Drift] = []
    for server_id, entry in survey.servers.items():
        server, key = entry.server, ServerKey(server_id, entry.server.generation)
        drift = _unclaimed(server, key, now)
        if drift is None and server_id not in busy:
            drift = _abandoned(server, key, survey.live, instance_id, now)
        if drift is None and survey.ready_before.get(server_id) == server.generation:
            drift = _vanished(server, key, seen, driver_of(server))
            owner_lives = survey.live is None or server.claimed_by in survey.live
            if drift and owner_lives and server.claimed_by != instance_id and key not in suspects:
                drift = drift._replace(kind="suspect")
        if drift is not None:
            found.append(drift)
    for name, listed in survey.observed.items():
        found += [
            Drift("cleanup", o.key, driver=name)
            for o in listed
            if o.key.server_id not in busy and _is_leftover(o, survey, now)
        ]
    return found


def _unclaimed(server: Server, key: ServerKey, now: float) -> Drift | None:
    if server.phase is Phase.REQUESTED:
        return Drift("expire" if now >= server.deadline else "start", key)
    return Drift("stop", key) if server.phase is Phase.STOP_REQUESTED else None


def _abandoned(
    server: Server, key: ServerKey, live: Collection[str] | None, instance_id: str, now: float
) -> Drift | None:
    """A claim that nobody works on: its instance is gone, or this process lost track of it."""
    if server.phase not in (Phase.CLAIMED, Phase.STOP_CLAIMED):
        return None
    if server.phase is Phase.CLAIMED and now >= server.deadline + OVERDUE_GRACE_S:
        return Drift("expire", key)
    gone = server.claimed_by == instance_id or (live is not None and server.claimed_by not in live)
    if not gone or (server.phase is Phase.CLAIMED and now >= server.deadline):
        return None
    return Drift("take_over" if server.phase is Phase.CLAIMED else "take_over_stop", key, dead=server.claimed_by)


def _vanished(
    server: Server, key: ServerKey, seen: Mapping[str, Mapping[ServerKey, Observed]], driver: str
) -> Drift | None:
    """A ready server that its driver, which did answer, does not see running."""
    if server.phase is not Phase.READY or driver not in seen:
        return None
    observed = seen[driver].get(key)
    running = observed is not None and observed.state in ("running", "starting")
    return None if running else Drift("vanished", key, driver=driver)


def _is_leftover(observed: Observed, survey: Survey, now: float) -> bool:
    """Something that exists although the log says that it must not (any more)."""
    entry = survey.servers.get(observed.key.server_id)
    if entry is not None and observed.key.generation == entry.server.generation:
        return entry.server.phase in ENDED
    if entry is not None and observed.key.generation > entry.server.generation:
        # The log has never heard of it: it may have lost its end. Not ours to judge.
        return False
    return survey.caught_up and now - observed.created_at > ORPHAN_GRACE_S


class Reconciler:
    """Runs passes, and ends what `plan` says must not be."""

    def __init__(
        self,
        context: Context,
        starts: Starts,
        stops: Stops,
        *,
        catch_up: Callable[[float], Awaitable[bool]],
        live: Callable[[], Awaitable[frozenset[str]]],
        interval_s: float,
    ) -> None:
        self._context = context
        self._starts = starts
        self._stops = stops
        self._catch_up = catch_up
        self._live = live
        self._interval_s = interval_s
        self.unavailable: dict[str, str] = {}
        """Driver name to why it could not answer in the last pass."""
        self._wake = asyncio.Event()
        self._suspects: set[ServerKey] = set()
        self._cleaning: dict[ServerKey, asyncio.Task[None]] = {}
        self._checking: set[asyncio.Task[None]] = set()
        for driver in context.drivers.values():
            driver.on_exit(self.exited)

    def wake(self) -> None:
        """There is reason to look now."""
        self._wake.set()

    def exited(self, key: ServerKey) -> None:
        """A driver saw a server end. If it was ready and ours, that is said at once; the next pass does the rest."""
        entry = self._context.state().servers.get(key.server_id)
        if entry is None or entry.server.phase is not Phase.READY or entry.server.generation != key.generation:
            return
        if entry.server.claimed_by != self._context.instance_id:
            self.wake()
            return
        driver = self._context.driver_of(entry.server)
        if driver is not None:
            task = asyncio.create_task(self._quietly(self._say_vanished(Drift("vanished", key, driver=driver.name))))
            self._checking.add(task)
            task.add_done_callback(self._checking.discard)

    async def run(self) -> None:
        """For ever: a pass now, then whenever woken or the interval is over."""
        while True:
            self._wake.clear()
            began = time.monotonic()
            await self._quietly(self.reconcile())
            metrics.RECONCILE_DURATION.observe(time.monotonic() - began)
            await asyncio.sleep(PASS_INTERVAL_MIN_S)
            try:
                async with asyncio.timeout(self._interval_s * random.uniform(0.7, 0.9)):  # noqa: S311 (jitter)
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Leaves what is being cleaned up to the next spawner."""
        tasks = [*self._cleaning.values(), *self._checking]
        await end_tasks(*tasks)

    async def reconcile(self) -> list[Drift]:
        """One pass. Returns what it found. Raises LogUnavailable."""
        context = self._context
        ready_before = {e.server.server_id: e.server.generation for e in context.state().in_phase(Phase.READY)}
        observed: dict[str, list[Observed]] = {}
        for name, driver in context.drivers.items():
            try:
                observed[name] = await driver.survey()
                await driver.housekeep()
                self.unavailable.pop(name, None)
            except DriverUnavailable as error:
                self.unavailable[name] = str(error)
                metrics.DRIVER_FAILURES.labels(name).inc()
                _log.warning("driver_unavailable", driver=name, reason=str(error))
        caught_up = await self._catch_up(CATCH_UP_TIMEOUT_S)
        # Copied before asking who lives: every claim in the copy was made by somebody who then had a lease.
        servers = dict(context.state().servers)
        survey = Survey(ready_before, observed, servers, caught_up, await self._who_lives())
        found = plan(
            survey,
            instance_id=context.instance_id,
            busy=self._starts.busy | self._stops.busy,
            driver_of=self._driver_name,
            suspects=self._suspects,
            now=time.time(),
        )
        self._count(found)
        self._suspects = {drift.key for drift in found if drift.kind in ("suspect", "vanished")}
        if context.accepting():
            await self._deal_with(found)
        return found

    async def _who_lives(self) -> frozenset[str] | None:
        try:
            return await self._live()
        except LogUnavailable:
            return None

    async def _deal_with(self, found: list[Drift]) -> None:
        for drift in found:
            match drift.kind:
                case "start" | "take_over":
                    self._starts.offer(drift.key.server_id, dead=drift.dead)
                case "stop" | "take_over_stop":
                    self._stops.offer(drift.key.server_id, dead=drift.dead)
                case "expire":
                    await self._quietly(self._expire(drift.key))
                case "vanished":
                    await self._quietly(self._say_vanished(drift))
                case "cleanup":
                    self._clean_up(drift)

    async def _expire(self, key: ServerKey) -> None:
        after = await self._context.ledger.settle(
            key.server_id, lambda server: domain.expire(server, now=time.time()) if _same(server, key) else []
        )
        _log.warning("start_expired", server_id=key.server_id, generation=key.generation, phase=after.phase.value)

    async def _say_vanished(self, drift: Drift) -> None:
        """Looks once more, says so, and only then clears up what the server left behind."""
        driver, key = self._context.drivers[drift.driver], drift.key
        observed = await driver.inspect(key)
        if observed.state in ("running", "starting"):
            return
        secret = self._context.server_secret(*key)
        tail = presentable(await driver.logs(key, LINES_MAX), [secret])
        reason, message = _how_it_vanished(observed)
        self._context.ledger.fence()
        await failpoint("spawner.before_vanished")
        after = await self._context.ledger.settle(
            key.server_id,
            lambda server: domain.vanished(
                server,
                key.generation,
                reason=reason,
                exit_code=observed.exit_code,
                message=message,
                log_tail=tail,
            ),
        )
        await failpoint("spawner.after_vanished")
        if after.generation == key.generation and after.phase is Phase.STOPPED:
            metrics.STOPS.labels(reason).inc()
            _log.info("server_vanished", server_id=key.server_id, generation=key.generation, reason=reason)
            self._clean_up(Drift("cleanup", key, driver=drift.driver))

    def _clean_up(self, drift: Drift) -> None:
        if drift.key in self._cleaning or len(self._cleaning) >= CLEANUPS_MAX:
            return
        task = asyncio.create_task(self._quietly(self._end_leftover(drift)), name=f"clean-{drift.key}")
        self._cleaning[drift.key] = task
        task.add_done_callback(lambda _task: self._cleaning.pop(drift.key, None))

    async def _end_leftover(self, drift: Drift) -> None:
        self._context.ledger.fence()
        driver = self._context.drivers[drift.driver]
        await failpoint("spawner.before_cleanup")
        await driver.stop(drift.key, UNDO_GRACE_S)
        await driver.remove(drift.key)
        if drift.key.server_id not in self._context.state().servers:
            await driver.purge(drift.key.server_id)
        _log.info("leftover_removed", server_id=drift.key.server_id, generation=drift.key.generation)

    async def _quietly(self, work: Awaitable[object]) -> None:
        """What cannot be done now is found again by the next pass."""
        try:
            await work
        except (LogUnavailable, Conflict, Fenced, DriverUnavailable) as error:
            _log.warning("reconcile_incomplete", reason=str(error))
        except Exception:  # noqa: BLE001 (one server's fault must not keep the others waiting)
            _log.exception("reconcile_failed")

    def _driver_name(self, server: Server) -> str:
        driver = self._context.driver_of(server)
        return driver.name if driver is not None else ""

    def _count(self, found: list[Drift]) -> None:
        counts = Counter(drift.kind for drift in found)
        for kind in get_args(Kind):
            metrics.DRIFT.labels(kind).set(counts[kind])


def _same(server: Server, key: ServerKey) -> bool:
    return server.generation == key.generation


def _how_it_vanished(observed: Observed) -> tuple[str, str]:
    if observed.vanished:
        return "lost", "Its process is gone, together with whatever it ran on. Start it again."
    return "exited", f"The program {ending(observed.exit_code)} by itself. Start it again."
