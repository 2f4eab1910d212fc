"""Rules for the names that people choose: user names and server names.

Cheap to import on purpose: every service and the command line use it.
"""

from __future__ import annotations

import re

from .errors import OrreryError

USER_NAME_MAX = 63
SERVER_NAME_MAX = 30

_USER_NAME = re.compile(r"[a-z0-9][a-z0-9_.@+-]{0,62}")
_SERVER_NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")


class InvalidName(OrreryError):
    """The name is not allowed. Choose another one."""


def normalise_user_name(name: str) -> str:
    """The one spelling of a user name: trimmed and in lower case. Raises InvalidName.

    Only ASCII is lower-cased: `"\\N{KELVIN SIGN}"` must not become the user `k`.
    """
    text = name.strip()
    if not text:
        raise InvalidName("a user name must not be empty")
    lowered = text.lower() if text.isascii() else text
    if not _USER_NAME.fullmatch(lowered):
        raise InvalidName(
            f"user name {_shown(text)} is not allowed: use 1 to {USER_NAME_MAX} of a-z, 0-9 and _ . @ + -, "
            "beginning with a letter or digit"
        )
    return lowered


def is_user_name(name: str) -> bool:
    """True for a name in its normalised spelling."""
    return _USER_NAME.fullmatch(name) is not None


def check_server_name(name: str) -> str:
    """The name itself, if a server may be called so; the empty name is the default server. Raises InvalidName.

    The rule is JupyterHub 6's: 1 to 30 lower-case letters, digits and single hyphens, letter first, no hyphen last.
    """
    if not name:
        return name
    if len(name) > SERVER_NAME_MAX or "--" in name or not _SERVER_NAME.fullmatch(name):
        raise InvalidName(
            f"server name {_shown(name)} is not allowed: use 1 to {SERVER_NAME_MAX} of a-z, 0-9 and single hyphens, "
            "beginning with a letter and ending with a letter or digit"
        )
    return name


def is_server_name(name: str) -> bool:
    """True if a server may be called so (the empty name, of the default server, included)."""
    try:
        check_server_name(name)
    except InvalidName:
        return False
    return True


def _shown(text: str) -> str:
    """The rejected name for a message, shortened and without control characters."""
    return ascii(text if len(text) <= 64 else text[:61] + "...")
