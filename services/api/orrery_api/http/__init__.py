"""Api's HTTP: one module per resource."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from . import profiles, progress, root, servers, users

__all__ = ["routes"]


def routes() -> Sequence[web.AbstractRouteDef]:
    return [*root.ROUTES, *users.ROUTES, *servers.ROUTES, *progress.ROUTES, *profiles.ROUTES, *root.LAST]
