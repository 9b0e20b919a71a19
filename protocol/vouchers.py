# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Money for wallets: a load is asked for by number and arrives as a voucher that the issuer signed. Project-defined."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

from construct import Bytes, Construct, Int32ub

from protocol import signing
from protocol.labels import Label, labelled
from protocol.layout import Fields
from protocol.wire import NumericInt, Wire

DEVICE_ID_LENGTH = 8


def device_id(device_key: bytes) -> bytes:
    """Return the eight bytes by which the issuer knows a wallet."""
    return hashlib.sha256(device_key).digest()[:DEVICE_ID_LENGTH]


@dataclass(frozen=True, slots=True)
class LoadRequest(Wire):
    """A wallet asks for money. `number` is one more than its last load; repeating it brings the same voucher."""

    device: bytes
    number: int
    amount: int
    currency: int
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "device" / Bytes(DEVICE_ID_LENGTH),
        "number" / Int32ub,
        "amount" / NumericInt(12),
        "currency" / NumericInt(4),
        "signature" / Bytes(signing.SIGNATURE_LENGTH),
    )

    def signature_input(self) -> bytes:
        """Return what the device key signs."""
        return labelled(Label.LOAD, b"?", self.encode()[: -signing.SIGNATURE_LENGTH])


@dataclass(frozen=True, slots=True)
class Voucher(Wire):
    """Money for one wallet, once: label ‖ device id ‖ load number ‖ amount ‖ currency, signed by the issuer."""

    device: bytes
    number: int
    amount: int
    currency: int
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = LoadRequest.LAYOUT

    def signature_input(self) -> bytes:
        """Return what the issuer signs."""
        return labelled(Label.LOAD, b"!", self.encode()[: -signing.SIGNATURE_LENGTH])
