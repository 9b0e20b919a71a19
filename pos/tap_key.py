# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The terminal's X25519 key of one tap, good even when the random generator repeats itself.

HKDF over fresh random bytes, a secret of the device and a durable tap number: any one of the three that is good keeps
two taps from sharing a key (attack F3, pre-play).
"""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.labels import Label, labelled
from protocol.messages import CHALLENGE_LENGTH
from protocol.secret import Secret

_RANDOM_BYTES = 32
_KEY_BYTES = 32


def make(device_secret: Secret, tap_number: int) -> tuple[X25519PrivateKey, bytes]:
    """Return the key of this tap and the 8-byte challenge for RELAY CHECK."""
    material = os.urandom(_RANDOM_BYTES) + device_secret + tap_number.to_bytes(8, "big")
    derived = HKDF(SHA256(), _KEY_BYTES + CHALLENGE_LENGTH, None, labelled(Label.POS_TAP_KEY)).derive(material)
    return X25519PrivateKey.from_private_bytes(derived[:_KEY_BYTES]), derived[_KEY_BYTES:]
