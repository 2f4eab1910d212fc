"""Where the programs are that are measured beside the router."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".bench"
"""Where `make bench-router` installs what comes from npm."""
PLACES = (FOLDER / "node_modules" / ".bin", Path(sys.executable).parent)


def find(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join([*map(str, PLACES), os.environ["PATH"]]))


def is_there(program: str) -> bool:
    return find(program) is not None


def path_of(program: str) -> str:
    """RuntimeError where it is not installed."""
    found = find(program)
    if found is None:
        raise RuntimeError(f"{program} is not installed: `make bench-router` installs it, or Debian's package does")
    return found
