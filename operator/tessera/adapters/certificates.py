"""Issue and parse webhook certificates.

Every pair has its own certificate authority, whose key is discarded after signing: the Secret does
not allow anyone to sign another name.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tessera.domain.serving_certificate import KeyPair

# Tolerated clock skew of API servers.
_CLOCK_SKEW = timedelta(minutes=5)
_CERTIFICATE_PEM = re.compile(
    r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedPair:
    """A new key pair, and the authority that signed it."""

    pair: KeyPair
    authority: str


def issue(host: str, at: datetime, lifetime: timedelta) -> IssuedPair:
    """Issue a certificate for one DNS name; it expires together with its authority."""
    signer, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _common_name(f"{host} authority")
    identifier = x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
    authority = (
        _certificate_builder(issuer, issuer, signer.public_key(), at, lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(signer, hashes.SHA256())
    )
    certificate = (
        _certificate_builder(
            _common_name("tessera-webhook"), issuer, key.public_key(), at, lifetime
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return IssuedPair(pair=KeyPair(_pem(certificate), private.decode()), authority=_pem(authority))


def expiry(pair: KeyPair) -> datetime | None:
    """Return when a certificate expires; None when the pair is unusable."""
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
        key = load_pem_private_key(pair.key.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    if key.public_key() != certificate.public_key():
        return None
    return certificate.not_valid_after_utc


def is_valid_for(pair: KeyPair, host: str, authorities: tuple[str, ...]) -> bool:
    """Return whether the certificate is for `host` and signed by one of the authorities."""
    certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return host in names.get_values_for_type(x509.DNSName) and any(
        _is_signed_by(certificate, authority) for authority in authorities
    )


def split_bundle(bundle: str) -> tuple[str, ...]:
    """Split a CA bundle into its certificates."""
    return tuple(f"{text.strip()}\n" for text in _CERTIFICATE_PEM.findall(bundle))


def unexpired(authorities: tuple[str, ...], at: datetime) -> tuple[str, ...]:
    """Return the authorities that can be parsed and have not expired."""
    return tuple(
        authority
        for authority in authorities
        if (expires := _not_after(authority)) is not None and expires > at
    )


def _not_after(certificate: str) -> datetime | None:
    try:
        return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc
    except ValueError:
        return None


def _is_signed_by(certificate: x509.Certificate, authority: str) -> bool:
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.encode()))
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _certificate_builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    at: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _CLOCK_SKEW)
        .not_valid_after(at + lifetime)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(common: str) -> x509.Name:
    """Return a name; a common name holds at most 64 characters."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
