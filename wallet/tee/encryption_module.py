# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The encryption module: core payment data leaves the trusted application only through here."""

from __future__ import annotations

from protocol import envelope
from protocol.messages import CardPlaintext


def encrypt_card(card: CardPlaintext, tap_key: bytes, t2: bytes) -> bytes:
    """Return the HPKE output for the terminal's key of this tap; VerificationError when that key is malformed."""
    return envelope.seal(card.encode(), tap_key, envelope.card_info(t2))
