"""Where the migrations of schema `api` are."""

from __future__ import annotations

from pathlib import Path

from orrery_runtime.migrate import MigrationLocation

MIGRATIONS = MigrationLocation("api", "api", Path(__file__).parent / "migrations")
