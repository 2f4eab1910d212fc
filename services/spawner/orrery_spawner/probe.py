"""Does a server answer, and is it the one that we started?"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import Enum
from urllib.parse import urlsplit

import aiohttp

from orrery_events.catalog.profile import Profile

from .drivers.base import Driver, LaunchSpec

TIMEOUT_S = 2.0
"""Of one connection or request."""


class Verdict(Enum):
    """What one probe has shown."""

    CLOSED = "closed"
    """Nothing accepts connections there."""
    FAILING = "failing"
    """It accepts connections, but answers with an error, or not in time, or no HTTP."""
    FOREIGN = "foreign"
    """Something else answers there."""
    OURS = "ours"


def probe_url(spec: LaunchSpec, profile: Profile, target: str) -> str:
    """What is fetched: the profile's probe path below the server's base URL."""
    return target + spec.base_url.rstrip("/") + "/" + profile.probe_path.lstrip("/")


async def probe_once(driver: Driver, spec: LaunchSpec, profile: Profile, target: str) -> Verdict:
    """Who listens there, and one request with the server's own secret if it is ours. Raises DriverUnavailable."""
    if not await _accepts(target):
        return Verdict.CLOSED
    # Asked before the secret is sent: a stranger on the port must not be told it.
    ours = await driver.owns_target(spec.key)
    if ours is False:
        return Verdict.FOREIGN
    status = await _fetch(spec, profile, target)
    if status is None or status >= 500:
        return Verdict.FAILING
    if ours is None and profile.secret_header and status in (401, 403):
        # The system does not say who listens, and a server that refuses the secret is not the one we gave it to.
        return Verdict.FOREIGN
    return Verdict.OURS


async def _accepts(target: str) -> bool:
    parts = urlsplit(target)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


async def _fetch(spec: LaunchSpec, profile: Profile, target: str) -> int | None:
    """The status of the answer; None if there was none."""
    headers = {"User-Agent": "orrery-probe"}
    if profile.secret_header:
        headers[profile.secret_header] = profile.secret_prefix + spec.secret
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(probe_url(spec, profile, target), headers=headers, allow_redirects=False) as answer,
        ):
            return answer.status
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
