# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Who the Key is in a channel: a static key that was made in it, and certificates that its own authority signed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from construct import Construct, GreedyBytes, Int16ub, Prefixed
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from protocol import channel_certificate, signing
from protocol.channel_certificate import CardVerifiableCertificate, KeyUse
from protocol.layout import Fields
from protocol.messages import SecretField
from protocol.scp11 import point_of
from protocol.secret import Secret
from protocol.signing import PrivateKey
from protocol.wire import Wire
from wallet.trusted_key.flash import Cells
from wallet.trusted_key.secure_channel import KeyIdentity

_CELL = b"identity"
_YEARS = timedelta(days=20 * 365)
_CURVE = ec.SECP256R1()
_SERIAL_BYTES = 8


@dataclass(frozen=True, slots=True)
class _Kept(Wire):
    """What lies in the flash: the static key's scalar, and its three certificates."""

    scalar: Secret
    authority: bytes
    leaf: bytes
    card_verifiable: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "scalar" / SecretField(32),
        "authority" / Prefixed(Int16ub, GreedyBytes),
        "leaf" / Prefixed(Int16ub, GreedyBytes),
        "card_verifiable" / Prefixed(Int16ub, GreedyBytes),
    )


def identity_of(cells: Cells) -> KeyIdentity:
    """Return the identity of the Key whose flash `cells` is; it is made when it is first asked for, and stays."""
    kept = cells.get(_CELL)
    identity = _made() if kept is None else _Kept.decode(kept)
    if kept is None:
        cells.commit({_CELL: identity.encode()})
    key = ec.derive_private_key(int.from_bytes(identity.scalar, "big"), _CURVE)
    return KeyIdentity(key, (identity.authority, identity.leaf), identity.card_verifiable)


def _made() -> _Kept:
    """Return a new identity. Its authority signs these two certificates and is forgotten."""
    own, authority = PrivateKey.generate(), ec.generate_private_key(_CURVE)
    public = ec.derive_private_key(int.from_bytes(own.scalar(), "big"), _CURVE).public_key()
    begins = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    serial = os.urandom(_SERIAL_BYTES)
    name = f"TapLab Key {serial.hex().upper()}"
    root = _x509(authority.public_key(), name, begins, authority, is_authority=True)
    leaf = _x509(public, name, begins, authority, is_authority=False)
    unsigned = CardVerifiableCertificate(
        serial,
        serial,
        serial,
        KeyUse.KEY_AGREEMENT,
        begins.date(),
        (begins + _YEARS).date(),
        point_of(public),
        bytes(signing.SIGNATURE_LENGTH),
    )
    card_verifiable = channel_certificate.issue(unsigned, PrivateKey(authority)).encode()
    return _Kept(own.scalar(), root, leaf, card_verifiable)


def _x509(
    public: ec.EllipticCurvePublicKey,
    name: str,
    begins: datetime,
    authority: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> bytes:
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
    subject = issuer if is_authority else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    serial = x509.random_serial_number()
    builder = x509.CertificateBuilder(issuer, subject, public, serial, begins, begins + _YEARS)
    builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    return builder.add_extension(usage, critical=True).sign(authority, SHA256()).public_bytes(Encoding.DER)
