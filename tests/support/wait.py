"""Waiting for a state, never for a while."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    check: Callable[[], T | Awaitable[T]], *, timeout_s: float = 10.0, interval_s: float = 0.02, what: str = ""
) -> T:
    """Calls `check` until it returns something true, and returns that. An AssertionError in it counts as not yet.

    Raises AssertionError after `timeout_s`, with the last thing that `check` said.
    """
    deadline = time.monotonic() + timeout_s
    last: object = None
    while True:
        try:
            found = check()
            result = await found if inspect.isawaitable(found) else found
            if result:
                return result
            last = result
        except AssertionError as error:
            if str(error).startswith("orrery up ended"):
                raise
            last = error
        if time.monotonic() > deadline:
            name = what or getattr(check, "__qualname__", repr(check))
            raise AssertionError(f"not within {timeout_s} s: {name}; last seen: {last!r}")
        await asyncio.sleep(interval_s)
