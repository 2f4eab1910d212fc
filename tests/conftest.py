"""Fixtures that every tier may use."""

from __future__ import annotations

from tests.support.backbone import (
    database_url,
    empty_database_url,
    nats_server,
    own_postgres,
    postgres,
)

__all__ = ["database_url", "empty_database_url", "nats_server", "own_postgres", "postgres"]
