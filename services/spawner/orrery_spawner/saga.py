"""A start, step by step. Each step is a pair (do, undo); both may be done twice, by two spawners, around a crash.

    prepare   what earlier generations left is ended; the home folder is there
    reserve   where it will listen                                  undo: forget it
    start     started, or adopted if that was done already          undo: end it
    probe     it answers there, and it is really our server

`run` goes forward and raises StartFailed with a reason. Nothing is undone here: `undo` is called by whoever has
appended the event that allows it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from opentelemetry.trace import StatusCode

from orrery_events.catalog.profile import Profile
from orrery_runtime.telemetry import tracer

from . import metrics
from .domain import Failure
from .drivers.base import Driver, DriverUnavailable, LaunchRefused, LaunchSpec, Observed
from .failpoints import failpoint
from .logtail import LINES_MAX, presentable
from .probe import Verdict, probe_once, probe_url

ATTEMPTS_MAX = 2
"""One more port is tried, within the same generation, if the first was taken before the server could open it."""
LAST_WORDS_S = 3.0
"""A step knows best what kept it from being done in time; only after this is it cut off."""
DRIVER_RETRY_S = 1.0
DRIVER_RETRIES_MAX = 5
EARLIER_GRACE_S = 2.0
UNDO_GRACE_S = 2.0
"""A start that failed or was cancelled has nothing to save; it is asked to end and soon killed."""
PROBE_INTERVAL_MIN_S = 0.03
PROBE_INTERVAL_MAX_S = 0.25
PROBE_INTERVAL_FACTOR = 1.15

_log = structlog.get_logger("orrery.spawner.saga")

Say = Callable[[str, int, str], Awaitable[None]]
"""Puts a line on the timeline: step, percent, message. Raises Superseded when the claim is gone."""


class StartFailed(Exception):
    """The start cannot succeed; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Superseded(Exception):
    """The log says that this start is not ours any more. Walk away and touch nothing."""


@dataclass(kw_only=True)
class Launch:
    """One start under way."""

    spec: LaunchSpec
    profile: Profile
    driver: Driver
    deadline: float
    """Unix seconds."""
    say: Say
    fence: Callable[[], None]
    """Raises Fenced; asked before every effect."""
    attempt: int = 1
    target: str = ""
    exit: Observed | None = None
    """How the server ended, once it has."""

    @property
    def title(self) -> str:
        """What a person calls the program."""
        return self.profile.display_name or self.profile.name

    @property
    def left_s(self) -> float:
        return self.deadline - time.time()

    async def failure(self, reason: str, message: str, *, exit_code: int | None = None) -> StartFailed:
        """With the last lines of the log."""
        try:
            lines = await self.driver.logs(self.spec.key, LINES_MAX)
        except DriverUnavailable:
            lines = []
        tail = presentable(lines, [self.spec.secret])
        return StartFailed(Failure(reason=reason, message=message, exit_code=exit_code, log_tail=tail))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step. `name` is its span, its metric label and part of its failpoints."""

    name: str
    do: Callable[[Launch], Awaitable[None]]
    undo: Callable[[Launch], Awaitable[None]] | None = None


async def run(launch: Launch, steps: Sequence[Step]) -> None:
    """All steps in order. Raises StartFailed, Superseded, Fenced."""
    for step in steps:
        launch.fence()
        await failpoint(f"spawner.before_{step.name}")
        began, outcome = time.monotonic(), "error"
        with tracer().start_as_current_span(f"spawn {step.name}") as span:
            try:
                await _patiently(launch, step)
                outcome = "ok"
            except (asyncio.CancelledError, Superseded):
                outcome = "cancelled"
                raise
            except StartFailed as error:
                outcome = error.failure.reason
                span.set_status(StatusCode.ERROR, outcome)
                raise
            finally:
                metrics.STEP_DURATION.labels(launch.driver.name, step.name, outcome).observe(time.monotonic() - began)
        await failpoint(f"spawner.after_{step.name}")


async def undo(launch: Launch, steps: Sequence[Step]) -> None:
    """Takes back every step that can be taken back, last first. Raises DriverUnavailable."""
    for step in reversed(steps):
        if step.undo is not None:
            with tracer().start_as_current_span(f"spawn undo {step.name}"):
                await step.undo(launch)


async def _patiently(launch: Launch, step: Step) -> None:
    """A driver that cannot answer now may answer in a second; one that never does ends the start."""
    for retry in range(DRIVER_RETRIES_MAX + 1):
        try:
            async with asyncio.timeout(launch.left_s + LAST_WORDS_S if launch.left_s > 0 else 0):
                await step.do(launch)
        except DriverUnavailable as error:
            metrics.DRIVER_FAILURES.labels(launch.driver.name).inc()
            _log.warning("driver_unavailable", server=str(launch.spec.key), step=step.name, reason=str(error))
            if retry == DRIVER_RETRIES_MAX or launch.left_s < DRIVER_RETRY_S:
                raise await launch.failure("driver_error", str(error)) from error
            await asyncio.sleep(DRIVER_RETRY_S)
            launch.fence()
        except LaunchRefused as error:
            raise await launch.failure("driver_error", str(error)) from error
        except TimeoutError:
            message = f"{launch.title} was not ready in time. Start it again."
            raise await launch.failure("timeout", message) from None
        else:
            return


async def _prepare(launch: Launch) -> None:
    # The log has moved on from earlier generations; two programs must not share a home folder's lock files.
    key = launch.spec.key
    for earlier in await launch.driver.survey(key.server_id):
        if earlier.key.generation < key.generation:
            await launch.driver.stop(earlier.key, EARLIER_GRACE_S)
            await launch.driver.remove(earlier.key)
    await launch.driver.prepare(launch.spec)


async def _reserve(launch: Launch) -> None:
    launch.target = await launch.driver.reserve(launch.spec, attempt=launch.attempt)


async def _start(launch: Launch) -> None:
    await launch.say("start", 20, f"Starting {launch.title}…")
    observed = await launch.driver.start(launch.spec)
    launch.target = observed.target or launch.target


async def _probe(launch: Launch) -> None:
    await launch.say("probe", 60, "Waiting for it to answer on its port…")
    while True:
        verdict = await _wait(launch)
        if verdict is Verdict.OURS:
            return
        observed = launch.exit
        if observed is None:
            raise await _never_ready(launch, verdict)
        if launch.attempt >= ATTEMPTS_MAX or not await launch.driver.target_taken(launch.spec.key):
            raise await _ended(launch, observed)
        launch.fence()
        await launch.say("start", 20, "Another program had taken its port. Trying another one…")
        launch.attempt, launch.exit = launch.attempt + 1, None
        launch.target = await launch.driver.reserve(launch.spec, attempt=launch.attempt)
        launch.fence()
        launch.target = (await launch.driver.start(launch.spec)).target or launch.target


async def _wait(launch: Launch) -> Verdict:
    """Until the server is ready, has ended (`launch.exit`), or the time is up; then the last verdict."""
    interval_s, verdict = PROBE_INTERVAL_MIN_S, Verdict.CLOSED
    while True:
        observed = await launch.driver.inspect(launch.spec.key)
        if observed.state in ("exited", "absent"):
            launch.exit = observed
            return verdict
        verdict = await probe_once(launch.driver, launch.spec, launch.profile, launch.target)
        if verdict is Verdict.OURS or launch.left_s <= 0:
            return verdict
        await asyncio.sleep(interval_s)
        interval_s = min(interval_s * PROBE_INTERVAL_FACTOR, PROBE_INTERVAL_MAX_S)


async def _ended(launch: Launch, observed: Observed) -> StartFailed:
    if observed.launch_error:
        message = f"{observed.launch_error}. Ask an administrator to correct the profile {launch.profile.name!r}."
        return await launch.failure("command_not_found", message, exit_code=observed.exit_code)
    how = ending(observed.exit_code)
    message = f"{launch.title} {how} before it was ready. Its last lines tell why."
    return await launch.failure("exited", message, exit_code=observed.exit_code)


async def _never_ready(launch: Launch, verdict: Verdict) -> StartFailed:
    limit = f"within {launch.profile.start_timeout_s:g} s"
    if verdict is Verdict.CLOSED:
        message = f"{launch.title} did not open its port {limit}. Start it again, or ask for a longer limit."
        return await launch.failure("port_never_opened", message)
    if verdict is Verdict.FOREIGN:
        message = f"Another program answers on the port that {launch.title} was given. Start it again."
        return await launch.failure("port_never_opened", message)
    path = probe_url(launch.spec, launch.profile, "")
    message = f"{launch.title} opened its port, but did not answer properly on {path} {limit}."
    return await launch.failure("probe_failed", message)


def ending(exit_code: int | None) -> str:
    """`ended with exit code 3`, `was killed by signal 9`, `ended`."""
    if exit_code is None:
        return "ended"
    return f"ended with exit code {exit_code}" if exit_code >= 0 else f"was killed by signal {-exit_code}"


async def _stop(launch: Launch) -> None:
    await launch.driver.stop(launch.spec.key, UNDO_GRACE_S)


async def _forget(launch: Launch) -> None:
    await launch.driver.remove(launch.spec.key)


LAUNCH_STEPS: tuple[Step, ...] = (
    Step(name="prepare", do=_prepare),
    Step(name="reserve", do=_reserve, undo=_forget),
    Step(name="start", do=_start, undo=_stop),
    Step(name="probe", do=_probe),
)
