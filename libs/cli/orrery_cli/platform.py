"""The running platform, found by its data directory: which processes there are and what each says of itself."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from . import web
from .datadir import DataDir
from .errors import NotRunning
from .supervisor.children import Identity

BACKBONE = ("postgres", "nats")
STATUS_TIMEOUT_S = 5.0
"""A process that says nothing within this time is `silent`."""


class Row(msgspec.Struct, kw_only=True):
    """One process."""

    service: str
    slot: str
    instance: str = ""
    pid: int | None = None
    ready: bool = False
    state: str = "gone"
    """`starting`, `ready`, `draining`, `gone` (there is no such process), `silent` (it does not answer)."""
    url: str = ""
    ops_url: str = ""
    version: str = ""
    position: int | None = None
    """The log's position that it has read (Postgres: written; NATS: stored) up to."""
    lag: int | None = None
    """Positions behind the log's head."""
    started_at: float | None = None
    """Unix seconds."""
    problems: list[str] = msgspec.field(default_factory=list)
    """Checks that fail, as `code message`."""


class View(msgspec.Struct, kw_only=True):
    """All of it, as `orrery status -o json` prints it."""

    data_dir: str
    url: str
    version: str
    ready: bool
    head: int | None
    """The log's last position; None when Postgres does not answer."""
    processes: list[Row]


async def view(data_dir: DataDir) -> View:
    """Asks every process. Raises NotRunning."""
    files = data_dir.run_files()
    up = files.pop("up", None)
    if up is None or (data_dir.lock_holder() is None and not _alive(files)):
        raise NotRunning(f"nothing runs on {data_dir.path}: start it with `orrery up{data_dir.option()}`")
    slots: dict[str, dict[str, Any]] = up.get("slots", {})
    names = sorted(set(slots) | set(files), key=_order)
    embedded = up.get("embedded", {})
    head, rows = await asyncio.gather(
        backbone_head(data_dir, own_nats=embedded.get("nats", True)),
        asyncio.gather(*(_row(name, files.get(name, {}), slots.get(name, {})) for name in names)),
    )
    for row in rows:
        _complete(row, head)
    for name in BACKBONE:
        if not embedded.get(name, True):
            rows.append(_external(name, head))
    return View(
        data_dir=str(data_dir.path),
        url=str(up.get("url", "")),
        version=str(up.get("version", "")),
        ready=all(row.ready for row in rows),
        head=head.position,
        processes=rows,
    )


class Backbone(msgspec.Struct, kw_only=True):
    """What Postgres and NATS themselves say."""

    position: int | None = None
    database_error: str = ""
    stream_position: int | None = None
    nats_error: str = ""


async def backbone_head(data_dir: DataDir, *, own_nats: bool) -> Backbone:
    """Where the log ends, and where its copy ends. `own_nats`: it is the embedded one."""
    found = Backbone()
    nats_url = data_dir.secret("relay_nats_url")
    ask_nats = _ask_nats(nats_url, found) if own_nats else _try_nats(nats_url, found)
    await asyncio.gather(_ask_postgres(data_dir.secret("database_url"), found), ask_nats)
    return found


async def _ask_postgres(url: str, found: Backbone) -> None:
    import asyncpg

    try:
        connection = await asyncpg.connect(url, timeout=STATUS_TIMEOUT_S, command_timeout=STATUS_TIMEOUT_S)
        try:
            found.position = await connection.fetchval("SELECT position FROM es.log_head")
        finally:
            await connection.close(timeout=1)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        found.database_error = str(error) or type(error).__name__


async def _ask_nats(url: str, found: Backbone) -> None:
    from .natsinfo import stream_last_sequence

    try:
        found.stream_position = await stream_last_sequence(url, timeout_s=STATUS_TIMEOUT_S)
    except (OSError, TimeoutError, ValueError) as error:
        found.nats_error = str(error) or type(error).__name__


async def _try_nats(url: str, found: Backbone) -> None:
    from orrery_events import bus

    found.nats_error = await bus.check(url) or ""


async def _row(slot: str, file: dict[str, Any], ours: dict[str, Any]) -> Row:
    row = Row(service=str(file.get("service") or ours.get("service", "")), slot=slot)
    row.instance = str(file.get("instance_id", ""))
    row.url, row.ops_url = str(file.get("url", "")), str(file.get("ops_url", ""))
    row.version, row.started_at = str(file.get("version", "")), file.get("started_at")
    pid = ours.get("pid") or file.get("pid")
    if not isinstance(pid, int) or Identity.of(pid) is None or (ours and _identity(ours) is None):
        return row
    row.pid = pid
    row.state = "starting" if not row.ops_url and slot not in BACKBONE else "silent"
    if row.ops_url and file.get("pid") == pid:
        said = (await web.get(f"{row.ops_url}/status", timeout_s=STATUS_TIMEOUT_S)).json()
        if said:
            row.state, row.ready = str(said.get("state", "")), bool(said.get("ready"))
            row.position, row.lag = said.get("position"), said.get("lag")
            row.instance = str(said.get("instance", row.instance))
            failing = [c for c in said.get("checks", []) if not c.get("ok")]
            row.problems = [f"{c.get('code', '')} {c.get('message', '')}".strip() for c in failing]
    return row


def _complete(row: Row, head: Backbone) -> None:
    """What Postgres and NATS say goes into their own rows."""
    if row.service not in BACKBONE or row.pid is None:
        return
    if row.service == "postgres":
        row.position, error, code = head.position, head.database_error, "ORR-DB-01"
        row.lag = 0 if head.position is not None else None
    else:
        row.position, error, code = head.stream_position, head.nats_error, "ORR-NATS-01"
        if head.position is not None and head.stream_position is not None:
            row.lag = max(0, head.position - head.stream_position)
    row.ready = not error
    row.state = "silent" if error else "ready"
    row.problems = [f"{code} {error}"] if error else []


def _external(name: str, head: Backbone) -> Row:
    row = Row(service=name, slot=f"{name} (yours)", pid=0)
    _complete(row, head)
    row.pid = None
    return row


def _identity(ours: dict[str, Any]) -> object:
    try:
        return msgspec.convert(ours, Identity, strict=False).process()
    except msgspec.ValidationError:
        return None


def _alive(files: dict[str, dict[str, Any]]) -> bool:
    return any(isinstance(f.get("pid"), int) and Identity.of(f["pid"]) is not None for f in files.values())


def _order(slot: str) -> tuple[int, str]:
    known = ("postgres", "nats", "relay", "auth", "api", "spawner", "router")
    service = slot.rstrip("0123456789").rstrip("-")
    return (known.index(service) if service in known else len(known), slot)
