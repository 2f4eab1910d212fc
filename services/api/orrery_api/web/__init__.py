"""The pages: server-rendered, usable without JavaScript."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from . import pages, static

__all__ = ["routes"]


def routes() -> Sequence[web.AbstractRouteDef]:
    return [*pages.ROUTES, *static.ROUTES]
