"""Carries out the supervisor's jobs, as a process of its own (see jobs.py)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from orrery_auth.setup import bootstrap_admin, issue_setup_link
from orrery_cli import servers
from orrery_cli.datadir import write_private
from orrery_cli.embedded.roles import provision
from orrery_cli.errors import CliError
from orrery_cli.schemas import LOCATIONS
from orrery_events import bus
from orrery_events.errors import OrreryError
from orrery_runtime.migrate import ES, upgrade

from .jobs import FILE_ENV, Job, Outcome


async def prepare(job: Job) -> Outcome:
    """Migrations, the first admin, the way to an external NATS."""
    if job.nats_url and (sentence := await bus.check(job.nats_url)):
        raise CliError(sentence)
    if job.provision is not None:
        await provision(job.provision)
    await upgrade(job.database_url, LOCATIONS)
    if job.bootstrap_admin:
        await bootstrap_admin(job.database_url, job.bootstrap_admin, job.bootstrap_password)
    token = await issue_setup_link(job.database_url)
    return Outcome(setup_token=token or "")


async def prepare_proxy(job: Job) -> Outcome:
    """The tables of the log, which is all that `orrery proxy` needs; the way to an external NATS."""
    if job.nats_url and (sentence := await bus.check(job.nats_url)):
        raise CliError(sentence)
    if job.provision is not None:
        await provision(job.provision)
    await upgrade(job.database_url, [ES])
    return Outcome()


async def count_servers(job: Job) -> Outcome:
    async with servers.opened(job.database_url) as log:
        return Outcome(servers=await servers.count_running(log))


async def stop_servers(job: Job) -> Outcome:
    async with servers.opened(job.database_url) as log:
        return Outcome(servers=await servers.stop_all(log))


WORK = {
    "prepare": prepare,
    "prepare_proxy": prepare_proxy,
    "count_servers": count_servers,
    "stop_servers": stop_servers,
}


def main() -> int:
    """Exit code 0 whenever there is an outcome, whatever it is."""
    file = Path(os.environ[FILE_ENV])
    job = msgspec.json.decode(file.read_bytes(), type=Job)
    try:
        outcome = asyncio.run(WORK[job.kind](job))
    except OrreryError as error:
        outcome = Outcome(error=str(error))
    write_private(file.with_suffix(".done"), msgspec.json.encode(outcome).decode())
    return 0
