"""Api's composition root: `orrery serve api`."""

from __future__ import annotations

from orrery_events.tail import Tail
from orrery_runtime.http import make_app, make_templates
from orrery_runtime.identity import Verifier
from orrery_runtime.process import Process, run

from . import http, web
from .handlers import Activity
from .http.common import ACTIVITY, OPERATIONS
from .http.progress import STREAMS
from .operations import Operations
from .projections import CATEGORIES, ApiState
from .watch import Watch


async def body(process: Process) -> None:
    tail = Tail(process.events, process.bus, ApiState, categories=CATEGORIES, name="api")
    await tail.start()
    process.track(tail)
    activity = Activity(process.pool)
    process.task("activity", activity.notifications(process.bus).run)
    app = make_app(
        process,
        routes=[*http.routes(), *web.routes(), *web.pages.LAST],
        verifier=Verifier(lambda: tail.state.identity),
        tail=tail,
        templates=make_templates("orrery_api"),
    )
    app[OPERATIONS] = Operations(process.events, tail, Watch(tail))
    app[ACTIVITY] = activity
    app[STREAMS] = [0]
    await process.register(await process.serve_http(app), lease_loss="renew")
    await process.run_until_stopped()


def main() -> int:
    return run("api", body)
