# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Keys and certificates of both ends of a channel, the same bytes each time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from protocol import signing
from protocol.channel_certificate import CardVerifiableCertificate, KeyUse, issue
from protocol.scp11 import point_of

NOW = datetime(2026, 7, 15, 12, tzinfo=UTC)
BEGINS, ENDS = datetime(2026, 7, 1, tzinfo=UTC), datetime(2027, 6, 30, tzinfo=UTC)


def key_of(number: int) -> ec.EllipticCurvePrivateKey:
    """A P-256 key by its number."""
    return ec.derive_private_key(int.from_bytes(bytes([number]) * 32, "big"), ec.SECP256R1())


AUTHORITY_KEY, KEY_KEY, HOST_KEY, STRANGER_KEY, STRANGE_AUTHORITY_KEY = (key_of(number) for number in range(1, 6))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a certificate is to say."""

    subject: str
    begins: datetime = BEGINS
    ends: datetime = ENDS
    agreement: bool = True
    authority: bool = False
    with_usage: bool = True


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def x509_of(
    wanted: Wanted,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey = AUTHORITY_KEY,
    issuer: str = "Authority",
) -> bytes:
    """An X.509 certificate, DER."""
    builder = x509.CertificateBuilder(
        _name(issuer), _name(wanted.subject), public, 1, wanted.begins, wanted.ends
    ).add_extension(x509.BasicConstraints(ca=wanted.authority, path_length=None), critical=True)
    if wanted.with_usage:
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=wanted.agreement,
            key_cert_sign=wanted.authority,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(signer, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.DER)


def card_verifiable_of(
    subject: bytes,
    public: ec.EllipticCurvePublicKey,
    use: KeyUse = KeyUse.KEY_AGREEMENT,
    signer: ec.EllipticCurvePrivateKey = AUTHORITY_KEY,
    authority: bytes = b"AUTHORITY",
) -> bytes:
    """A certificate 7F21."""
    unsigned = CardVerifiableCertificate(
        b"\x01", authority, subject, use, BEGINS.date(), date(2027, 6, 30), point_of(public), bytes(64)
    )
    return issue(unsigned, signing.PrivateKey(signer)).encode()


AUTHORITY = x509_of(Wanted("Authority", agreement=False, authority=True), AUTHORITY_KEY.public_key())
KEY = x509_of(Wanted("Key"), KEY_KEY.public_key())
HOST = x509_of(Wanted("Host"), HOST_KEY.public_key())
STRANGER = x509_of(Wanted("Stranger"), STRANGER_KEY.public_key())

GP_AUTHORITY = card_verifiable_of(b"AUTHORITY", AUTHORITY_KEY.public_key(), KeyUse.SIGNATURE_VERIFICATION)
GP_KEY = card_verifiable_of(b"KEY", KEY_KEY.public_key())
GP_HOST = card_verifiable_of(b"HOST", HOST_KEY.public_key())
