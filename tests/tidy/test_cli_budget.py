"""`orrery --help` is instant, and stays so."""

from __future__ import annotations

import os
import subprocess
import sys
import time

HELP_MAX_S = 0.25
ROUNDS = 5
HEAVY = {"faststream", "sqlalchemy", "alembic", "aiohttp", "asyncpg", "nats", "pydantic", "structlog", "opentelemetry"}

COMMAND = "import sys; from orrery_cli.main import main; sys.argv = ['orrery', '--help']; main()"


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys, atexit
atexit.register(lambda: print("LOADED", *sorted(m for m in sys.modules if "." not in m), file=sys.stderr))
{COMMAND}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: orrery" in done.stdout
    loaded = set(done.stderr.split("LOADED", 1)[1].split())
    assert not loaded & HEAVY, "import it inside the command that needs it"
    assert not {m for m in loaded if m.startswith("orrery_")} - {"orrery_cli", "orrery_events"}


def test_help_takes_no_time() -> None:
    """The processor's time, not the clock's, and the least of several: what runs beside it can only add to it."""
    taken = []
    for _ in range(ROUNDS):
        before = os.times()
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, check=True)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        taken.append(min(used, time.perf_counter() - began))
    assert min(taken) < HELP_MAX_S, taken
