"""`orrery migrate`: the database's tables, brought up to date. `orrery up` does it by itself."""

from __future__ import annotations

from typing import Annotated

import typer

from orrery_cli.console import say
from orrery_cli.errors import UsageError
from orrery_cli.given import given


def migrate(
    database_url: Annotated[
        str, typer.Option(envvar="ORRERY_DATABASE_URL", help="The database.", show_default=False)
    ] = "",
) -> None:
    """Brings your own database's tables up to date. Safe to run again, and from several machines at once."""
    import asyncio

    from orrery_cli.schemas import LOCATIONS
    from orrery_runtime.migrate import upgrade

    found = given("database_url")
    url = database_url or (found.value if found else "")
    if not url:
        raise UsageError("which database? set ORRERY_DATABASE_URL or give --database-url")
    changed = asyncio.run(upgrade(url, LOCATIONS))
    say(f"migrated: {', '.join(changed)}" if changed else "nothing to do: the tables are up to date")
