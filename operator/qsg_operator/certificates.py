"""Certificates signed by an authority, and renewed in time. Pure but for the drawing of keys; `now` comes in.

What is stored is the `data` of a Secret of type kubernetes.io/tls, as cert-manager makes it: tls.crt, tls.key, ca.crt (PEM). Invariant:
what `issued` answers fits the request (names, authority) and is good for a third of its life at least; it says whom to trust, as the
authority's own ca.crt does. The authority itself is made and renewed by `qsg_operator.authority`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LEAF_LIFE = timedelta(days=90)
CLOCKS_DIFFER = timedelta(hours=1)

Data = dict[str, bytes]
CERTIFICATE, KEY, CA = "tls.crt", "tls.key", "ca.crt"


class BadSecret(Exception):
    """A Secret that somebody else has made, and that does not hold what it should."""


@dataclass(frozen=True)
class Leaf:
    """What a certificate is to say. `names`: host names and IP addresses; none = for clients only."""

    common_name: str
    names: tuple[str, ...] = ()

    def alternative_names(self) -> list[x509.GeneralName]:
        found: list[x509.GeneralName] = []
        for name in self.names:
            try:
                found.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                found.append(x509.DNSName(name))
        return found


def issued(leaf: Leaf, present: Mapping[str, bytes] | None, authority: Mapping[str, bytes], now: datetime) -> Data:
    """`present` when it is still right, else a new certificate. Raises `BadSecret` for an authority that cannot sign."""
    certificate, key = signer_of(authority)
    trusted = trusted_by(authority)
    if certificate.not_valid_after_utc <= now:
        raise BadSecret(f"the authority has ended ({certificate.not_valid_after_utc:%Y-%m-%d})")
    if present is not None and fits(leaf, present, certificate, now):
        return {**present, CA: trusted}
    return _sign(leaf, certificate, key, trusted, now)


def trusted_by(authority: Mapping[str, bytes]) -> bytes:
    """Its ca.crt, while its own certificate is among those; else that alone."""
    own = x509.load_pem_x509_certificate(authority[CERTIFICATE])
    try:
        return authority[CA] if own in x509.load_pem_x509_certificates(authority[CA]) else authority[CERTIFICATE]
    except (KeyError, ValueError):
        return authority[CERTIFICATE]


def fits(leaf: Leaf, present: Mapping[str, bytes], authority: x509.Certificate, now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(present[CERTIFICATE])
        key = serialization.load_pem_private_key(present[KEY], None)
        certificate.verify_directly_issued_by(authority)
    except (KeyError, ValueError, TypeError, InvalidSignature):
        return False
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return (
        certificate.public_key() == key.public_key()
        and certificate.subject == name_of(leaf.common_name)
        and _names_of(certificate) == set(leaf.alternative_names())
        and certificate.not_valid_before_utc <= now
        and now < certificate.not_valid_after_utc - life / 3
    )


def expiry(data: Mapping[str, bytes]) -> datetime:
    """Raises `BadSecret`."""
    try:
        return x509.load_pem_x509_certificate(data[CERTIFICATE]).not_valid_after_utc
    except (KeyError, ValueError) as error:
        raise BadSecret(f"{CERTIFICATE}: {error}") from error


def check(data: Mapping[str, bytes]) -> None:
    """Of a Secret that somebody else has made. Raises `BadSecret` that says what is missing or wrong."""
    missing = [name for name in (CERTIFICATE, KEY, CA) if not data.get(name)]
    if missing:
        raise BadSecret(f"it has no {', '.join(missing)}")
    try:
        certificate = x509.load_pem_x509_certificate(data[CERTIFICATE])
        key = serialization.load_pem_private_key(data[KEY], None)
        x509.load_pem_x509_certificates(data[CA])
    except (ValueError, TypeError) as error:
        raise BadSecret(str(error)) from error
    if certificate.public_key() != key.public_key():
        raise BadSecret(f"{KEY} is not the key of {CERTIFICATE}")


def signer_of(data: Mapping[str, bytes]) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Certificate and key of an authority. Raises `BadSecret`."""
    try:
        certificate = x509.load_pem_x509_certificate(data[CERTIFICATE])
        key: PrivateKeyTypes = serialization.load_pem_private_key(data[KEY], None)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except KeyError as error:
        raise BadSecret(f"it has no {error.args[0]}") from error
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise BadSecret(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadSecret("its key is not an elliptic-curve key")
    if not constraints.ca or certificate.public_key() != key.public_key():
        raise BadSecret("it is not the certificate of an authority with its key")
    return certificate, key


def _sign(leaf: Leaf, authority: x509.Certificate, signer: ec.EllipticCurvePrivateKey, ca: bytes, now: datetime) -> Data:
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if leaf.names else [])
    until = min(now + LEAF_LIFE, authority.not_valid_after_utc)
    builder = (
        unsigned(name_of(leaf.common_name), authority.subject, key.public_key(), now, until, authority=False)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if leaf.names:
        builder = builder.add_extension(x509.SubjectAlternativeName(leaf.alternative_names()), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    return {CERTIFICATE: pem(certificate), KEY: private_pem(key), CA: ca}


def unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime, *, authority: bool
) -> x509.CertificateBuilder:
    """What certificates of an authority and of others have alike."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(_usage(authority=authority), critical=True)
    )


def _names_of(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return set()


def name_of(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def host_names(service: str, namespace: str, *, wildcard: bool = False) -> list[str]:
    """All forms of a Service's name; by a wildcard, of the pods behind a headless one."""
    head = f"*.{service}" if wildcard else service
    return [f"{head}{tail}" for tail in ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local")]
