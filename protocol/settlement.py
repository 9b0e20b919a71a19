# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""How debits become money: what wallets list, what terminals claim or void, and what the issuer answers.

All of it is project-defined; docs/protocol.md ("Settlement") has the rules. Every request can be repeated safely.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from construct import Byte, Bytes, Construct, Flag, GreedyBytes, Int16ub, Int32ub, Int64ub, Prefixed, PrefixedArray

from protocol import signing
from protocol.certificate import SERIAL_LENGTH
from protocol.channel import TRANSACTION_ID_LENGTH
from protocol.labels import Label, labelled
from protocol.layout import Fields
from protocol.messages import DIGEST_LENGTH, Receipt, require_evidence
from protocol.vouchers import DEVICE_ID_LENGTH, Voucher
from protocol.wire import Coded, Nested, Wire

NONCE_LENGTH = 16
MAX_LISTED = 1024  # debits in one statement; a wallet with more sends several
MAX_REPORTED = 1024
_SIGNATURE = "signature" / Bytes(signing.SIGNATURE_LENGTH)


@dataclass(frozen=True, slots=True)
class NonceRequest(Wire):
    """A wallet asks for a nonce to sign its next statement over."""

    device: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("device" / Bytes(DEVICE_ID_LENGTH))


@dataclass(frozen=True, slots=True)
class IssuerNonce(Wire):
    """The issuer's nonce for one statement of one wallet; a newer one takes its place."""

    nonce: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("nonce" / Bytes(NONCE_LENGTH))


@dataclass(frozen=True, slots=True)
class ListedDebit(Wire):
    """One debit that a wallet made: the serial of its credential's certificate, and the receipt as it was signed."""

    credential: bytes
    receipt: Receipt

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("credential" / Bytes(SERIAL_LENGTH), "receipt" / Nested(Receipt))


@dataclass(frozen=True, slots=True)
class Statement(Wire):
    """What a wallet says of its debits, without a gap: numbers `first`, `first` + 1, … of `total` that it ever made.

    `challenge` is the TEE's own, so that an answer belongs to this statement. `restored` says that storage or freshness
    counter were put back to an older copy; nothing else counts then. `loads` is the number of the last voucher that was
    loaded; `wanted` are ids of debits listed before whose outcome the wallet does not know yet.
    """

    device: bytes
    nonce: bytes
    challenge: bytes
    restored: bool
    loads: int
    total: int
    first: int
    debits: tuple[ListedDebit, ...]
    wanted: tuple[bytes, ...]
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "device" / Bytes(DEVICE_ID_LENGTH),
        "nonce" / Bytes(NONCE_LENGTH),
        "challenge" / Bytes(NONCE_LENGTH),
        "restored" / Flag,
        "loads" / Int32ub,
        "total" / Int32ub,
        "first" / Int32ub,
        "debits" / PrefixedArray(Int16ub, Nested(ListedDebit)),
        "wanted" / PrefixedArray(Int16ub, Bytes(TRANSACTION_ID_LENGTH)),
        _SIGNATURE,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "debits", tuple(self.debits))
        object.__setattr__(self, "wanted", tuple(self.wanted))

    @property
    def last(self) -> int:
        """The number of the last debit listed."""
        return self.first + len(self.debits) - 1

    def signature_input(self) -> bytes:
        """Return what the device key signs."""
        return labelled(Label.STATEMENT, self.encode()[: -signing.SIGNATURE_LENGTH])


class Standing(IntEnum):
    """How a wallet stands with its issuer."""

    GOOD = 0
    WAITING = 1
    REISSUED = 2
    BLOCKED = 3


class SettledAs(IntEnum):
    """What became of a debit at the issuer; OPEN until a claim, a VOID or the end of the claim window decides."""

    OPEN = 0
    PAID = 1
    REFUNDED = 2

    @property
    def words(self) -> str:
        """The outcome as a person reads it."""
        return {
            SettledAs.OPEN: "deducted, not confirmed",
            SettledAs.PAID: "paid",
            SettledAs.REFUNDED: "refunded by the issuer",
        }[self]


@dataclass(frozen=True, slots=True)
class DebitOutcome(Wire):
    """What became of one debit."""

    transaction_id: bytes
    outcome: SettledAs

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "transaction_id" / Bytes(TRANSACTION_ID_LENGTH), "outcome" / Coded(SettledAs, Byte)
    )


@dataclass(frozen=True, slots=True)
class Settlement(Wire):
    """The issuer's answer to a statement: debits up to `acknowledged` are in its books.

    `outcomes` answers what was wanted and has been decided; `vouchers` are those not loaded yet, refunds among them. After a
    restore the wallet is WAITING until `until` (seconds since 1970), then REISSUED with `balance` after voucher `loads`;
    both are 0 otherwise. `time` is the issuer's.
    """

    device: bytes
    challenge: bytes
    standing: Standing
    acknowledged: int
    balance: int
    loads: int
    until: int
    outcomes: tuple[DebitOutcome, ...]
    vouchers: tuple[Voucher, ...]
    time: int
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "device" / Bytes(DEVICE_ID_LENGTH),
        "challenge" / Bytes(NONCE_LENGTH),
        "standing" / Coded(Standing, Byte),
        "acknowledged" / Int32ub,
        "balance" / Int64ub,
        "loads" / Int32ub,
        "until" / Int64ub,
        "outcomes" / PrefixedArray(Int16ub, Nested(DebitOutcome)),
        "vouchers" / PrefixedArray(Int16ub, Nested(Voucher)),
        "time" / Int64ub,
        _SIGNATURE,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "outcomes", tuple(self.outcomes))
        object.__setattr__(self, "vouchers", tuple(self.vouchers))

    def signature_input(self) -> bytes:
        """Return what the issuer signs."""
        return labelled(Label.SETTLEMENT, self.encode()[: -signing.SIGNATURE_LENGTH])


@dataclass(frozen=True, slots=True)
class Claim(Wire):
    """A terminal claims an approved receipt; its own signature shows that it is the terminal that the receipt names."""

    credential: bytes
    receipt: Receipt
    evidence: bytes
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "credential" / Bytes(SERIAL_LENGTH),
        "receipt" / Nested(Receipt),
        "evidence" / Prefixed(Byte, GreedyBytes),
        _SIGNATURE,
    )

    def __post_init__(self) -> None:
        require_evidence(self.evidence)

    def signature_input(self) -> bytes:
        """Return what the terminal signs."""
        return labelled(Label.CLAIM, self.encode()[: -signing.SIGNATURE_LENGTH])


@dataclass(frozen=True, slots=True)
class Void(Wire):
    """A terminal gives up a transaction, whatever its result was: it will never claim it. For the issuer only."""

    terminal_hash: bytes
    credential: bytes
    counter: int
    transaction_id: bytes
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "terminal_hash" / Bytes(DIGEST_LENGTH),
        "credential" / Bytes(SERIAL_LENGTH),
        "counter" / Int16ub,
        "transaction_id" / Bytes(TRANSACTION_ID_LENGTH),
        _SIGNATURE,
    )

    def signature_input(self) -> bytes:
        """Return what the terminal signs."""
        return labelled(Label.VOID, self.encode()[: -signing.SIGNATURE_LENGTH])


@dataclass(frozen=True, slots=True)
class TerminalReport(Wire):
    """What a terminal has for the issuer: receipts to be paid for, transactions given up. Each is signed by itself."""

    claims: tuple[Claim, ...]
    voids: tuple[Void, ...]

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "claims" / PrefixedArray(Int16ub, Nested(Claim)), "voids" / PrefixedArray(Int16ub, Nested(Void))
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", tuple(self.claims))
        object.__setattr__(self, "voids", tuple(self.voids))

    def digest(self) -> bytes:
        """Return the SHA-256 that the answer is bound to."""
        return hashlib.sha256(self.encode()).digest()


class Verdict(IntEnum):
    """What the issuer says to one claim or VOID."""

    PAID = 0
    TOO_LATE = 1
    VOIDED = 2
    NOT_VALID = 3
    CHARGED_BACK = 4

    @property
    def words(self) -> str:
        """The verdict as a person reads it."""
        return {
            Verdict.PAID: "paid by the issuer",
            Verdict.TOO_LATE: "claimed too late, not paid",
            Verdict.VOIDED: "given up; the wallet gets its money back",
            Verdict.NOT_VALID: "not accepted by the issuer",
            Verdict.CHARGED_BACK: "charged back",
        }[self]


@dataclass(frozen=True, slots=True)
class ReportAnswer(Wire):
    """One verdict for each claim, then one for each VOID, signed by the issuer over the report's digest."""

    verdicts: tuple[Verdict, ...]
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "verdicts" / PrefixedArray(Int16ub, Coded(Verdict, Byte)), _SIGNATURE
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "verdicts", tuple(self.verdicts))

    def signature_input(self, report: bytes) -> bytes:
        """Return what the issuer signs; `report` is the digest of the report."""
        return labelled(Label.REPORT_ANSWER, report, bytes(self.verdicts))
