"""The federation's own certificate authority, the server's certificate, and what is wrong with one.

One authority for one federation: nodes trust it and nothing else, so no public authority can vouch for another server.
A certificate is short-lived; the authority signs the next one for the same key.

Source: RFC 5280 for the fields; path validation is `cryptography.x509.verification` (the CA/Browser profile), except
for the reasons, which this module finds out itself so that a person can act on them.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedlora_priv.errors import ConfigError, EnvironmentProblem
from protocols.redaction import Redacted

AUTHORITY_DAYS = 825
SERVER_DAYS = 90
BACKDATED = datetime.timedelta(hours=24)
"""A certificate begins this long before it is made, for clocks that are behind."""
WARN_DAYS = 14


@dataclass(frozen=True, repr=False)
class Authority(Redacted):
    """A private certificate authority: its signing key and its own certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()})"

    @property
    def key_pem(self) -> bytes:
        """The private key, PEM; secret."""
        return key_pem(self.key)

    @property
    def pem(self) -> bytes:
        """The certificate, PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @staticmethod
    def load(key: bytes, certificate: bytes) -> Authority:
        """Return the authority of two PEM texts.

        Raises:
            ConfigError: they are damaged, or do not belong together.
        """
        private, own = (
            load_key(key, "the authority's key"),
            load_certificate(certificate, "the authority's certificate"),
        )
        require_matching(private, own, "the authority's key")
        return Authority(private, own)


def new_authority(name: str, now: datetime.datetime, days: int = AUTHORITY_DAYS) -> Authority:
    """Return a fresh authority called after the federation, valid for so many days.

    Args:
        name: the experiment's.
        now: aware time.
        days: how long.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedlora-priv {name}"[:64])])
    built = (
        _builder(subject, subject, key.public_key(), now, now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(key, built.sign(key, hashes.SHA256()))


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh P-256 key for a server."""
    return ec.generate_private_key(ec.SECP256R1())


def issue(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    now: datetime.datetime,
    days: int = SERVER_DAYS,
) -> x509.Certificate:
    """Return a server's certificate for some names and addresses.

    Raises:
        ConfigError: no host, one that is neither a name nor an address, or an authority that has expired.
    """
    if not hosts:
        raise ConfigError("a server's certificate needs a host", "name the host that nodes will call")
    if now >= authority.certificate.not_valid_after_utc:
        raise ConfigError("the authority has expired itself", "deploy anew: all nodes need another ca.pem")
    alternatives = [_alternative(host) for host in hosts]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    issuer = authority.certificate
    ends = min(now + datetime.timedelta(days=days), issuer.not_valid_after_utc)
    built = (
        _builder(subject, issuer.subject, key, now, ends)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    return built.sign(authority.key, hashes.SHA256())


def require_usable(
    certificate: x509.Certificate, authority: x509.Certificate, host: str, now: datetime.datetime
) -> int:
    """Return how many whole days a server's certificate still holds for that host.

    Raises:
        EnvironmentProblem: it does not; says whether it is its time, this machine's clock, its host or its origin.
    """
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        raise EnvironmentProblem(
            f"the server's certificate begins {begins:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M}",
            "set this machine's clock",
        )
    if now > ends:
        raise EnvironmentProblem(
            f"the server's certificate expired {ends:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M}",
            "whoever has the authority's key renews it ('fedlora deploy --renew'), unless this clock is wrong",
        )
    names = hosts_of(certificate)
    if host.lower() not in names:
        raise EnvironmentProblem(
            f"the server's certificate is for {', '.join(names) or 'no host'}, not for {host}",
            "call it by one of those names, or have it renewed for this one",
        )
    verifier = PolicyBuilder().store(Store([authority])).time(now).build_server_verifier(_alternative(host))
    try:
        verifier.verify(certificate, [])
    except VerificationError:
        raise EnvironmentProblem(
            "the server's certificate is not from this federation's authority",
            "use the ca.pem that came with the agreement; if it is that one, somebody else answers at this host",
        ) from None
    return (ends - now).days


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses that a certificate is for, in lower case."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    found = extension.value
    names = [name.lower() for name in found.get_values_for_type(x509.DNSName)]
    return names + [str(address) for address in found.get_values_for_type(x509.IPAddress)]


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM; secret."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """Return a private key.

    Raises:
        ConfigError: it is none.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{what} is not an unencrypted elliptic-curve key in PEM", "restore it")
    return key


def load_certificate(pem: bytes, what: str) -> x509.Certificate:
    """Return a certificate.

    Raises:
        ConfigError: it is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ConfigError(f"{what} is not a certificate in PEM", "restore it") from None


def read(path: Path, what: str) -> bytes:
    """Return a file's bytes.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{what} {path} cannot be read ({error.strerror})", "restore it, or mend the path"
        ) from None


def require_matching(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, what: str) -> None:
    """Raise unless a private key is that of a certificate.

    Raises:
        ConfigError: it is another one.
    """
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise ConfigError(
            f"{what} does not belong to its certificate", "restore the two that were made together"
        )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    ends: datetime.datetime,
) -> x509.CertificateBuilder:
    """Return a certificate in the making."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(ends)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    """Return what a key may be used for: an authority's to sign, a server's to be who it is."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.DNSName | x509.IPAddress:
    """Return a host as certificates have it.

    Raises:
        ConfigError: it is neither a name nor an address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if not all(label and label.isascii() and label.replace("-", "").isalnum() for label in labels):
        raise ConfigError(
            f"{host!r} is neither a host name nor an address", "as in 'fl.example.org' or '192.0.2.7'"
        )
    return x509.DNSName(host.lower())
