# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Keys that stay in the Key: how they are made, what they do, and how they lie in the flash."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

from construct import Byte, Bytes, Construct
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from protocol.key_commands import KeyKind, KeyUse, Rule
from protocol.layout import Fields
from protocol.messages import SecretField
from protocol.secret import Secret
from protocol.signing import PrivateKey
from protocol.wire import Coded, Wire
from wallet.trusted_key.module import PEER_LENGTH

_SECRET_BYTES = 32
_AES_BYTES = 16
_CURVE = ec.SECP256R1()


@dataclass(frozen=True, slots=True)
class Slot(Wire):
    """A key as it lies in the flash; an AES key is filled up with zeros. Its repr does not show it."""

    kind: KeyKind
    use: KeyUse
    rule: Rule
    owner: bytes
    secret: Secret

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "kind" / Coded(KeyKind, Byte),
        "use" / Coded(KeyUse, Byte),
        "rule" / Coded(Rule, Byte),
        "owner" / Bytes(PEER_LENGTH),
        "secret" / SecretField(_SECRET_BYTES),
    )

    @classmethod
    def generate(cls, kind: KeyKind, use: KeyUse, rule: Rule, owner: bytes) -> Slot:
        """Return a new random key."""
        return cls(kind, use, rule, owner, _generate(kind))

    @property
    def public(self) -> bytes:
        """The public key: a compressed point (33 bytes), 32 bytes of X25519 or Ed25519, nothing for AES."""
        if self.kind is KeyKind.P256:
            return self._signer().public
        if self.kind is KeyKind.X25519:
            return X25519PrivateKey.from_private_bytes(self.secret).public_key().public_bytes_raw()
        if self.kind is KeyKind.ED25519:
            return Ed25519PrivateKey.from_private_bytes(self.secret).public_key().public_bytes_raw()
        return b""

    def sign(self, message: bytes) -> bytes:
        """Return 64 bytes: r ‖ s of ECDSA with SHA-256, or an Ed25519 signature (RFC 8032)."""
        if self.kind is KeyKind.ED25519:
            return Ed25519PrivateKey.from_private_bytes(self.secret).sign(message)
        return self._signer().sign(message)

    def agree(self, public: bytes) -> Secret:
        """Return the shared secret of 32 bytes; ValueError for a public key that none may be shared with."""
        if self.kind is KeyKind.X25519:
            return Secret(
                X25519PrivateKey.from_private_bytes(self.secret).exchange(X25519PublicKey.from_public_bytes(public))
            )
        own = ec.derive_private_key(int.from_bytes(self.secret, "big"), _CURVE)
        return Secret(own.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, public)))

    def mac(self, message: bytes) -> bytes:
        """Return the AES-CMAC of `message` (NIST SP 800-38B), 16 bytes."""
        cmac = CMAC(AES(self.secret[:_AES_BYTES]))
        cmac.update(message)
        return cmac.finalize()

    def _signer(self) -> PrivateKey:
        return PrivateKey.from_scalar(self.secret)


def _generate(kind: KeyKind) -> Secret:
    if kind is KeyKind.P256:
        return PrivateKey.generate().scalar()
    if kind is KeyKind.X25519:
        return Secret(X25519PrivateKey.generate().private_bytes_raw())
    if kind is KeyKind.ED25519:
        return Secret(Ed25519PrivateKey.generate().private_bytes_raw())
    return Secret(os.urandom(_AES_BYTES) + bytes(_SECRET_BYTES - _AES_BYTES))
