# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A wallet as the issuer sees it: keys, and the messages that they sign."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocol import envelope
from protocol.issuing import Application, Issuance, IssuedNumbers
from protocol.signing import PrivateKey
from protocol.vouchers import LoadRequest, device_id

EUR = 978


@dataclass(frozen=True, slots=True)
class Device:
    """A wallet's keys, and the messages that it signs."""

    key: PrivateKey = field(default_factory=PrivateKey.generate)
    sealing: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    @property
    def id(self) -> bytes:
        return device_id(self.key.public)

    def application(self, *credentials: PrivateKey, currency: int = EUR) -> Application:
        public = tuple(one.public for one in credentials or [PrivateKey.generate()])
        sealing_key = self.sealing.public_key().public_bytes_raw()
        unsigned = Application(self.key.public, sealing_key, currency, 1, public, bytes(64))
        return replace(unsigned, signature=self.key.sign(unsigned.signature_input()))

    def load_request(self, number: int, amount: int = 10_00, currency: int = EUR) -> LoadRequest:
        unsigned = LoadRequest(self.id, number, amount, currency, bytes(64))
        return replace(unsigned, signature=self.key.sign(unsigned.signature_input()))

    def numbers(self, application: Application, issuance: Issuance) -> list[str]:
        opened = envelope.unseal(issuance.sealed_numbers, self.sealing, IssuedNumbers.info(application.digest()))
        return [one.digits for one in IssuedNumbers.decode(opened).numbers]
