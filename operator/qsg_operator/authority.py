"""The operator's own authorities: made, and renewed with an overlap in which the old one and the new one are both trusted.

Pure; `now` comes in. All of it is in the authority's Secret: the signing pair (tls.crt, tls.key), whom to trust (ca.crt), and during the
overlap the pair that signs next (next.crt, next.key). Invariant: no authority signs before it has been in ca.crt for `OVERLAP`, and none
leaves ca.crt before it has ended; so whoever takes up ca.crt within the overlap trusts every certificate that is in use at any moment.
Not guaranteed: that they do take it up. A Secret that somebody else has made is left as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qsg_operator.certificates import CA, CERTIFICATE, CLOCKS_DIFFER, KEY, BadSecret, Data, name_of, pem, private_pem, signer_of, unsigned

LIFE = timedelta(days=3650)
OVERLAP = timedelta(days=7)
NEXT_CERTIFICATE, NEXT_KEY = "next.crt", "next.key"
NAME_MAX = 56
"""Of a common name, which has 64 characters at most, before its number."""


def name_for(namespace: str, secret: str) -> str:
    """What says that a Secret holds an authority made for that very Secret: a copy of it elsewhere is not renewed there."""
    whole = f"{namespace}/{secret}"
    return whole if len(whole) <= NAME_MAX else f"{whole[: NAME_MAX - 9]}~{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def new_authority(common_name: str, now: datetime) -> Data:
    key = ec.generate_private_key(ec.SECP256R1())
    name = name_of(common_name)
    certificate = (
        unsigned(name, name, key.public_key(), now, now + LIFE, authority=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return {CERTIFICATE: pem(certificate), KEY: private_pem(key), CA: pem(certificate)}


def kept_up(present: Mapping[str, bytes], name: str, now: datetime, *, made_before: datetime | None = None) -> Data:
    """The authority as it should be now. `name`: see `name_for`. `made_before`: one that is older is renewed, whatever its age.

    Raises `BadSecret`.
    """
    certificate, _ = signer_of(present)
    number = _number(certificate, name)
    if number is None:
        return dict(present)
    kept = dict(present)
    if NEXT_CERTIFICATE in present:
        coming, _ = signer_of({CERTIFICATE: present[NEXT_CERTIFICATE], KEY: present.get(NEXT_KEY, b"")})
        if now - _made(coming) >= OVERLAP:
            kept[CERTIFICATE], kept[KEY] = kept.pop(NEXT_CERTIFICATE), kept.pop(NEXT_KEY)
            certificate = coming
    elif _due(certificate, now, made_before):
        following = new_authority(f"{name}/{number + 1}", now)
        kept |= {NEXT_CERTIFICATE: following[CERTIFICATE], NEXT_KEY: following[KEY]}
    kept[CA] = _bundle(kept, certificate, now)
    return kept


def _due(certificate: x509.Certificate, now: datetime, made_before: datetime | None) -> bool:
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    asked = made_before is not None and _made(certificate) < made_before <= now
    return asked or now >= certificate.not_valid_after_utc - life / 3


def _bundle(data: Mapping[str, bytes], signing: x509.Certificate, now: datetime) -> bytes:
    """Who signs, will sign, or has signed what may still be in use; by age, so that it changes no more than it must."""
    try:
        known = x509.load_pem_x509_certificates(data[CA])
    except (KeyError, ValueError):
        known = []
    coming = [x509.load_pem_x509_certificate(data[NEXT_CERTIFICATE])] if NEXT_CERTIFICATE in data else []
    valid = {one for one in (*known, signing, *coming) if one.not_valid_after_utc > now} | {signing}
    return b"".join(pem(one) for one in sorted(valid, key=lambda one: (one.not_valid_before_utc, one.serial_number)))


def several(data: Mapping[str, bytes]) -> bool:
    """Whether more than one is trusted."""
    return data.get(CA, b"").count(b"BEGIN CERTIFICATE") > 1


def asked_time(text: str) -> datetime | None:
    """Of the annotation that asks for a renewal. Raises `BadSecret`."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadSecret(f"{text!r} is no time, such as 2026-11-26T12:00:00Z") from error
    if time.tzinfo is None:
        raise BadSecret(f"{text!r} has no time zone: 2026-11-26T12:00:00Z has one")
    return time


def _number(certificate: x509.Certificate, name: str) -> int | None:
    """1 for the first of its name, and so on; None: it is not ours."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    text = str(names[0].value) if names else ""
    if text == name:
        return 1
    base, _, number = text.rpartition("/")
    return int(number) if base == name and number.isdigit() else None


def _made(certificate: x509.Certificate) -> datetime:
    return certificate.not_valid_before_utc + CLOCKS_DIFFER
