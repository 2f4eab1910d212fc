"""The event log: tables, the append function, leases."""

from __future__ import annotations

from importlib.resources import files

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    script = files("orrery_events.log").joinpath("es.sql").read_text()
    # Many statements with function bodies: only the driver's own simple protocol takes such a script whole.
    op.get_bind().connection.dbapi_connection.run_async(lambda driver: driver.execute(script))
