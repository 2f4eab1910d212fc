"""The checks of `orrery doctor`. Each has a code to look for, and says what to do when it fails."""

from __future__ import annotations

import asyncio
import shutil
from typing import Final

import msgspec

from . import web
from .datadir import DataDir
from .embedded import binaries
from .embedded.osuser import database_account, first_blocked
from .errors import CliError
from .platform import Row, View, view

FREE_BYTES_MIN: Final = 2**30
LAG_MAX: Final = 1_000
"""Positions behind the head from which a process counts as late."""
ADVICE: Final = {
    "ORR-DB-01": "See logs/postgres.log in the data directory, or the database that ORRERY_DATABASE_URL names.",
    "ORR-NATS-01": "See logs/nats.log; everything works meanwhile, a little slower.",
    "ORR-BUS-02": "If it does not catch up within a minute, restart that process: it rebuilds from the log.",
    "ORR-RTR-03": "It serves the last table it knew. Bring back Postgres or NATS.",
    "ORR-LEASE-01": "It could not reach Postgres in time; others may have taken over its work.",
    "ORR-SPN-01": "The spawner's driver cannot answer: see logs/spawner.log.",
}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One check."""

    name: str
    ok: bool
    message: str
    code: str = ""
    advice: str = ""
    required: bool = True


async def examine(data_dir: DataDir) -> list[Result]:
    """All checks, in the order in which their failures explain one another."""
    results = [_installed(data_dir), _room(data_dir)]
    try:
        found = await view(data_dir)
    except CliError as error:
        return [*results, Result(name="platform", ok=False, message=str(error), code="ORR-UP-01")]
    for row in found.processes:
        results.extend(_of_process(row, found))
    results.append(_one_version(found))
    results.extend(await asyncio.gather(_public(found, "/hub/login", "auth"), _public(found, "/hub/api", "api")))
    return results


def _installed(data_dir: DataDir) -> Result:
    try:
        binaries.postgres()
        binaries.nats_server()
        account = database_account()
        blocked = first_blocked(data_dir.path, account) if account else None
    except CliError as error:
        # Not needed by those who bring their own.
        return Result(name="embedded programs", ok=False, message=str(error), code="ORR-EMB-01", required=False)
    if account and blocked:
        message = f"the database's user {account.name} cannot enter {blocked}"
        advice = "Choose another --data-dir, or run orrery as an ordinary user."
        return Result(name="embedded programs", ok=False, message=message, code="ORR-EMB-01", advice=advice)
    who = f"; the database runs as {account.name}" if account else ""
    return Result(name="embedded programs", ok=True, message=f"PostgreSQL and nats-server are there{who}")


def _room(data_dir: DataDir) -> Result:
    folder = next(p for p in (data_dir.path, *data_dir.path.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    message = f"{free / 2**30:.1f} GiB free at {folder}"
    advice = "Make room: Postgres stops when the disk is full."
    return Result(name="disk", ok=free >= FREE_BYTES_MIN, message=message, code="ORR-DISK-01", advice=advice)


def _of_process(row: Row, found: View) -> list[Result]:
    where = f"pid {row.pid}" if row.pid else "no process"
    log = f"See {found.data_dir}/logs/{row.slot}.log."
    results = [
        Result(name=row.slot, ok=row.ready, message=f"{row.state} ({where})", code="ORR-PROC-01", advice=log),
    ]
    for problem in row.problems:
        code, _, message = problem.partition(" ")
        advice = ADVICE.get(code, log)
        results.append(Result(name=row.slot, ok=False, message=message, code=code, advice=advice, required=False))
    if row.lag is not None and row.lag > LAG_MAX:
        message = f"{row.lag} positions behind the log"
        advice = ADVICE["ORR-BUS-02"]
        results.append(Result(name=row.slot, ok=False, message=message, code="ORR-BUS-02", advice=advice))
    return results


def _one_version(found: View) -> Result:
    versions = {row.version for row in found.processes if row.ops_url and row.version}
    message = f"all processes run {', '.join(sorted(versions))}"
    if len(versions) <= 1:
        return Result(name="versions", ok=True, message=message)
    message = f"processes run different releases: {', '.join(sorted(versions))}"
    advice = "Finish the upgrade: restart the older ones."
    return Result(name="versions", ok=False, message=message, code="ORR-VER-01", advice=advice, required=False)


async def _public(found: View, path: str, service: str) -> Result:
    url = found.url + path
    answer = await web.get(url, timeout_s=5)
    ok = answer.status in (200, 302)
    message = f"{url} answers {answer.status}" if answer.status else f"{url} does not answer"
    advice = f"Routers must be ready and {service} registered: see `orrery status` and logs/{service}.log."
    return Result(name="public port", ok=ok, message=message, code="ORR-URL-01", advice=advice)
