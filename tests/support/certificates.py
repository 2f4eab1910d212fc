"""Real certificates, made on the spot: an authority and what it signs."""

from __future__ import annotations

import datetime
import ssl
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


class Authority:
    """Signs whatever is asked for, into files below `root`."""

    def __init__(self, root: Path, name: str = "authority") -> None:
        self.root = root
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        certificate = _builder(self._name, self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.file = root / f"{name}.pem"
        self.file.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def issue(self, file: str, *names: str, days: int = 1) -> tuple[Path, Path]:
        """A certificate for these DNS names and addresses, and its key: the files `<file>.pem` and `<file>.key`."""
        key = ec.generate_private_key(ec.SECP256R1())
        known: list[x509.GeneralName] = [
            x509.IPAddress(ip_address(name)) if name[0].isdigit() or ":" in name else x509.DNSName(name)
            for name in names
        ]
        signed = (
            _builder(_named(file), self._name, key.public_key(), days=days)
            .add_extension(x509.SubjectAlternativeName(known or [x509.DNSName(file)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        cert_file, key_file = self.root / f"{file}.pem", self.root / f"{file}.key"
        cert_file.write_bytes(signed.public_bytes(PEM))
        key_file.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        return cert_file, key_file

    def trusting(self, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """What a client trusts this authority with. `pair`: the certificate that it shows."""
        context = ssl.create_default_context(cafile=self.file)
        if pair is not None:
            context.load_cert_chain(*pair)
        return context

    def serving(self, pair: tuple[Path, Path], *, ask_clients: bool = False) -> ssl.SSLContext:
        """What a server shows `pair` with."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*pair)
        if ask_clients:
            context.load_verify_locations(self.file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int = 1
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
