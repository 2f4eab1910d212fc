"""benchmarks/results/router.json: the last measurement of every row, with what it says about the goals."""

from __future__ import annotations

import re
import subprocess
from datetime import datetime, timezone
from typing import Any

import msgspec

from benchmarks import report
from benchmarks.router import goals
from benchmarks.router.tools import find

NAME = "router"
VERSIONS = {
    "nginx": ("nginx", "-v"),
    "haproxy": ("haproxy", "-v"),
    "traefik": ("traefik", "version"),
    "configurable-http-proxy": ("configurable-http-proxy", "--version"),
    "node": ("node", "--version"),
    "redis": ("redis-server", "--version"),
}


def keep(rows: dict[str, dict[str, Any]], *, rounds: int, seconds: int, busy_before: float) -> None:
    """These rows anew, the others as they were. `busy_before` is how much of the machine others used: 0.0 to 1.0."""
    try:
        kept = report.read(NAME)["rows"]
    except (FileNotFoundError, KeyError):
        kept = {}
    today = datetime.now(timezone.utc).date().isoformat()
    for row, by_peer in rows.items():
        kept[row] = {
            "measured": today,
            "rounds": rounds,
            "seconds": seconds,
            "busy_before": busy_before,
            "peers": by_peer,
        }
    outcomes = goals.outcomes({row: found["peers"] for row, found in kept.items()})
    report.write(NAME, {"versions": versions(), "rows": kept, "goals": msgspec.to_builtins(outcomes)})


def versions() -> dict[str, str]:
    """What each program says of itself."""
    found = {}
    for name, (program, flag) in VERSIONS.items():
        path = find(program)
        if path:
            done = subprocess.run([path, flag], capture_output=True, text=True, check=False)
            number = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
            found[name] = number[0] if number else "unknown"
    return found
