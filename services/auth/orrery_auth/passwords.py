"""argon2id, off the event loop and bounded: at most two hashes are computed at a time, a few dozen may wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import argon2

from orrery_runtime.http import HttpError

T = TypeVar("T")

THREADS: Final = 2
WAITING_MAX: Final = 64
_NOBODY: Final = "somebody who does not exist"


class Hasher:
    """Hashes and verifies passwords with the library's own parameters (RFC 9106, low memory)."""

    def __init__(self) -> None:
        self._argon2 = argon2.PasswordHasher()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._places = WAITING_MAX
        self._dummy = ""

    async def hash(self, password: str) -> str:
        """The encoded hash, with its salt and parameters."""
        return await self._run(lambda: self._argon2.hash(password))

    async def verify(self, encoded: str | None, password: str) -> bool:
        """True if the password belongs to the hash. Without a hash the same work is done, so that the time taken does
        not tell which accounts exist."""
        return await self._run(lambda: self._verify(encoded, password))

    def outdated(self, encoded: str) -> bool:
        """True if the parameters have been raised since: hash again at the next sign-in."""
        return self._argon2.check_needs_rehash(encoded)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, encoded: str | None, password: str) -> bool:
        if encoded is None and not self._dummy:
            self._dummy = self._argon2.hash(_NOBODY)
        try:
            genuine = self._argon2.verify(encoded or self._dummy, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
        return genuine and encoded is not None

    async def _run(self, work: Callable[[], T]) -> T:
        if self._places == 0:
            raise HttpError(503, "Many people are signing in right now. Try again in a few seconds.")
        self._places -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._places += 1
