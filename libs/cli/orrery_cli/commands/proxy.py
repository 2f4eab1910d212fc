"""`orrery proxy`: a drop-in for configurable-http-proxy."""

from __future__ import annotations

import typer


def proxy(context: typer.Context) -> None:
    """Runs a drop-in for configurable-http-proxy: its flags, its REST API, as many replicas as you like.

    Alone on an embedded database and broker, or on your own (ORRERY_DATABASE_URL, ORRERY_NATS_URL).
    """
    from orrery_cli.proxy.main import run

    raise typer.Exit(run(context.args, prog="orrery proxy"))
