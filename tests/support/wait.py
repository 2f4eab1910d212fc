"""Waiting for a state with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    check: Callable[[], Awaitable[T]], timeout_s: float = ..., interval_s: float = ..., what: str = ...
) -> T: ...
@overload
async def eventually(check: Callable[[], T], timeout_s: float = ..., interval_s: float = ..., what: str = ...) -> T: ...
async def eventually(check: Callable[[], Any], timeout_s: float = 10, interval_s: float = 0.02, what: str = "") -> Any:
    """Calls `check` (sync or async) until it returns something true, and returns that.

    An AssertionError in `check` counts as not yet; anything else it raises is raised at once. AssertionError after
    `timeout_s`, with the last thing seen.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        seen: Any
        try:
            seen = check()
            if inspect.isawaitable(seen):
                seen = await seen
            if seen:
                return seen
        except AssertionError as error:
            seen = error
        if time.monotonic() > deadline:
            name = what or getattr(check, "__qualname__", repr(check))
            raise AssertionError(f"not true within {timeout_s} s: {name}; last seen: {seen!r}")
        await asyncio.sleep(interval_s)


async def accepts(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
