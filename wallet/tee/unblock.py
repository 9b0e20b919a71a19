# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Unblocking the PIN: the device asks over a challenge of its own, and takes the issuer's answer once."""

from __future__ import annotations

import os
from dataclasses import replace

from protocol import signing
from protocol.errors import Check, VerificationError
from protocol.issuing import Unblocking, UnblockRequest
from protocol.settlement import NONCE_LENGTH
from wallet.tee.contract import Origin, TeeError, TeeResult
from wallet.tee.pin import Pins
from wallet.tee.state import signer
from wallet.tee.vault import Vault


class Unblock:
    """One request at a time."""

    def __init__(self, vault: Vault, pins: Pins) -> None:
        """Unblock `pins` by what the issuer of `vault` signed."""
        self._vault = vault
        self._pins = pins
        self._challenge = b""

    def request(self) -> UnblockRequest:
        """Return a signed request over a new challenge."""
        key = signer(self._vault.device.signing_scalar)
        self._challenge = os.urandom(NONCE_LENGTH)
        unsigned = UnblockRequest(self._vault.device_id, self._challenge, bytes(signing.SIGNATURE_LENGTH))
        return replace(unsigned, signature=key.sign(unsigned.signature_input()))

    def take(self, answer: Unblocking) -> None:
        """Give the tries back; VerificationError or ACCESS_DENIED for an answer that is not ours."""
        challenge, self._challenge = self._challenge, b""
        if not signing.is_valid(self._vault.anchors.operations_key, answer.signature, answer.signature_input()):
            raise VerificationError(Check.SIGNATURE)
        if not challenge or (answer.device, answer.challenge) != (self._vault.device_id, challenge):
            raise TeeError(TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, "this answers another request")
        self._pins.unblock()
