"""The `orrery` command. Imports nothing heavy: each command imports what it needs when it is called."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point. Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 not running or not well."""
    from orrery_events.errors import OrreryError

    from .commands import app
    from .console import complain, paint
    from .errors import CliError

    try:
        app(prog_name="orrery")
    except OrreryError as error:
        complain(f"{paint('orrery:', 'red', stream=sys.stderr)} {error}")
        sys.exit(error.exit_code if isinstance(error, CliError) else 1)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
