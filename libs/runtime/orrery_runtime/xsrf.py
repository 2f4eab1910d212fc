"""Signed double-submit tokens against cross-site request forgery.

The cookie `_xsrf` holds `nonce.mac`, where the mac binds the nonce to the session (or to `anonymous` before sign-in).
A request that changes something and is authenticated by cookie must repeat the cookie's value in the form field
`_xsrf`, the query parameter `_xsrf` or the header `X-XSRFToken`: another site can make a browser send the cookie, but
can neither read it nor forge one for the victim's session.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

COOKIE = "_xsrf"
FIELD = "_xsrf"
HEADER = "X-XSRFToken"
ANONYMOUS = "anonymous"
NONCE_BYTES = 16
TOKEN_LENGTH_MAX = 128
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def new_token(key: bytes, binding: str = ANONYMOUS) -> str:
    """A fresh token for the session with the id `binding`."""
    nonce = _encode(secrets.token_bytes(NONCE_BYTES))
    return f"{nonce}.{_mac(key, nonce, binding)}"


def is_genuine(key: bytes, binding: str, token: str) -> bool:
    """True if `new_token` made the token with this key for their session."""
    nonce, dot, mac = token.partition(".")
    if not dot or len(token) > TOKEN_LENGTH_MAX:
        return False
    return hmac.compare_digest(mac.encode(), _mac(key, nonce, binding).encode())


def is_valid(key: bytes, binding: str, *, cookie: str, submitted: str) -> bool:
    """True if the request may change something: the submitted token equals the cookie and belongs to the session."""
    same = hmac.compare_digest(cookie.encode(), submitted.encode())
    return same and is_genuine(key, binding, cookie)


def _mac(key: bytes, nonce: str, binding: str) -> str:
    return _encode(hmac.new(key, f"{nonce}|{binding}".encode(), hashlib.sha256).digest())


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
