"""`orrery serve`: one process of one service, for production."""

from __future__ import annotations

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


def serve(service: Annotated[Service, typer.Argument(help="Which one.")]) -> None:
    """Runs one process of one service against your own Postgres and NATS.

    Its settings are ORRERY_… variables, or in the TOML file that ORRERY_CONFIG names.
    """
    from orrery_cli.supervisor.services import TARGETS
    from orrery_cli.supervisor.target import resolve

    raise typer.Exit(resolve(TARGETS[service.value])())
