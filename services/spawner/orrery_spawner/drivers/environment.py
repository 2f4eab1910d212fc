"""What a server's environment and command are made of.

A server gets the few variables of the platform's own environment that make programs work, and nothing else: whatever
the platform was given in its environment (passwords, keys, URLs with credentials) stays with the platform.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from .base import LaunchRefused, LaunchSpec, ServerKey

ALLOWED = frozenset(
    {"PATH", "LANG", "LANGUAGE", "TZ", "SHELL", "TMPDIR", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"}
    | {"LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
)
"""Taken over as they are, and so is every `LC_…`. Proxy variables are not: their URLs may hold passwords."""
PATH_DEFAULT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ID_MARKER = "ORRERY_SERVER_ID"
GENERATION_MARKER = "ORRERY_GENERATION"
"""Inherited by everything that a server starts; by these two its processes are found again."""
BASE_URL_VARIABLE = "ORRERY_BASE_URL"
PORT_VARIABLE = "PORT"

_PLACEHOLDER = re.compile(r"\{(port|base_url|home|user|python)\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def environment(platform: Mapping[str, str], spec: LaunchSpec, *, home: Path, port: int) -> dict[str, str]:
    """All variables of a server. Raises LaunchRefused when the profile's secret variable has an impossible name."""
    env = {name: value for name, value in platform.items() if name in ALLOWED or name.startswith("LC_")}
    # Programs that came with the platform (python, jupyter) are found first, whether or not its venv was activated.
    own = str(Path(sys.executable).parent)
    paths = [path for path in env.get("PATH", PATH_DEFAULT).split(os.pathsep) if path != own]
    env["PATH"] = os.pathsep.join([own, *paths])
    env["HOME"] = str(home)
    env["USER"] = env["LOGNAME"] = spec.user_name
    env.setdefault("SHELL", login_shell())
    env["JUPYTER_CONFIG_DIR"] = str(home / ".jupyter")
    env["JUPYTER_DATA_DIR"] = str(home / ".local/share/jupyter")
    env["JUPYTER_RUNTIME_DIR"] = str(home / ".local/share/jupyter/runtime")
    env[PORT_VARIABLE] = str(port)
    env[BASE_URL_VARIABLE] = spec.public_path
    if spec.secret_env:
        if not _VARIABLE.fullmatch(spec.secret_env) or spec.secret_env in (*env, ID_MARKER, GENERATION_MARKER):
            raise LaunchRefused(
                f"the profile's secret_env {spec.secret_env!r} cannot be used: "
                "give it a name of letters, digits and _ that is not taken"
            )
        env[spec.secret_env] = spec.secret
    env |= markers(spec.key)
    return env


def markers(key: ServerKey) -> dict[str, str]:
    """The variables that every process of this start carries."""
    return {ID_MARKER: key.server_id, GENERATION_MARKER: str(key.generation)}


def command_line(spec: LaunchSpec, *, home: Path, port: int) -> list[str]:
    """The argument list with placeholders filled in; other braces stay as they are. No shell ever sees it."""
    if not spec.command or not spec.command[0]:
        raise LaunchRefused("the profile has no command: define one")
    values = {
        "port": str(port),
        "base_url": spec.base_url,
        "home": str(home),
        "user": spec.user_name,
        "python": sys.executable,
    }
    filled = [_PLACEHOLDER.sub(lambda found: values[found[1]], word) for word in spec.command]
    if any("\0" in word for word in filled):
        raise LaunchRefused("the profile's command holds a zero byte: correct it")
    return filled


def login_shell() -> str:
    """The shell of the account that the platform runs under."""
    try:
        return pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    except KeyError:
        return "/bin/sh"
