# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Encrypt, then sign: HPKE (RFC 9180) base mode for one terminal, then ECDSA over what came out. Pure functions.

Suite 1 is DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from protocol import tally
from protocol.errors import Check, VerificationError
from protocol.labels import Label, labelled
from protocol.secret import Secret

SUITE_1 = 0x01
ENCAPSULATION_LENGTH = 32
TAG_LENGTH = 16
OVERHEAD = ENCAPSULATION_LENGTH + TAG_LENGTH

_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)


def seal(plaintext: bytes, public_key: bytes, info: bytes) -> bytes:
    """Return encapsulation (32) ‖ ciphertext ‖ tag (16) for the X25519 key `public_key` (32 bytes).

    A malformed or low-order key is a VerificationError (RFC 7748 §6.1 asks for that check).
    """
    tally.count(tally.Operation.SEAL)
    try:
        return _HPKE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public_key), info=info)
    except ValueError:
        raise VerificationError(Check.ENCRYPTION) from None


def unseal(sealed: bytes, private_key: X25519PrivateKey, info: bytes) -> Secret:
    """Return the plaintext; VerificationError when anything about `sealed` or `info` is not what was sealed."""
    tally.count(tally.Operation.OPEN)
    if len(sealed) < OVERHEAD:
        raise VerificationError(Check.ENCRYPTION)
    try:
        return Secret(_HPKE.decrypt(sealed, private_key, info=info))
    except (ValueError, InvalidTag):
        raise VerificationError(Check.ENCRYPTION) from None


def card_info(t2: bytes) -> bytes:
    """Return the HPKE info of a card answer: it ties the ciphertext to all that was exchanged before it."""
    return labelled(Label.CARD_ENCRYPTION, t2)


def card_signature_input(t2: bytes, credential: bytes, sealed: bytes) -> bytes:
    """Return what a credential signs: label ‖ T2 ‖ credential certificate ‖ HPKE output."""
    return labelled(Label.CARD_SIGNATURE, t2, credential, sealed)
