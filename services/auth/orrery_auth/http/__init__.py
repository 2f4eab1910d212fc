"""Auth's HTTP: sign in and out, set-up, passwords, tokens."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from . import pages, passwords, tokens

__all__ = ["routes"]


def routes() -> Sequence[web.AbstractRouteDef]:
    return [*pages.ROUTES, *passwords.ROUTES, *tokens.ROUTES]
