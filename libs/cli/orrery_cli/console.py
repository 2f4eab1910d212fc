"""What a person sees: colours when a terminal is there and NO_COLOR is not, tables, and three-line errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import IO, Final

CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35"}
CODES_BY_SLOT: Final = ("36", "35", "34", "33", "32", "96", "95", "94")


def coloured(stream: IO[str] | None = None) -> bool:
    """True when colours may be written to the stream (stdout)."""
    if os.environ.get("NO_COLOR"):
        return False
    return (stream or sys.stdout).isatty()


def paint(text: str, *styles: str, stream: IO[str] | None = None) -> str:
    if not text or not coloured(stream):
        return text
    return f"\x1b[{';'.join(CODES.get(s, s) for s in styles)}m{text}\x1b[0m"


def say(text: str = "") -> None:
    """One line on stdout, at once. Raises BrokenPipeError when its reader has gone (`| head`)."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain again when it flushes at exit.
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
        raise


def announce(text: str = "") -> None:
    """One line on stdout, for whoever still reads: a closed terminal must not disturb what is being done."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        # What could not be written would be tried again at exit, which then counts as failed (status 120).
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


def complain(text: str) -> None:
    """One line on stderr, for whoever still reads."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 (see announce)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [paint("  ".join(cell.ljust(width) for cell, width in zip(head, widths, strict=True)).rstrip(), "bold")]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
