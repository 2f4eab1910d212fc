"""The `configurable-http-proxy` command: `orrery proxy` under the name by which JupyterHub starts it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from orrery_cli.console import complain, paint
from orrery_cli.errors import CliError
from orrery_events.errors import OrreryError


def run(argv: Sequence[str], *, prog: str) -> int:
    """The exit code. Raises OrreryError."""
    from .flags import parse
    from .run import ProxyRun

    flags = parse(argv, prog=prog)

    async def main() -> int:
        return await ProxyRun(flags).run()

    return asyncio.run(main())


def main() -> None:
    """Entry point."""
    prog = "configurable-http-proxy"
    try:
        sys.exit(run(sys.argv[1:], prog=prog))
    except OrreryError as error:
        complain(f"{paint(f'{prog}:', 'red', stream=sys.stderr)} {error}")
        sys.exit(error.exit_code if isinstance(error, CliError) else 1)
