"""Settings that the command line must know itself, read without the settings model (which is slow to import).

The same sources in the same order as `orrery_runtime.config`: a flag is looked at by the caller, then come the
environment, `<name>_file` in it, and the TOML file that ORRERY_CONFIG names.
"""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .errors import UsageError

PREFIX = "ORRERY_"


class Given(NamedTuple):
    """A setting that somebody made."""

    value: str
    source: Literal["environment", "file"]


def given(name: str) -> Given | None:
    """What the environment or the TOML file says of a setting; None when neither does. Raises UsageError."""
    direct, named = os.environ.get(PREFIX + name.upper(), ""), os.environ.get(f"{PREFIX}{name.upper()}_FILE", "")
    if direct:
        return Given(direct, "environment")
    if named:
        return Given(_read(Path(named), f"{PREFIX}{name.upper()}_FILE"), "environment")
    values = toml()
    if values.get(name):
        return Given(str(values[name]), "file")
    if values.get(f"{name}_file"):
        return Given(_read(Path(str(values[f"{name}_file"])), f"{name}_file"), "file")
    return None


def text(name: str) -> str:
    """The setting's value, or nothing."""
    found = given(name)
    return found.value if found else ""


def base_path() -> str:
    """What comes before every path, without the slash at the end."""
    path = text("base_url").strip("/")
    return f"/{path}" if path else ""


def seconds(name: str, default: float) -> float:
    """A duration. What is none is the default here: the services, who read it too, tell the mistake."""
    try:
        value = float(text(name))
    except ValueError:
        return default
    return value if 0 <= value < math.inf else default


def public_url(local: str) -> str:
    """Where people find the platform; `local` (already with the base path) unless something else was configured."""
    configured = text("public_url")
    return configured.rstrip("/") + base_path() if configured else local


def toml() -> dict[str, Any]:
    """The TOML file, whose mistakes are told by the services, who know every setting. Raises UsageError."""
    path = os.environ.get(f"{PREFIX}CONFIG", "")
    if not path:
        return {}
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}, which ORRERY_CONFIG names: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read {path}, which {setting} names: {reason}") from None
