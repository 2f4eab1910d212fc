"""Style sheets, scripts, pictures: few and small, so they are held in memory with their ETags."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from aiohttp import web

FOLDERS: Final = (("orrery_runtime", "web/static"), ("orrery_api", "static"))
CACHE_CONTROL: Final = "no-cache"
"""Kept by browsers, asked about each time: a new release shows at once."""


def _load(folders: Iterable[tuple[str, str]]) -> dict[str, tuple[bytes, str, str]]:
    """Name → content, type, ETag."""
    found: dict[str, tuple[bytes, str, str]] = {}
    for package, folder in folders:
        for file in files(package).joinpath(folder).iterdir():
            if file.is_file():
                found[file.name] = _one(file)
    return found


def _one(file: Traversable) -> tuple[bytes, str, str]:
    content = file.read_bytes()
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return content, kind, hashlib.sha256(content).hexdigest()[:32]


_FILES: Final = _load(FOLDERS)


async def static_file(request: web.Request) -> web.Response:
    found = _FILES.get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound
    content, kind, etag = found
    if any(known.value == etag for known in request.if_none_match or ()):
        return web.Response(status=304, headers={"ETag": f'"{etag}"', "Cache-Control": CACHE_CONTROL})
    headers = {"ETag": f'"{etag}"', "Cache-Control": CACHE_CONTROL}
    charset = "utf-8" if kind.startswith("text/") else None
    return web.Response(body=content, content_type=kind, charset=charset, headers=headers)


async def icon(request: web.Request) -> web.Response:
    request.match_info["name"] = "orrery.svg"
    return await static_file(request)


ROUTES: Final = [
    web.get("/hub/static/{name}", static_file),
    web.get("/hub/logo", icon),
    web.get("/favicon.ico", icon),
]
