"""Where the programs are that are measured beside the router."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".bench"
"""Where `make bench-router` installs what comes from npm."""
PLACES = (FOLDER / "node_modules" / ".bin", Path(sys.executable).parent)


OURS = "configurable-http-proxy"
"""Beside Python lies our own script of that name; the one that is measured is npm's."""


def find(program: str) -> str | None:
    places = [*map(str, PLACES), *os.environ["PATH"].split(os.pathsep)]
    if program == OURS:
        places = [place for place in places if place != str(Path(sys.executable).parent)]
    return shutil.which(program, path=os.pathsep.join(places))


def is_there(program: str) -> bool:
    return find(program) is not None


def path_of(program: str) -> str:
    """RuntimeError where it is not installed."""
    found = find(program)
    if found is None:
        raise RuntimeError(f"{program} is not installed: `make bench-router` installs it, or Debian's package does")
    return found
