# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the trusted application keeps in sealed storage, each kind under a prefix of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, ClassVar

from construct import (
    Byte,
    Bytes,
    Construct,
    Flag,
    GreedyBytes,
    Int16ub,
    Int32ub,
    Int64ub,
    Prefixed,
    PrefixedArray,
)

from protocol import signing
from protocol.card_number import CardNumber
from protocol.certificate import CredentialCertificate
from protocol.layout import Fields
from protocol.messages import CardNumberField, Debit, Receipt, Result, SecretField
from protocol.secret import Secret
from protocol.wire import Coded, Nested, Wire

PURSE = b"purse"
DEVICE = b"device"
ANCHORS = b"anchors"
PENDING = b"pending"
BLOCK_LIST = b"list"
LIMITS = b"limits"
PHRASE = b"phrase"
ROLLED_BACK = b"rolled-back"
HELD = b"held"
MOVED_OUT = b"moved/out"
MOVING_OUT = b"moving/out"
MOVING_IN = b"moving/in"
CREDENTIAL = b"cred/"
TRANSACTION = b"txn/"


@dataclass(frozen=True, slots=True)
class Device(Wire):
    """The device's own keys: one signs applications and loads (P-256), one opens what the issuer seals (X25519)."""

    signing_scalar: Secret
    sealing_key: Secret

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("signing_scalar" / SecretField(32), "sealing_key" / SecretField(32))


@dataclass(frozen=True, slots=True)
class Purse(Wire):
    """The money. `currency` is an ISO 4217 number, amounts are minor units; `last_time` is the issuer's newest.

    `debits` is how many were ever made, `acknowledged` how many of them the issuer has in its books. `spent` and `payments`
    count since the user's last consent.
    """

    currency: int
    balance: int
    loads: int
    no_pin_limit: int
    last_time: int
    debits: int = 0
    acknowledged: int = 0
    spent: int = 0
    payments: int = 0

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "currency" / Int16ub,
        "balance" / Int64ub,
        "loads" / Int32ub,
        "no_pin_limit" / Int64ub,
        "last_time" / Int64ub,
        "debits" / Int32ub,
        "acknowledged" / Int32ub,
        "spent" / Int64ub,
        "payments" / Int32ub,
    )


@dataclass(frozen=True, slots=True)
class Limits(Wire):
    """What the user chose: how many cards a terminal may see in ten minutes without asking for a payment, and how much
    (minor units) and how many payments may go through since the last consent before the phone asks again; 0 for no limit.
    Above `key` (minor units; 0 for never) a payment needs the Trusted Key.
    """

    reads: int = 3
    sum: int = 0
    count: int = 0
    key: int = 0

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "reads" / Int16ub, "sum" / Int64ub, "count" / Int32ub, "key" / Int64ub
    )


@dataclass(frozen=True, slots=True)
class Pending(Wire):
    """Keys that were applied for and have no certificate yet: repeating the application is safe.

    `co_signing_keys` are the Trusted Key's, one for each, or none.
    """

    scalars: tuple[Secret, ...]
    co_signing_keys: tuple[bytes, ...] = ()

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "scalars" / PrefixedArray(Byte, SecretField(32)),
        "co_signing_keys" / PrefixedArray(Byte, Bytes(signing.POINT_LENGTH)),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "scalars", tuple(self.scalars))
        object.__setattr__(self, "co_signing_keys", tuple(self.co_signing_keys))


@dataclass(frozen=True, slots=True)
class Credential(Wire):
    """One credential: its key, its number, its certificate; `counter` is how often it was shown."""

    scalar: Secret
    number: CardNumber
    counter: int
    certificate: CredentialCertificate

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "scalar" / SecretField(32),
        "number" / CardNumberField(),
        "counter" / Int16ub,
        "certificate" / Nested(CredentialCertificate),
    )

    @property
    def key(self) -> bytes:
        """Where it is stored."""
        return CREDENTIAL + self.certificate.serial

    def shown_once_more(self) -> Credential:
        """Return it with its counter advanced."""
        return replace(self, counter=self.counter + 1)


class Status(IntEnum):
    """Where a transaction stands; it leaves OPEN once."""

    OPEN = 0
    APPROVED = 1
    REFUSED = 2
    CANCELLED = 3


@dataclass(frozen=True, slots=True)
class Transaction(Wire):
    """One transaction, kept by terminal certificate and id until the issuer has it.

    `order` says which came first, `started` is when (seconds since 1970). `receipt` and `signature` are empty while open.
    `number` is that of the debit, counted from 1 without a gap; 0 for what deducted nothing.
    """

    terminal_hash: bytes
    transaction_id: bytes
    credential_serial: bytes
    counter: int
    order: int
    started: int
    status: Status
    confirmed: bool
    receipt: bytes
    signature: bytes
    number: int = 0

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "terminal_hash" / Bytes(32),
        "transaction_id" / Bytes(16),
        "credential_serial" / Bytes(8),
        "counter" / Int16ub,
        "order" / Int64ub,
        "started" / Int64ub,
        "status" / Coded(Status, Byte),
        "confirmed" / Flag,
        "receipt" / Prefixed(Int16ub, GreedyBytes),
        "signature" / Prefixed(Byte, GreedyBytes),
        "number" / Int32ub,
    )

    @property
    def key(self) -> bytes:
        """Where it is stored."""
        return transaction_key(self.terminal_hash, self.transaction_id)

    def settled(self, receipt: Receipt, signature: bytes, number: int = 0) -> Transaction:
        """Return it with its final result; `number` is that of the debit, if it is one."""
        status = Status.APPROVED if receipt.result is Result.APPROVED else Status.REFUSED
        return replace(self, status=status, receipt=receipt.encode(), signature=signature, number=number)

    def cancelled(self, signature: bytes) -> Transaction:
        """Return it as one that will never be paid."""
        return replace(self, status=Status.CANCELLED, signature=signature)

    @property
    def result(self) -> Result:
        """The final result; UNKNOWN while it is open."""
        if self.status is Status.CANCELLED:
            return Result.CANCELLED
        return Receipt.decode(self.receipt).result if self.receipt else Result.UNKNOWN

    @property
    def debit(self) -> Debit | None:
        """What was to be paid, None when the wallet was never asked."""
        return Receipt.decode(self.receipt).debit if self.receipt else None


def transaction_key(terminal_hash: bytes, transaction_id: bytes) -> bytes:
    """Return the key of a transaction: an id belongs to the terminal certificate it was made with."""
    return TRANSACTION + terminal_hash + transaction_id


def signer(scalar: Secret) -> signing.PrivateKey:
    """Return the signing key of a stored scalar."""
    return signing.PrivateKey.from_scalar(scalar)
