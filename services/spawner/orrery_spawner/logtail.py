"""The last lines of a server's log, made fit for an event: short, plain and without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable

from orrery_runtime.redaction import MASK, redact_text

LINES_MAX = 50
LINE_LENGTH_MAX = 500
BYTES_MAX = 24_576
"""Of the whole tail; an event takes 64 KiB, and JSON may double what it escapes."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def presentable(lines: Iterable[str], secrets: Iterable[str] = ()) -> list[str]:
    """The last LINES_MAX lines; `secrets` are masked wherever they stand, and whatever looks like one."""
    hidden = [secret for secret in secrets if secret]
    kept: list[str] = []
    size = 0
    for line in reversed(list(lines)[-LINES_MAX:]):
        plain = line
        for secret in hidden:
            plain = plain.replace(secret, MASK)
        plain = redact_text(_CONTROLS.sub("", _ESCAPES.sub("", plain))).rstrip()[:LINE_LENGTH_MAX]
        size += len(plain.encode()) + 8
        if size > BYTES_MAX:
            break
        kept.append(plain)
    return kept[::-1]
