"""What is remembered by the bytes that it followed from."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

Value = TypeVar("Value")

KEY_BYTES_MAX: Final = 8 * 1024
GENERATION_MAX: Final = 512


class Remembered(Generic[Value]):
    """Two generations: when the young one is full, the old one is forgotten; what is found there is young again."""

    def __init__(self, generation_max: int = GENERATION_MAX) -> None:
        self._generation_max = generation_max
        self._young: dict[bytes, Value] = {}
        self._old: dict[bytes, Value] = {}

    def find(self, key: bytes) -> Value | None:
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self._keep(key, value)
        return value

    def learn(self, key: bytes, value: Value) -> bool:
        """False: it is too long to be kept."""
        if len(key) > KEY_BYTES_MAX:
            return False
        self._keep(key, value)
        return True

    def _keep(self, key: bytes, value: Value) -> None:
        if len(self._young) >= self._generation_max:
            self._old, self._young = self._young, {}
        self._young[key] = value
