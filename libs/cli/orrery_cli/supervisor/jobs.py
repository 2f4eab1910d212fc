"""Work that needs a database driver, done for the supervisor by a process of its own: the supervisor stays small.

The job is handed over in a private file, because it holds passwords; the outcome comes back in another.
"""

from __future__ import annotations

import os
from typing import Final, Literal

import msgspec

from orrery_cli.datadir import DataDir, write_private
from orrery_cli.embedded.roles import Roles
from orrery_cli.errors import CliError
from orrery_events.ids import new_id

from .children import Spec, clean_environment
from .logs import Logs
from .preload import Preloader

LOG: Final = "up"
FILE_ENV: Final = "ORRERY_JOB"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. All of it may be done again."""

    kind: Literal["prepare", "prepare_proxy", "count_servers", "stop_servers"]
    database_url: str
    provision: Roles | None = None
    """For the embedded database: make the services' role and database if they are missing."""
    nats_url: str = ""
    """An external NATS, to be tried."""
    bootstrap_admin: str = ""
    bootstrap_password: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `error` is a sentence."""

    error: str = ""
    setup_token: str = ""
    """For `/hub/setup/<token>`; empty when there is an admin already."""
    servers: int = 0
    """How many were counted or stopped."""


class Jobs:
    """Runs jobs, one at a time."""

    def __init__(self, data_dir: DataDir, logs: Logs, preloader: Preloader, *, death_fd: int) -> None:
        self._data_dir = data_dir
        self._logs = logs
        self._preloader = preloader
        self._death_fd = death_fd

    async def run(self, job: Job) -> Outcome:
        """Raises CliError with the sentence that the job failed with."""
        # Two replicas may come up on one data directory at the same time, each with a job of its own.
        file = self._data_dir.run / f"{job.kind}-{new_id()}.job"
        done = file.with_suffix(".done")
        write_private(file, msgspec.json.encode(job).decode())
        output = self._logs.open(LOG)
        try:
            spec = Spec(
                target="orrery_cli.supervisor.work:main",
                name="orrery-up-job",
                title=("orrery", "up", job.kind),
                env=clean_environment({FILE_ENV: str(file)}),
            )
            child = await self._preloader.start(spec, output=output, death_fd=self._death_fd)
            await child.wait()
            outcome = msgspec.json.decode(done.read_bytes(), type=Outcome)
        except FileNotFoundError:
            said = self._logs.last_line(LOG)
            raise CliError(f"{job.kind} failed: {said} (see {self._logs.path(LOG)})") from None
        finally:
            os.close(output)
            file.unlink(missing_ok=True)
            done.unlink(missing_ok=True)
        if outcome.error:
            raise CliError(outcome.error)
        return outcome
