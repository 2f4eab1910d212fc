"""When each server was last used."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """CREATE TABLE api.activity (
             server_id text PRIMARY KEY,
             user_id text NOT NULL DEFAULT '',
             last_activity timestamptz NOT NULL
           ) WITH (fillfactor = 70)"""
    )
