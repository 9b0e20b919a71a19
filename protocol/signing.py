# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Suite 1 signatures: deterministic ECDSA (RFC 6979) on P-256 with SHA-256, 64 bytes r ‖ s; keys as compressed points."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol import tally
from protocol.secret import Secret

SIGNATURE_LENGTH = 64
POINT_LENGTH = 33
PRIVATE_LENGTH = 32

_CURVE = ec.SECP256R1()
_SIGN = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
_VERIFY = ec.ECDSA(hashes.SHA256())


class PrivateKey:
    """A P-256 signing key; nothing about it is printed."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Wrap a key of the library."""
        self._key = key
        self.public = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)

    @classmethod
    def generate(cls) -> PrivateKey:
        """Return a new random key."""
        return cls(ec.generate_private_key(_CURVE))

    @classmethod
    def from_scalar(cls, scalar: bytes) -> PrivateKey:
        """Return the key of a 32-byte big-endian scalar; ValueError unless 0 < scalar < n."""
        return cls(ec.derive_private_key(int.from_bytes(scalar, "big"), _CURVE))

    def scalar(self) -> Secret:
        """Return the key as 32 bytes, for sealed storage only."""
        return Secret(self._key.private_numbers().private_value.to_bytes(PRIVATE_LENGTH, "big"))

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over `message`."""
        tally.count(tally.Operation.SIGN)
        r, s = decode_dss_signature(self._key.sign(message, _SIGN))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def is_valid(public: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether `signature` (64 bytes) over `message` is by the key `public` (33-byte compressed point).

    A malformed point or signature is simply not valid; nothing is raised.
    """
    tally.count(tally.Operation.VERIFY)
    if len(signature) != SIGNATURE_LENGTH or len(public) != POINT_LENGTH:
        return False
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, public)
        key.verify(der, message, _VERIFY)
    except (ValueError, InvalidSignature):
        return False
    return True
