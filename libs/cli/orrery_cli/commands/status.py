"""`orrery status`: every process of the platform on this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from orrery_cli.console import paint, say, table

from .options import DataDirOption, Output, OutputOption

if TYPE_CHECKING:
    from orrery_cli.platform import Row

HEAD = ("SERVICE", "SLOT", "PID", "STATE", "POSITION", "LAG", "URL", "OPS")


def status(data_dir: DataDirOption = None, output: OutputOption = Output.table) -> None:
    """Shows every process: where it is, how far it has read, what is wrong. Exit code 3 when something is."""
    import asyncio

    import msgspec

    from orrery_cli.datadir import DataDir
    from orrery_cli.platform import view

    found = asyncio.run(view(DataDir(data_dir)))
    if output is Output.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found)).decode() + "\n")
    else:
        say(f"Orrery {found.version} at {found.url}, data in {found.data_dir}, log at position {found.head}")
        say()
        say(table(HEAD, [_cells(row) for row in found.processes]))
        for row in found.processes:
            for problem in row.problems:
                say(paint(f"{row.slot}: {problem}", "yellow"))
    raise typer.Exit(0 if found.ready else 3)


def _cells(row: Row) -> tuple[str, ...]:
    number = {name: "-" if value is None else str(value) for name, value in (("p", row.position), ("l", row.lag))}
    pid = "-" if row.pid is None else str(row.pid)
    return row.service, row.slot, pid, row.state, number["p"], number["l"], row.url or "-", row.ops_url or "-"
