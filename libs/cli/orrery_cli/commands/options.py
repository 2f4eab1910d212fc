"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="ORRERY_DATA_DIR",
        help="Where everything lies. Default: /var/lib/orrery for root, else the user's data folder.",
        show_default=False,
    ),
]


class Output(StrEnum):
    """How a command prints what it found."""

    table = "table"
    json = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="For people, or for programs.")]
