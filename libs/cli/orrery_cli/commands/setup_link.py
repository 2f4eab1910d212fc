"""`orrery setup-link`: another way in for the first admin, when the first link has expired."""

from __future__ import annotations

from orrery_cli.console import say
from orrery_cli.errors import CliError

from .options import DataDirOption


def setup_link(*, data_dir: DataDirOption = None) -> None:
    """Prints a fresh one-time link for the first admin. Links from before are void. Fails when there is an admin."""
    import asyncio

    import asyncpg

    from orrery_auth.setup import issue_setup_link
    from orrery_cli.backend import database_url
    from orrery_cli.datadir import DataDir
    from orrery_cli.given import base_path, public_url

    place = DataDir(data_dir)
    url = database_url(place)
    try:
        token = asyncio.run(issue_setup_link(url))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise CliError(f"Postgres does not answer ({error}): `orrery status` shows what runs") from None
    if token is None:
        raise CliError("there is an admin already: sign in, or let an admin set a new password")
    say(f"{public_url(str(place.run_files().get('up', {}).get('url', base_path())))}/hub/setup/{token}")
