"""Keys derived from the platform's one secret.

Every process of a platform is given the same `secret_key`; from it each derives the same keys, so that routers and
spawners agree on a server's secret without ever sending it to one another.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from functools import cached_property
from typing import Protocol

from .errors import ConfigError

SECRET_KEY_LENGTH_MIN = 32
"""Characters; `openssl rand -hex 32` gives 64."""
EDGE_HEADER = "X-Orrery-Edge"
"""Routers prove with it to auth and api that the X-Forwarded-* headers of a request are theirs."""


class _Secret(Protocol):
    def get_secret_value(self) -> str: ...


class Secrets:
    """Derives keys; never prints itself. Raises ConfigError when the secret is missing or too short."""

    def __init__(self, secret_key: _Secret | str) -> None:
        text = secret_key if isinstance(secret_key, str) else secret_key.get_secret_value()
        if len(text) < SECRET_KEY_LENGTH_MIN:
            raise ConfigError(
                f"secret_key is {'missing' if not text else 'too short'}: set ORRERY_SECRET_KEY_FILE to a file that "
                f"holds at least {SECRET_KEY_LENGTH_MIN} characters (`openssl rand -hex 32`), one for all processes"
            )
        self._key = text.encode()

    def __repr__(self) -> str:
        return "Secrets(***)"

    def derive(self, label: str) -> bytes:
        """32 bytes that only holders of the secret key know; other labels give unrelated bytes."""
        return hmac.new(self._key, b"orrery/v1/" + label.encode(), hashlib.sha256).digest()

    def server_secret(self, server_id: str, generation: int) -> str:
        """What routers present to one start of one server. Derived anew where needed, stored nowhere."""
        mac = hmac.new(self._server_key, f"{server_id}\x1f{generation}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(mac.digest()).decode().rstrip("=")

    @cached_property
    def _server_key(self) -> bytes:
        return self.derive("server")

    @cached_property
    def xsrf_key(self) -> bytes:
        return self.derive("xsrf")

    @cached_property
    def edge_proof(self) -> str:
        """Value of the `X-Orrery-Edge` header."""
        return self.derive("edge").hex()

    def is_edge(self, presented: str | None) -> bool:
        """True if a request's `X-Orrery-Edge` header is genuine. Takes the same time for every wrong value."""
        return hmac.compare_digest((presented or "").encode(), self.edge_proof.encode())
