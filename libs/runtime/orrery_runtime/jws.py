"""Compact JWS with EdDSA over Ed25519, and nothing else (RFC 7515, RFC 8037).

There is no choice of algorithm: the header must be exactly `{alg: "EdDSA", kid, typ}`, so that neither `none` nor an
HMAC keyed with the public key can be talked into. Every encoding must be canonical, so that a token has one spelling.
Written on `cryptography` alone because every process verifies and a JOSE library doubles what that costs at start;
the tests hold it against one.
"""

from __future__ import annotations

import base64
import binascii

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "EdDSA"
SIGNATURE_BYTES = 64


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The protected header. Anything else in it (`crit`, `jwk`, `b64`) makes the token invalid."""

    alg: str
    kid: str
    typ: str


_header_decoder = msgspec.json.Decoder(Header)


class SigningKey:
    """A private Ed25519 key and its id. Never prints itself."""

    def __init__(self, kid: str, raw: bytes) -> None:
        """`raw`: the 32 bytes of the private key."""
        self.kid = kid
        self._key = Ed25519PrivateKey.from_private_bytes(raw)

    def __repr__(self) -> str:
        return f"SigningKey(kid={self.kid!r})"

    @classmethod
    def generate(cls, kid: str) -> SigningKey:
        return cls(kid, Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def public_key(self) -> str:
        """The raw public key, base64url without padding: `auth.key_announced.public_key`."""
        return b64url(self._key.public_key().public_bytes_raw())

    def private_bytes(self) -> bytes:
        """The 32 secret bytes, for encrypted storage only."""
        return self._key.private_bytes_raw()

    def sign(self, typ: str, payload: bytes) -> str:
        """A compact JWS of the payload."""
        header = msgspec.json.encode(Header(ALGORITHM, self.kid, typ))
        signed = f"{b64url(header)}.{b64url(payload)}"
        return f"{signed}.{b64url(self._key.sign(signed.encode()))}"


def public_key(text: str) -> Ed25519PublicKey:
    """The key of an `auth.key_announced` event. Raises ValueError."""
    raw = unb64url(text)
    if raw is None:
        raise ValueError("a public key must be base64url without padding")
    return Ed25519PublicKey.from_public_bytes(raw)


def header_of(token: str) -> Header | None:
    """The (not yet verified) header, if it is one of ours."""
    raw = unb64url(token.partition(".")[0])
    if raw is None:
        return None
    try:
        header = _header_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return header if header.alg == ALGORITHM else None


def verified_payload(token: str, key: Ed25519PublicKey) -> bytes | None:
    """The payload, if the key signed it. The caller has looked at the header."""
    signed, _, signature_text = token.rpartition(".")
    signature = unb64url(signature_text)
    _, dot, payload_text = signed.partition(".")
    payload = unb64url(payload_text)
    if not dot or payload is None or signature is None or len(signature) != SIGNATURE_BYTES:
        return None
    try:
        key.verify(signature, signed.encode())
    except InvalidSignature:
        return None
    return payload


def b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64url(text: str) -> bytes | None:
    """The bytes, if the text is their one canonical base64url spelling without padding."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if b64url(raw) == text else None
