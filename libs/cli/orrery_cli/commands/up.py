"""`orrery up`: everything on this machine."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from .options import DataDirOption


def up(
    *,
    data_dir: DataDirOption = None,
    port: Annotated[
        int, typer.Option(envvar="ORRERY_PORT", help="Public port; 0 chooses one.", min=0, max=65535)
    ] = 8000,
    host: Annotated[str, typer.Option(envvar="ORRERY_HOST", help="Address to listen on.")] = "127.0.0.1",
    routers: Annotated[int, typer.Option(envvar="ORRERY_ROUTERS", help="Routers that share the port.", min=1)] = 2,
    database_url: Annotated[
        str,
        typer.Option(
            envvar="ORRERY_DATABASE_URL",
            help="Your own Postgres instead of the embedded one. Others can read arguments: prefer the variable.",
            show_default=False,
        ),
    ] = "",
    nats_url: Annotated[
        str,
        typer.Option(
            envvar="ORRERY_NATS_URL",
            help="Your own NATS instead of the embedded one. Others can read arguments: prefer the variable.",
            show_default=False,
        ),
    ] = "",
    bootstrap_admin: Annotated[
        str,
        typer.Option(
            envvar="ORRERY_BOOTSTRAP_ADMIN",
            help="Make this admin instead of a set-up link, with the password in ORRERY_BOOTSTRAP_PASSWORD.",
            show_default=False,
        ),
    ] = "",
    logs: Annotated[bool, typer.Option("--logs", envvar="ORRERY_LOGS", help="Print every process's log, too.")] = False,
    stop_servers: Annotated[
        bool, typer.Option("--stop-servers", envvar="ORRERY_STOP_SERVERS", help="Stop notebooks at the end, too.")
    ] = False,
    preload: Annotated[
        bool,
        typer.Option(
            envvar="ORRERY_PRELOAD",
            help="Fork services from a process that has imported them; without, each is a new interpreter (slower).",
        ),
    ] = True,
) -> None:
    """Runs everything on this machine: database, broker, services, routers. Ctrl-C ends it."""
    import asyncio

    import psutil

    from orrery_cli.supervisor.up import Options, Up

    # From when the process was made: imports are part of what a person waits for.
    began = time.monotonic() - (time.time() - psutil.Process().create_time())
    options = Options(
        data_dir=data_dir,
        host=host,
        port=port,
        routers=routers,
        database_url=database_url,
        nats_url=nats_url,
        bootstrap_admin=bootstrap_admin,
        logs=logs,
        stop_servers=stop_servers,
        preload=preload,
    )
    raise typer.Exit(asyncio.run(Up(options, began=began).run()))
