"""`orrery doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import sys

import typer

from orrery_cli.console import paint, say

from .options import DataDirOption, Output, OutputOption


def doctor(data_dir: DataDirOption = None, output: OutputOption = Output.table) -> None:
    """Runs every check and says what to do about those that fail. Exit code 3 when one fails."""
    import asyncio

    import msgspec

    from orrery_cli.checkup import examine
    from orrery_cli.datadir import DataDir

    results = asyncio.run(examine(DataDir(data_dir)))
    if output is Output.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(results)).decode() + "\n")
    else:
        for result in results:
            mark, colour = ("[+]", "green") if result.ok else ("[-]", "red") if result.required else ("[~]", "yellow")
            code = f"{result.code} " if not result.ok and result.code else ""
            say(f"{paint(mark, colour)} {result.name}: {code}{result.message}")
            if result.advice and not result.ok:
                say(f"      {result.advice}")
    raise typer.Exit(0 if all(r.ok for r in results if r.required) else 3)
