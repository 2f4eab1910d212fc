"""Errors of the command line. Each ends a command with one sentence that names the next step.

OrreryError
└── CliError             exit code 1
    ├── UsageError       exit code 2: the command was not given in a way that can be carried out
    ├── NotRunning       exit code 3: nothing runs on this data directory
    └── EmbeddedError    Postgres or NATS, run by us, did not do what it should
"""

from __future__ import annotations

from orrery_events.errors import OrreryError


class CliError(OrreryError):
    """The command failed. See the sentence that follows."""

    exit_code = 1


class UsageError(CliError):
    """The command cannot be carried out as given. See `orrery --help`."""

    exit_code = 2


class NotRunning(CliError):
    """Nothing runs here. Start it with `orrery up`."""

    exit_code = 3


class EmbeddedError(CliError):
    """The embedded database or broker failed. `orrery doctor` looks for the reason."""
