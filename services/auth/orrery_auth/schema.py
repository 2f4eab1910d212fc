"""Where the migrations of schema `auth` are."""

from __future__ import annotations

from pathlib import Path

from orrery_runtime.migrate import MigrationLocation

MIGRATIONS = MigrationLocation("auth", "auth", Path(__file__).parent / "migrations")
