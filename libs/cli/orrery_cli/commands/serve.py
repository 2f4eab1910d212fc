"""`orrery serve`: one process of one service, for production."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer


class Service(StrEnum):
    """What can be served."""

    auth = "auth"
    spawner = "spawner"
    router = "router"
    api = "api"
    relay = "relay"


def serve(
    service: Annotated[Service, typer.Argument(help="Which one.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Router only: how many processes share its port. [env: ORRERY_WORKERS]")
    ] = None,
) -> None:
    """Runs one process of one service against your own Postgres and NATS.

    Its settings are ORRERY_… variables, or in the TOML file that ORRERY_CONFIG names.
    """
    from orrery_cli.errors import UsageError
    from orrery_cli.supervisor.services import TARGETS
    from orrery_cli.supervisor.target import resolve

    if workers is not None:
        if service is not Service.router:
            raise UsageError(f"--workers is for routers: start more {service.value} processes instead")
        os.environ["ORRERY_WORKERS"] = str(workers)
    raise typer.Exit(resolve(TARGETS[service.value])())
