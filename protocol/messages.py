# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the tap's commands and answers carry: one value class each, with its layout. docs/protocol.md explains them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, time
from enum import IntEnum
from typing import Any, ClassVar

from construct import Byte, Bytes, Construct, GreedyBytes, Int16ub

from protocol import envelope, signing
from protocol.card_number import CardNumber
from protocol.certificate import CredentialCertificate, TerminalCertificate
from protocol.channel import SECRET_LENGTH, TRANSACTION_ID_LENGTH
from protocol.labels import Label, labelled
from protocol.layout import AnyAdapter, Fields
from protocol.secret import Secret
from protocol.wire import Coded, Digits, FieldAdapter, Nested, NumericDate, NumericInt, NumericTime, Wire

CHALLENGE_LENGTH = 8
TAP_KEY_LENGTH = 32
NOTHING_OPEN = bytes(TRANSACTION_ID_LENGTH)
DIGEST_LENGTH = 32


class Result(IntEnum):
    """What became of a transaction, as the channel and the receipt say it (project-defined)."""

    APPROVED = 0x00
    INSUFFICIENT_FUNDS = 0x01
    OVER_LIMIT = 0x02
    SEE_PHONE = 0x03
    CURRENCY_NOT_SUPPORTED = 0x04
    CREDENTIAL_UNUSABLE = 0x05
    STORAGE_FAILURE = 0x06
    CANCELLED = 0x07
    UNKNOWN = 0xFF

    @property
    def words(self) -> str:
        """The result as a person reads it."""
        if self is Result.STORAGE_FAILURE:
            return "storage failure, nothing deducted"
        if self is Result.UNKNOWN:
            return "no such transaction"
        return self.name.lower().replace("_", " ")


class CardNumberField(FieldAdapter):
    """A virtual card number, EMV format n, eight bytes."""

    def __init__(self) -> None:
        """Describe the field."""
        super().__init__(Digits(16))

    def _decode(self, obj: str, context: Any, path: Any) -> CardNumber:
        return CardNumber(obj)

    def _encode(self, obj: CardNumber, context: Any, path: Any) -> str:
        return obj.digits


class SecretField(AnyAdapter):
    """Bytes of a fixed length that must not be shown."""

    def __init__(self, length: int) -> None:
        """Describe a field of `length` bytes."""
        super().__init__(Bytes(length))

    def _decode(self, obj: bytes, context: Any, path: Any) -> Secret:
        return Secret(obj)

    def _encode(self, obj: bytes, context: Any, path: Any) -> bytes:
        return bytes(obj)


@dataclass(frozen=True, slots=True)
class RelayCheck(Wire):
    """RELAY CHECK, in either direction: the terminal's challenge, or the wallet's nonce. 8 bytes."""

    value: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("value" / Bytes(CHALLENGE_LENGTH))


@dataclass(frozen=True, slots=True)
class GetVirtualCard(Wire):
    """GET VIRTUAL CARD: terminal certificate, X25519 key of this tap (32), signature over label ‖ T1 (64)."""

    certificate: TerminalCertificate
    tap_key: bytes
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "certificate" / Nested(TerminalCertificate),
        "tap_key" / Bytes(TAP_KEY_LENGTH),
        "signature" / Bytes(signing.SIGNATURE_LENGTH),
    )

    @staticmethod
    def signature_input(t1: bytes) -> bytes:
        """Return what the terminal signs."""
        return labelled(Label.POS_SIGNATURE, t1)


@dataclass(frozen=True, slots=True)
class CardPlaintext(Wire):
    """What only the terminal can decrypt: number, purse currency (ISO 4217), counter, channel secret, open id.

    `open_id` names the oldest transaction that is not settled between this wallet and this terminal certificate, zeros
    when there is none. The repr shows the number masked and the secret not at all.
    """

    number: CardNumber
    currency: int
    counter: int
    secret: Secret
    open_id: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "number" / CardNumberField(),
        "currency" / NumericInt(4),
        "counter" / Int16ub,
        "secret" / SecretField(SECRET_LENGTH),
        "open_id" / Bytes(TRANSACTION_ID_LENGTH),
    )


SEALED_LENGTH = 8 + 2 + 2 + SECRET_LENGTH + TRANSACTION_ID_LENGTH + envelope.OVERHEAD


@dataclass(frozen=True, slots=True)
class VirtualCard(Wire):
    """The answer to GET VIRTUAL CARD: HPKE output, signature of the credential over it, credential certificate."""

    sealed: bytes
    signature: bytes
    certificate: CredentialCertificate

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "sealed" / Bytes(SEALED_LENGTH),
        "signature" / Bytes(signing.SIGNATURE_LENGTH),
        "certificate" / Nested(CredentialCertificate),
    )


@dataclass(frozen=True, slots=True)
class Debit(Wire):
    """The payment request: EMV 9F02, 5F2A, 9A and 9F21 concatenated as in a DOL, nothing else.

    `amount` is in minor units of `currency`, greater than 0.
    """

    amount: int
    currency: int
    date: date
    time: time

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "amount" / NumericInt(12),
        "currency" / NumericInt(4),
        "date" / NumericDate(6),
        "time" / NumericTime(),
    )

    def __post_init__(self) -> None:
        if self.amount <= 0:
            raise ValueError("the amount of a payment is greater than 0")


@dataclass(frozen=True, slots=True)
class DebitResult(Wire):
    """The answer to DEBIT: the result, and the evidence for the Receipt. One length, whatever the result.

    Evidence is the credential's signature (64), and after it the Trusted Key's where the credential needs one and the result
    is APPROVED.
    """

    result: Result
    evidence: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("result" / Coded(Result, Byte), "evidence" / GreedyBytes)

    def __post_init__(self) -> None:
        require_evidence(self.evidence)


@dataclass(frozen=True, slots=True)
class Confirm(Wire):
    """CONFIRM: empty for this session's receipt, 16 bytes for a recovered one."""

    transaction_id: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("transaction_id" / GreedyBytes)

    def __post_init__(self) -> None:
        if len(self.transaction_id) not in (0, TRANSACTION_ID_LENGTH):
            raise ValueError("a transaction id has 16 bytes")


@dataclass(frozen=True, slots=True)
class Confirmed(Wire):
    """The answer to CONFIRM: what is open next with this terminal, zeros for nothing."""

    open_id: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("open_id" / Bytes(TRANSACTION_ID_LENGTH))


@dataclass(frozen=True, slots=True)
class Cancel(Wire):
    """CANCEL: the id of a transaction of this wallet with this terminal whose result the terminal does not know."""

    transaction_id: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("transaction_id" / Bytes(TRANSACTION_ID_LENGTH))


@dataclass(frozen=True, slots=True)
class Settled(Wire):
    """The answer to CANCEL: the final result, and the evidence of the credential that the transaction was made with.

    The evidence is for the Receipt, for CANCELLED the signature over the Cancellation, and zeros for UNKNOWN.
    """

    result: Result
    open_id: bytes
    evidence: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "result" / Coded(Result, Byte),
        "open_id" / Bytes(TRANSACTION_ID_LENGTH),
        "evidence" / GreedyBytes,
    )

    def __post_init__(self) -> None:
        require_evidence(self.evidence)


@dataclass(frozen=True, slots=True)
class Cancellation(Wire):
    """What a wallet signs about a transaction that it will never pay: it was not asked to, so no amount is in it."""

    version: int
    suite: int
    credential_hash: bytes
    terminal_hash: bytes
    counter: int
    transaction_id: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "version" / Byte,
        "suite" / Byte,
        "credential_hash" / Bytes(DIGEST_LENGTH),
        "terminal_hash" / Bytes(DIGEST_LENGTH),
        "counter" / Int16ub,
        "transaction_id" / Bytes(TRANSACTION_ID_LENGTH),
    )

    def signature_input(self) -> bytes:
        """Return what the credential signs."""
        return labelled(Label.CANCELLATION, self.encode())

    def is_shown_by(self, evidence: bytes, certificate: CredentialCertificate) -> bool:
        """Tell whether `evidence` is the signature of the credential of `certificate` over this cancellation."""
        return signing.is_valid(certificate.public_key, evidence, self.signature_input())


@dataclass(frozen=True, slots=True)
class Receipt(Wire):
    """What a wallet signs about a transaction, and all that an issuer needs to judge it alone.

    The hashes are SHA-256 of the two certificates as they were sent.
    """

    version: int
    suite: int
    credential_hash: bytes
    terminal_hash: bytes
    counter: int
    transaction_id: bytes
    debit: Debit
    result: Result

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "version" / Byte,
        "suite" / Byte,
        "credential_hash" / Bytes(DIGEST_LENGTH),
        "terminal_hash" / Bytes(DIGEST_LENGTH),
        "counter" / Int16ub,
        "transaction_id" / Bytes(TRANSACTION_ID_LENGTH),
        "debit" / Nested(Debit),
        "result" / Coded(Result, Byte),
    )

    def signature_input(self) -> bytes:
        """Return what the credential signs."""
        return labelled(Label.RECEIPT, self.encode())

    def cancellation(self) -> Cancellation:
        """Return what would be signed in its place if the wallet was never asked to pay."""
        return Cancellation(
            self.version, self.suite, self.credential_hash, self.terminal_hash, self.counter, self.transaction_id
        )

    def co_signature_input(self) -> bytes:
        """Return what a Trusted Key signs."""
        return labelled(Label.KEY_RECEIPT, hashlib.sha256(self.encode()).digest())

    def is_shown_by(self, evidence: bytes, certificate: CredentialCertificate) -> bool:
        """Tell whether `evidence` shows that the credential of `certificate` made this receipt, and its Key agreed.

        Only an approved receipt needs the Key.
        """
        own, co_signature = evidence[: signing.SIGNATURE_LENGTH], evidence[signing.SIGNATURE_LENGTH :]
        signed = signing.is_valid(certificate.public_key, own, self.signature_input())
        if not certificate.co_signing_key or self.result is not Result.APPROVED:
            return signed and not co_signature
        return signing.is_valid(certificate.co_signing_key, co_signature, self.co_signature_input()) and signed


def require_evidence(evidence: bytes) -> None:
    """Raise ValueError unless this can be one signature or two."""
    if len(evidence) not in (signing.SIGNATURE_LENGTH, 2 * signing.SIGNATURE_LENGTH):
        raise ValueError("evidence is one signature of 64 bytes, or two")


def certificate_hash(certificate: TerminalCertificate | CredentialCertificate) -> bytes:
    """Return the SHA-256 by which receipts and records name a certificate."""
    return hashlib.sha256(certificate.encode()).digest()
