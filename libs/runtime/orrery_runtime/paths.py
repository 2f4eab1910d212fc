"""Which service answers a control-plane path, and which paths need no session.

The router enforces both (default deny); tests enumerate the public ones. Paths are the URL's path below the base URL,
percent-decoded, and always start with `/`. A path that is not in canonical form (`//`, `/./`, `/../`, a backslash or a
NUL) is public nowhere, so that nothing slips through by being spelled differently.
"""

from __future__ import annotations

import re
from typing import Literal

ControlService = Literal["auth", "api"]

_AUTH = re.compile(
    r"/hub/login|/hub/logout|/hub/password(?:/[^/]*)?"
    r"|/(?:hub/)?setup(?:/.*)?"
    r"|/hub/api/users/[^/]+/tokens(?:/[^/]*)?|/hub/api/users/[^/]+/password"
    r"|/hub/api/(?:authorizations|oauth2)(?:/.*)?",
    re.DOTALL,
)
_PUBLIC_READ = re.compile(
    r"/hub/login|/hub/logout"
    r"|/(?:hub/)?setup/[^/]+"
    r"|/hub/api/?|/hub/health|/hub/api/health"
    r"|/hub/static/.+|/hub/logo|/favicon\.ico",
    re.DOTALL,
)
_PUBLIC_POST = re.compile(r"/hub/login|/hub/setup/[^/]+|/hub/api/users/[^/]+/tokens")
_NOT_CANONICAL = re.compile(r"//|\\|\x00|/\.{1,2}(?:/|$)")


def is_control(path: str) -> bool:
    """True if auth or api answer the path, whoever asks; otherwise the routing table decides."""
    return path in ("/", "/hub", "/favicon.ico", "/setup") or path.startswith(("/hub/", "/setup/"))


def service_for(path: str, method: str = "GET") -> ControlService:  # noqa: ARG001  (part of the agreed interface)
    """The service that answers a control-plane path (see `is_control`)."""
    return "auth" if _AUTH.fullmatch(path) else "api"


def is_public(path: str, method: str) -> bool:
    """True if the request may pass without a session or token: a short list, everything else is denied."""
    if _NOT_CANONICAL.search(path):
        return False
    if method in ("GET", "HEAD"):
        return _PUBLIC_READ.fullmatch(path) is not None
    return method == "POST" and _PUBLIC_POST.fullmatch(path) is not None


def below_base(path: str, base_url: str) -> str | None:
    """The path below the base URL, with its leading `/`; None if it is not below it."""
    if path == base_url.rstrip("/"):
        return "/"
    return path[len(base_url) - 1 :] if path.startswith(base_url) else None
