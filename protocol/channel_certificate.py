# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Certificates of an SCP11 channel: X.509 DER, or card-verifiable 7F21 (GlobalPlatform Amendment F §6.1), read alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from enum import IntEnum
from itertools import pairwise
from typing import Any, ClassVar

from construct import Bytes, Const, Construct, FocusedSeq, GreedyBytes
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from protocol import signing
from protocol.errors import Check, DecodeError, VerificationError
from protocol.layout import Fields
from protocol.scp11 import POINT_LENGTH, point_of
from protocol.tags import Tag
from protocol.tlv import encode, tagged
from protocol.wire import FieldAdapter, NumericDate, Wire

MAX_LENGTH = 4096
_IDENTIFIER_LENGTH = 16
_P256_PARAMETERS = encode(0xF0, b"\0")
_SIGNATURE_OBJECT = 3 + signing.SIGNATURE_LENGTH
_DER_SEQUENCE = b"\x30"
_BROKEN = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class KeyUse(IntEnum):
    """What a certified key is for."""

    SIGNATURE_VERIFICATION = 0x82
    KEY_AGREEMENT = 0x0080


_USE_BYTES = {KeyUse.SIGNATURE_VERIFICATION: b"\x82", KeyUse.KEY_AGREEMENT: b"\x00\x80"}


class _Use(FieldAdapter):
    """Tag 95: one byte for signatures, two for key agreement."""

    def __init__(self) -> None:
        super().__init__(GreedyBytes)

    def _decode(self, obj: bytes, context: Any, path: Any) -> KeyUse:
        for use, coded in _USE_BYTES.items():
            if obj == coded:
                return use
        raise ValueError("no key usage that there is")

    def _encode(self, obj: KeyUse, context: Any, path: Any) -> bytes:
        return _USE_BYTES[obj]


class _Identifier(FieldAdapter):
    """One to sixteen bytes of any value."""

    def __init__(self) -> None:
        super().__init__(GreedyBytes)

    def _decode(self, obj: bytes, context: Any, path: Any) -> bytes:
        if not 1 <= len(obj) <= _IDENTIFIER_LENGTH:
            raise ValueError(f"an identifier has 1 to {_IDENTIFIER_LENGTH} bytes")
        return obj

    _encode = _decode


@dataclass(frozen=True, slots=True)
class CardVerifiableCertificate(Wire):
    """A certificate 7F21 for a P-256 key: `authority` is the subject of the one that signed it, `point` is 04 ‖ x ‖ y."""

    serial: bytes
    authority: bytes
    subject: bytes
    use: KeyUse
    valid_from: date
    valid_until: date
    point: bytes
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = tagged(
        Tag.CERTIFICATE,
        Fields(
            "serial" / tagged(Tag.CERTIFICATE_SERIAL, _Identifier()),
            "authority" / tagged(Tag.ISSUER_IDENTIFICATION_NUMBER, _Identifier()),
            "subject" / tagged(Tag.SUBJECT_IDENTIFIER, _Identifier()),
            "use" / tagged(Tag.KEY_USAGE, _Use()),
            "valid_from" / tagged(Tag.EFFECTIVE_DATE, NumericDate(8)),
            "valid_until" / tagged(Tag.EXPIRATION_DATE, NumericDate(8)),
            "point"
            / tagged(
                Tag.PUBLIC_KEY,
                FocusedSeq(
                    "point",
                    "point" / tagged(Tag.PUBLIC_KEY_POINT, Bytes(POINT_LENGTH)),
                    Const(_P256_PARAMETERS),
                ),
            ),
            "signature" / tagged(Tag.SIGNATURE, Bytes(signing.SIGNATURE_LENGTH)),
        ),
    )

    def signed_part(self) -> bytes:
        """Return the bytes that are signed: every data object in 7F21 before the signature."""
        encoded = self.encode()
        return encoded[2 + (2 if encoded[2] == 0x81 else 1) : -_SIGNATURE_OBJECT]


@dataclass(frozen=True, slots=True)
class ChannelCertificate:
    """What matters of a certificate, whichever form it has; `uses` is what its key may be used for, `point` is 04 ‖ x ‖ y."""

    encoded: bytes
    point: bytes
    uses: frozenset[KeyUse]
    valid_from: datetime
    valid_until: datetime


def issue(unsigned: CardVerifiableCertificate, key: signing.PrivateKey) -> CardVerifiableCertificate:
    """Return `unsigned` with the authority's signature in place of whatever stood there."""
    return replace(unsigned, signature=key.sign(unsigned.signed_part()))


def read(encoded: bytes) -> ChannelCertificate:
    """Return what a certificate says, X.509 DER or 7F21; DecodeError when it is neither, or not for a P-256 key."""
    if len(encoded) > MAX_LENGTH:
        raise DecodeError("ChannelCertificate", "", f"more than {MAX_LENGTH} bytes")
    return _read_x509(encoded) if encoded.startswith(_DER_SEQUENCE) else _read_card_verifiable(encoded)


def failed_checks(certificate: ChannelCertificate, use: KeyUse, now: datetime) -> list[Check]:
    """Return every check that `certificate` fails by itself; who signed it is looked at elsewhere."""
    checks = {
        Check.CERTIFICATE_USAGE: use in certificate.uses,
        Check.CERTIFICATE_NOT_YET_VALID: certificate.valid_from <= now,
        Check.CERTIFICATE_EXPIRED: now <= certificate.valid_until,
    }
    return [check for check, good in checks.items() if not good]


def verify_chain(chain: Sequence[ChannelCertificate], now: datetime) -> ChannelCertificate:
    """Return the leaf, which is the last; VerificationError unless each is valid, for its use, signed by the one before.

    Nothing is said of the first one's signature: whoever calls knows the leaf, or knows the first.
    """
    *authorities, leaf = chain
    uses = [(one, KeyUse.SIGNATURE_VERIFICATION) for one in authorities] + [(leaf, KeyUse.KEY_AGREEMENT)]
    failed = [check for one, use in uses for check in failed_checks(one, use, now)]
    if failed:
        raise VerificationError(failed[0])
    if not all(is_signed_by(lower, upper) for upper, lower in pairwise(chain)):
        raise VerificationError(Check.CERTIFICATE_SIGNATURE)
    return leaf


def is_signed_by(certificate: ChannelCertificate, authority: ChannelCertificate) -> bool:
    """Tell whether `authority` signed `certificate`; both have the same form, and the one names the other."""
    forms = {one.encoded.startswith(_DER_SEQUENCE) for one in (certificate, authority)}
    if len(forms) > 1:
        return False
    if forms == {True}:
        return _is_x509_signed_by(certificate.encoded, authority.encoded)
    lower = CardVerifiableCertificate.decode(certificate.encoded)
    upper = CardVerifiableCertificate.decode(authority.encoded)
    genuine = signing.is_valid(_compressed(upper.point), lower.signature, lower.signed_part())
    return genuine and lower.authority == upper.subject


def _is_x509_signed_by(encoded: bytes, authority: bytes) -> bool:
    try:
        x509.load_der_x509_certificate(encoded).verify_directly_issued_by(x509.load_der_x509_certificate(authority))
    except (*_BROKEN, InvalidSignature):
        return False
    return True


def _compressed(point: bytes) -> bytes:
    return bytes([2 + (point[-1] & 1)]) + point[1:33]


def _read_card_verifiable(encoded: bytes) -> ChannelCertificate:
    known = CardVerifiableCertificate.decode(encoded)
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), known.point)
    except ValueError:
        raise DecodeError("CardVerifiableCertificate", "point", "not on the curve") from None
    begins = datetime.combine(known.valid_from, time.min, UTC)
    ends = datetime.combine(known.valid_until, time.max, UTC)
    return ChannelCertificate(encoded, known.point, frozenset({known.use}), begins, ends)


def _read_x509(encoded: bytes) -> ChannelCertificate:
    try:
        known = x509.load_der_x509_certificate(encoded)
        public = known.public_key()
        uses = _x509_uses(known)
        begins, ends = known.not_valid_before_utc, known.not_valid_after_utc
        canonical = known.public_bytes(Encoding.DER)
        whole_signature = encoded.endswith(b"\x00" + known.signature)  # a BIT STRING without unused bits
    except _BROKEN:
        raise DecodeError("X.509 certificate", "", "malformed") from None
    if canonical != encoded or not whole_signature or known.serial_number <= 0:
        raise DecodeError("X.509 certificate", "", "not in its one canonical form")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise DecodeError("X.509 certificate", "public key", "not one of P-256")
    return ChannelCertificate(encoded, point_of(public), uses, begins, ends)


def _x509_uses(certificate: x509.Certificate) -> frozenset[KeyUse]:
    """Return what the extensions allow. Amendment F wants KeyUsage: without it a key is for nothing."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as missing:
        if missing.oid == x509.KeyUsage.oid:
            return frozenset()
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    uses = {
        KeyUse.KEY_AGREEMENT: usage.key_agreement,
        KeyUse.SIGNATURE_VERIFICATION: usage.key_cert_sign and constraints.ca,
    }
    return frozenset(use for use, allowed in uses.items() if allowed)
