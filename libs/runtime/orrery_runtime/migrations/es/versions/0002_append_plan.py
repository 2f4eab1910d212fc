"""One plan for `es.append` in logs that were made before, too; a new one has it from `es.sql`."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER FUNCTION es.append SET plan_cache_mode = force_generic_plan")
