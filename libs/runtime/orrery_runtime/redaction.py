"""Keeps secrets out of log lines: by the name of a field, by the look of a value, and by knowing this process's own.

Three nets, because each has holes: a field can have an innocent name, a secret can look like any other text, and not
every secret is known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "[redacted]"
DEPTH_MAX = 6
"""Deeper structures are shown as text."""
TEXT_LENGTH_MAX = 32_768
"""Characters of one value in a log line."""
LITERAL_LENGTH_MIN = 8
"""Shorter own secrets are not searched for: they would blank out ordinary words."""

_SECRET_FIELD = re.compile(
    r"(?:^|[_.-])(?:password\d?|passwd|passphrase|secret|secrets|token|tokens|authorization|cookie|cookies|xsrf|"
    r"private_key|api_key|secret_key|auth_key|signing_key|credential|credentials|edge_proof|code_verifier|otp)$",
    re.IGNORECASE,
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"\borr_[A-Za-z0-9_.-]{8,}"), MASK),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"), MASK),
    (re.compile(r"\$argon2(?:id|i|d)\$[^\s\"']+"), MASK),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://[^\s/@:\"']*):[^\s/\"']*@"), rf"\1:{MASK}@"),
    (re.compile(r"(?i)\b(bearer|token|basic)\s+[A-Za-z0-9._~+/=-]{16,}"), rf"\1 {MASK}"),
    (re.compile(r"(?i)([?&](?:token|access_token|_xsrf|code|state|password)=)[^&\s\"']+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(/setup/)[A-Za-z0-9_.-]{8,}"), rf"\1{MASK}"),
    (
        re.compile(
            r"(?i)((?:password|passwd|passphrase|secret_key|auth_key)\d?)(['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|\S+)"
        ),
        rf"\1\2{MASK}",
    ),
    (
        re.compile(
            r"(?i)\b(authorization|set-cookie|cookie|x-xsrftoken|x-orrery-edge)(['\"]?\s*[=:]\s*)"
            r"(?:'[^']*'|\"[^\"]*\"|[^\n,]+)"
        ),
        rf"\1\2{MASK}",
    ),
)
_MARKS = ("-----", "orr_", "eyj", "$argon2", "://", "bearer", "token", "basic", "pass", "=", ":", "/setup/")
"""If a text holds none of these, no pattern can match it."""

_own: set[str] = set()


def add_own_secrets(*values: str) -> None:
    """Values of this process's own secrets; they are masked wherever they turn up."""
    _own.update(value for value in values if len(value) >= LITERAL_LENGTH_MIN)


def redact_text(text: str) -> str:
    """The text with everything that looks like a secret masked. Of a very long text the middle is left out."""
    if len(text) > TEXT_LENGTH_MAX:
        text = f"{text[: TEXT_LENGTH_MAX // 2]} […] {text[-TEXT_LENGTH_MAX // 2 :]}"
    for secret in _own:
        if secret in text:
            text = text.replace(secret, MASK)
    lowered = text.lower()
    if not any(mark in lowered for mark in _MARKS):
        return text
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact(value: Any, *, depth: int = 0) -> Any:
    """The value with secrets masked, all through mappings and sequences."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode(errors="replace")
    elif depth < DEPTH_MAX and isinstance(value, Mapping):
        return {
            redact_text(str(key)): MASK if is_secret_field(str(key)) and item else redact(item, depth=depth + 1)
            for key, item in value.items()
        }
    elif depth < DEPTH_MAX and isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth=depth + 1) for item in value]
    return redact_text(str(value))


def is_secret_field(name: str) -> bool:
    """True for `password`, `Authorization`, `X-XSRFToken`, `session_cookie`, …; not for `token_id`."""
    return _SECRET_FIELD.search(name) is not None or name.lower() in ("set-cookie", "x-xsrftoken", "x-orrery-edge")
