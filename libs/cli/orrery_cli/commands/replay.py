"""`orrery replay --verify`: proof that every projection equals the log."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orrery_cli.console import paint, say
from orrery_cli.errors import UsageError

from .options import DataDirOption, Output, OutputOption


def replay(
    *,
    data_dir: DataDirOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare; change nothing.")] = False,
    output: OutputOption = Output.table,
) -> None:
    """Folds the whole log anew and compares it with what every running process holds. Exit code 1 on a difference."""
    import asyncio

    import msgspec

    from orrery_cli import verify as verification
    from orrery_cli.backend import database_url
    from orrery_cli.datadir import DataDir
    from orrery_cli.servers import opened

    if not verify:
        raise UsageError("say what is to be done with the replayed log: `orrery replay --verify` compares it")
    place = DataDir(data_dir)

    async def run() -> list[verification.Finding]:
        async with opened(database_url(place)) as log:
            return await verification.verify(log, await verification.live_digests(place))

    findings = asyncio.run(run())
    if output is Output.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(findings)).decode() + "\n")
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            verdict = paint("ok", "green") if finding.ok else paint("DIFFERS", "red")
            say(f"{finding.what.ljust(width)}  {verdict}  {finding.detail}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)
