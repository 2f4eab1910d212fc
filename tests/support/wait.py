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
    check: Callable[[], Awaitable[T]], timeout_s: float = ..., interval_s: float = ..., message: str = ...
) -> T: ...
@overload
async def eventually(
    check: Callable[[], T], timeout_s: float = ..., interval_s: float = ..., message: str = ...
) -> T: ...
async def eventually(
    check: Callable[[], Any], timeout_s: float = 10, interval_s: float = 0.02, message: str = ""
) -> Any:
    """Calls `check` (sync or async) until it returns something true, and returns that. AssertionError after
    `timeout_s`; what `check` raises is raised at once."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = check()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return result
        if time.monotonic() > deadline:
            what = message or getattr(check, "__qualname__", repr(check))
            raise AssertionError(f"not true within {timeout_s} s: {what}; last value: {result!r}")
        await asyncio.sleep(interval_s)
