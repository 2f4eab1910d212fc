"""TLS on either side: contexts made from files, and made anew when the files change."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

import structlog
from prometheus_client import Gauge

from orrery_runtime.config import Settings
from orrery_runtime.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

EXPIRES: Final = Gauge(
    "orrery_router_tls_certificate_expires_seconds", "When the certificate that ends first ends, as Unix time."
)

T = TypeVar("T")
_log = structlog.get_logger("orrery.router")


class Reloaded(Generic[T]):
    """A value that is made from files, and again when one of them changes; one that cannot be made changes nothing.
    Without files it is made when it is first needed."""

    def __init__(self, what: str, paths: Sequence[Path], make: Callable[[], T]) -> None:
        """Raises ConfigError when the value cannot be made."""
        self._what, self._paths, self._make = what, tuple(paths), make
        self._seen = self._look()
        self._value: T | None = None
        try:
            if paths:
                self._value = make()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{what} cannot be used: {_reason(error)}") from None

    @property
    def value(self) -> T:
        if self._value is None:
            self._value = self._make()
        return self._value

    def tick(self) -> bool:
        """Once a second; True if the value is a new one. Connections that are open keep what they began with."""
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self._value = self._make()
        except (OSError, ValueError) as error:
            _log.error(
                "tls_files_refused",
                what=self._what,
                reason=_reason(error),
                consequence="the former ones stay in use: put right what was written",
            )
            return False
        _log.info("tls_files_loaded", what=self._what)
        return True

    def _look(self) -> list[tuple[int, int, int] | None]:
        """Differs when a file was written, replaced, removed, or is now behind another link."""
        seen: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                state = path.stat()
            except OSError:
                seen.append(None)
            else:
                seen.append((state.st_mtime_ns, state.st_size, state.st_ino))
        return seen


def _reason(error: Exception) -> str:
    """OpenSSL's own words say too little about the commonest mistakes."""
    if isinstance(error, ssl.SSLError):
        known = {
            "KEY_VALUES_MISMATCH": "the key is not the certificate's",
            "NO_START_LINE": "a file is not PEM",
        }
        return known.get(error.reason or "", error.reason or str(error))
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


class KeyPair(NamedTuple):
    """A certificate with its chain, and its private key."""

    cert_file: Path
    key_file: Path


def key_pairs(cert_files: str, key_files: str) -> list[KeyPair]:
    """The settings' lists. Raises ConfigError when they do not go together."""
    certs, keys = ([Path(p.strip()) for p in text.split(",") if p.strip()] for text in (cert_files, key_files))
    if keys and len(keys) != len(certs):
        raise ConfigError(
            f"tls_cert_files names {len(certs)} files and tls_key_files {len(keys)}: give one key for each certificate"
        )
    return [KeyPair(cert, key) for cert, key in zip(certs, keys or certs, strict=True)]


def server_tls(settings: Settings) -> Reloaded[ssl.SSLContext] | None:
    """What clients are answered with; None without a certificate. Raises ConfigError."""
    pairs, ca = key_pairs(settings.tls_cert_files, settings.tls_key_files), settings.tls_client_ca_file
    if not pairs:
        return None
    paths = [*(path for pair in pairs for path in pair), *([ca] if ca else [])]
    return Reloaded("tls_cert_files", paths, lambda: server_context(pairs, ca))


def server_context(pairs: Sequence[KeyPair], client_ca: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2 or later, HTTP/1.1. The name that a client asks for chooses among the certificates, the first is for all
    others. Raises OSError and ValueError."""
    from cryptography import x509  # noqa: PLC0415 (only who serves TLS needs it, and it is megabytes in every router)

    contexts = [_one_server_context(pair, client_ca) for pair in pairs]
    certificates = [x509.load_pem_x509_certificates(pair.cert_file.read_bytes())[0] for pair in pairs]
    names: dict[str, ssl.SSLContext] = {}
    for certificate, context in zip(certificates, contexts, strict=True):
        for name in names_of(certificate):
            names.setdefault(name, context)

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _first: ssl.SSLContext) -> None:
        chosen = context_for(name or "", names)
        if chosen is not None:
            connection.context = chosen

    if len(contexts) > 1:
        contexts[0].sni_callback = choose
    EXPIRES.set(min(certificate.not_valid_after_utc.timestamp() for certificate in certificates))
    return contexts[0]


def names_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names that a certificate is for, in lower case."""
    from cryptography import x509  # noqa: PLC0415

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)]


def context_for(name: str, contexts: dict[str, ssl.SSLContext]) -> ssl.SSLContext | None:
    """By the name itself, else by a wildcard for its first label."""
    name = name.lower().rstrip(".")
    return contexts.get(name) or contexts.get("*." + name.partition(".")[2])


def _one_server_context(pair: KeyPair, client_ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # It costs a server much more than its client.
    context.set_alpn_protocols(["http/1.1"])
    _load(context, pair)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    def refuse() -> str:
        raise ValueError(f"{pair.key_file} is encrypted: store the key without a passphrase, readable for nobody else")

    for path in pair:
        path.open("rb").close()  # OpenSSL does not say which file is missing.
    context.load_cert_chain(pair.cert_file, pair.key_file, password=refuse)


def upstream_tls(settings: Settings) -> Reloaded[ssl.SSLContext]:
    """What `https://` targets are spoken to with. Raises ConfigError."""
    ca, cert, key = settings.upstream_ca_file, settings.upstream_cert_file, settings.upstream_key_file
    if key and not cert:
        raise ConfigError("upstream_key_file is set without upstream_cert_file: set both or neither")
    pair = KeyPair(cert, key or cert) if cert else None
    paths = [path for path in (ca, *(pair or ())) if path]

    def make() -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if pair:
            _load(context, pair)
        if settings.upstream_insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    return Reloaded("upstream_ca_file and upstream_cert_file", paths, make)
