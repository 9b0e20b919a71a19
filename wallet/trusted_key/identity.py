# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Who the Key is in its channel, and whom it knows: a key of its own with a certificate, and certificates of its peers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from construct import Construct, GreedyBytes, Int16ub, Prefixed
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.constant_time import bytes_eq
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from protocol.channel_certificate import ChannelCertificate
from protocol.layout import Fields
from protocol.messages import SecretField
from protocol.secret import Secret
from protocol.signing import PrivateKey
from protocol.wire import Wire
from wallet.trusted_key.flash import Cells
from wallet.trusted_key.secure_channel import KeyIdentity, SecureChannel

IDENTITY = b"identity"
PEER = b"peer/"
_BEGINS, _ENDS = datetime(2026, 1, 1, tzinfo=UTC), datetime(2056, 1, 1, tzinfo=UTC)  # a Key may have no clock


@dataclass(frozen=True, slots=True)
class StoredIdentity(Wire):
    """The Key's own key as it lies in the flash, and its certificate (X.509, DER)."""

    scalar: Secret
    certificate: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "scalar" / SecretField(32), "certificate" / Prefixed(Int16ub, GreedyBytes)
    )


def identity_of(cells: Cells) -> StoredIdentity:
    """Return who the Key is, made when it is asked for first."""
    kept = cells.get(IDENTITY)
    if kept is not None:
        return StoredIdentity.decode(kept)
    made = _make()
    cells.commit({IDENTITY: made.encode()})
    return made


def _make() -> StoredIdentity:
    scalar = PrivateKey.generate().scalar()
    key = _loaded(scalar)
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"TapLab Trusted Key {serial & 0xFFFFFFFF:08X}")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial, _BEGINS, _ENDS)
    for extension in (x509.BasicConstraints(ca=False, path_length=None), _agreement_only()):
        builder = builder.add_extension(extension, critical=True)
    return StoredIdentity(scalar, builder.sign(key, SHA256()).public_bytes(Encoding.DER))


def _agreement_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=True, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _loaded(scalar: Secret) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())


def channel_of(cells: Cells) -> SecureChannel:
    """Return the channel module: SCP11b for anybody, SCP11a for the peers whose certificates `cells` hold."""
    own = identity_of(cells)

    def paired(certificate: ChannelCertificate) -> bytes | None:
        known = ((name.removeprefix(PEER), encoded) for name, encoded in cells.items(PEER))
        return next((name for name, encoded in known if bytes_eq(encoded, certificate.encoded)), None)

    return SecureChannel(KeyIdentity(_loaded(own.scalar), (own.certificate,)), paired)
