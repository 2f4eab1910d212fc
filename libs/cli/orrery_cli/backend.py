"""The log that a command reads: that of the platform on a data directory, or the one that ORRERY_DATABASE_URL names."""

from __future__ import annotations

from .datadir import DataDir
from .errors import NotRunning
from .given import given


def database_url(data_dir: DataDir) -> str:
    """Raises NotRunning when neither is known."""
    found = given("database_url")
    url = found.value if found else data_dir.secret("database_url")
    if not url:
        raise NotRunning(
            f"there is no platform on {data_dir.path}: start one with `orrery up{data_dir.option()}`, "
            "name its --data-dir, or set ORRERY_DATABASE_URL"
        )
    return url
