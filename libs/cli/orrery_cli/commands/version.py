"""`orrery version`."""

from __future__ import annotations

from orrery_cli.console import say


def version() -> None:
    """Prints the version."""
    from orrery_runtime.version import version as installed

    say(installed())
