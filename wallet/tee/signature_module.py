# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The signature module: signs what the encryption module made, and receipts, with a credential's key."""

from __future__ import annotations

from protocol import envelope
from protocol.messages import Cancellation, Receipt
from wallet.tee.state import Credential, signer


def sign_card(credential: Credential, sealed: bytes, t2: bytes) -> bytes:
    """Return the signature over label ‖ T2 ‖ credential certificate ‖ HPKE output."""
    signed = envelope.card_signature_input(t2, credential.certificate.encode(), sealed)
    return signer(credential.scalar).sign(signed)


def sign_receipt(credential: Credential, receipt: Receipt | Cancellation) -> bytes:
    """Return the signature over a receipt, whatever its result, or over a cancellation."""
    return signer(credential.scalar).sign(receipt.signature_input())
