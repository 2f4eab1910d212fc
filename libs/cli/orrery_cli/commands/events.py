"""`orrery events`: the log itself."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orrery_cli.console import complain, paint, say

from .options import DataDirOption

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from orrery_cli.datadir import DataDir
    from orrery_events.recorded import Recorded

app = typer.Typer(help="The event log.", no_args_is_help=True, rich_markup_mode=None)

LAST = 20
"""How many events are shown when nobody says from where."""
PAGE = 1_000
POLL_S = 0.2
DATA_LENGTH_MAX = 160


class Form(StrEnum):
    """How an event is printed."""

    line = "line"
    json = "json"


@app.command("tail")
def tail(
    *,
    data_dir: DataDirOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    start: Annotated[
        int | None,
        typer.Option("--from", min=0, help="First position. Default: the last 20 events.", show_default=False),
    ] = None,
    output: Annotated[
        Form, typer.Option("--output", "-o", help="A line for people, or one CloudEvent as JSON per line.")
    ] = Form.line,
) -> None:
    """Prints the log, oldest first. Every event has a position; --from resumes exactly where another run ended."""
    import asyncio

    from orrery_cli.datadir import DataDir as Place

    place = Place(data_dir)
    reader = _Reader(place, output)
    if asyncio.run(_interrupted(reader.run(start, follow=follow))):
        if reader.next_position:
            complain(f"\nResume with: orrery events tail --follow --from {reader.next_position}{place.option()}")
        raise typer.Exit(130)


async def _interrupted(work: Coroutine[None, None, None]) -> bool:
    """Does the work; True if Ctrl-C ended it. `asyncio.run` would cancel it only once, which a library underneath may
    overlook (python/cpython#86296): then the log would be followed on and on."""
    import asyncio
    import signal

    from orrery_events.tasks import end_tasks

    task, stop = asyncio.create_task(work), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    interrupted = not task.done()
    await end_tasks(task, stopping)
    if not interrupted:
        task.result()
    return interrupted


class _Reader:
    def __init__(self, place: DataDir, form: Form) -> None:
        self._place = place
        self._form = form
        self.next_position = 0

    async def run(self, start: int | None, *, follow: bool) -> None:
        import asyncio

        from orrery_cli.backend import database_url
        from orrery_cli.servers import opened

        async with opened(database_url(self._place)) as log:
            if start is None:
                start = max(1, (await log.head()).position - LAST + 1)
            self.next_position = max(1, start)
            while True:
                rows = await log.read_all(after_position=self.next_position - 1, limit=PAGE)
                for row in rows:
                    self._show(row)
                    self.next_position = row.position + 1
                if not rows:
                    if not follow:
                        return
                    await asyncio.sleep(POLL_S)

    def _show(self, row: Recorded) -> None:
        import msgspec

        if self._form is Form.json:
            sys.stdout.write(msgspec.json.encode(cloud_event(row)).decode() + "\n")
            sys.stdout.flush()
        else:
            say(line(row))


def cloud_event(row: Recorded) -> dict[str, Any]:
    """CloudEvents 1.0 in its JSON format, with the same attributes as on the bus."""
    from urllib.parse import unquote

    import msgspec

    from orrery_events.recorded import to_headers

    headers = to_headers(row)
    attributes = {name.removeprefix("ce-"): unquote(value) for name, value in headers.items() if name[:3] == "ce-"}
    trace = {"traceparent": row.meta.traceparent} if row.meta.traceparent else {}
    return {**attributes, **trace, "datacontenttype": headers["content-type"], "data": msgspec.Raw(row.data)}


def line(row: Recorded) -> str:
    """`   123  12:03:04.123  server.ready  server-01j9  {…}`."""
    import datetime

    at = datetime.datetime.fromtimestamp(row.recorded_at, datetime.timezone.utc).astimezone()
    data = row.data.decode(errors="replace")
    shown = data if len(data) <= DATA_LENGTH_MAX else data[: DATA_LENGTH_MAX - 1] + "…"
    clock = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d}"
    return (
        f"{row.position:>8}  {paint(clock, 'dim')}  {paint(row.type, 'bold')}  {row.stream_id}  {paint(shown, 'dim')}"
    )
