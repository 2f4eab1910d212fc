"""Log files that do not grow for ever, and the live view of `orrery up --logs`.

Processes write to their files themselves, so that nothing is lost when the supervisor is killed and nobody stands still
when it is slow. Rotation copies the file and truncates it (all writers append); what is written in between is lost,
which a bound on disk space is worth.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Final

from orrery_cli.console import CODES_BY_SLOT, announce, paint

FILE_BYTES_MAX: Final = 10 * 2**20
OLD_FILES: Final = 2
CHECK_S: Final = 5.0
FOLLOW_S: Final = 0.1
LINE_BYTES_MAX: Final = 16_384
TAIL_BYTES: Final = 8_192


class Logs:
    """The log files of all slots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._slots: list[str] = []

    def path(self, slot: str) -> Path:
        return self.folder / f"{slot}.log"

    def open(self, slot: str) -> int:
        """A file descriptor that appends; the caller closes it."""
        if slot not in self._slots:
            self._slots.append(slot)
        return os.open(self.path(slot), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def last_line(self, slot: str) -> str:
        """The last thing a process said, or nothing."""
        lines = self.last_lines(slot, 1)
        return lines[0] if lines else ""

    def last_lines(self, slot: str, count: int) -> list[str]:
        try:
            with self.path(slot).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return []
        return [line for line in lines if line.strip()][-count:]

    async def keep_bounded(self) -> None:
        """Rotates for ever."""
        while True:
            for slot in self._slots:
                self.rotate(slot)
            await asyncio.sleep(CHECK_S)

    def rotate(self, slot: str) -> None:
        """Begins the file anew when it is too large; keeps OLD_FILES old ones."""
        path = self.path(slot)
        try:
            if path.stat().st_size <= FILE_BYTES_MAX:
                return
            for number in range(OLD_FILES, 1, -1):
                older = path.with_suffix(f".log.{number - 1}")
                if older.exists():
                    older.rename(path.with_suffix(f".log.{number}"))
            shutil.copyfile(path, path.with_suffix(".log.1"))
            path.with_suffix(".log.1").chmod(0o600)
            os.truncate(path, 0)
        except OSError as error:
            announce(f"  the log {path} cannot be rotated ({error.strerror}): make room")

    async def show(self) -> None:
        """Prints what is appended to any of the files, each line with its slot, for ever."""
        at: dict[str, int] = {}
        while True:
            for number, slot in enumerate(self._slots):
                begin = at.setdefault(slot, self._size(slot))
                at[slot] = begin + self._show_from(slot, begin, CODES_BY_SLOT[number % len(CODES_BY_SLOT)])
            await asyncio.sleep(FOLLOW_S)

    def _show_from(self, slot: str, begin: int, colour: str) -> int:
        """Prints whole lines after `begin`; returns how many bytes they were (negative after a truncation)."""
        size = self._size(slot)
        if size < begin:
            return -begin
        if size == begin:
            return 0
        with self.path(slot).open("rb") as file:
            file.seek(begin)
            chunk = file.read(1 << 20)
        whole = chunk.rpartition(b"\n")[0]
        if not whole and len(chunk) < LINE_BYTES_MAX:
            return 0
        text = whole or chunk
        width = max(len(s) for s in self._slots)
        for line in text.decode(errors="replace").splitlines():
            announce(f"{paint(slot.ljust(width), colour)} {paint('|', 'dim')} {line}")
        return len(text) + (1 if whole else 0)

    def _size(self, slot: str) -> int:
        try:
            return self.path(slot).stat().st_size
        except OSError:
            return 0
