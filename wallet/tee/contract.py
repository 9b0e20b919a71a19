# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What both worlds know of each other: GlobalPlatform's vocabulary, the command ids, and what each command carries.

Results and origins are those of the GlobalPlatform TEE Client API §4.4.2 and §4.4.3; commands and parameters are
project-defined. There is no command that returns a key, a channel secret or an unmasked card number.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    PascalString,
    Prefixed,
    PrefixedArray,
)

from protocol.apdu import Command
from protocol.errors import LinkUnavailableError, TapLabError
from protocol.layout import Fields
from protocol.messages import CHALLENGE_LENGTH, Result
from protocol.settlement import NONCE_LENGTH, SettledAs
from protocol.wire import Coded, Nested, Wire

REFERENCE_LENGTH = 8
NO_PIN = 0xFF


class TeeResult(IntEnum):
    """Outcome of a session or command."""

    SUCCESS = 0x00000000
    GENERIC = 0xFFFF0000
    ACCESS_DENIED = 0xFFFF0001
    BAD_FORMAT = 0xFFFF0005
    BAD_PARAMETERS = 0xFFFF0006
    BAD_STATE = 0xFFFF0007
    ITEM_NOT_FOUND = 0xFFFF0008
    NOT_SUPPORTED = 0xFFFF000A
    BUSY = 0xFFFF000D
    COMMUNICATION = 0xFFFF000E
    SECURITY = 0xFFFF000F
    TARGET_DEAD = 0xFFFF3024
    STORAGE_NO_SPACE = 0xFFFF3041


class Origin(IntEnum):
    """Which layer a result comes from."""

    API = 1
    COMMS = 2
    TEE = 3
    TRUSTED_APP = 4


def as_result(code: int) -> TeeResult:
    """Return the result of a code from the other world, GENERIC for one that is not known."""
    return TeeResult(code) if code in set(TeeResult) else TeeResult.GENERIC


def as_origin(code: int) -> Origin:
    """Return the origin of a code from the other world, TEE for one that is not known."""
    return Origin(code) if code in set(Origin) else Origin.TEE


class TeeError(TapLabError):
    """A result other than SUCCESS, with its origin; the text is one sentence from the trusted application."""

    def __init__(self, result: TeeResult, origin: Origin, sentence: str) -> None:
        """Keep result and origin, so that a caller can choose by them."""
        super().__init__(sentence)
        self.result = result
        self.origin = origin


class KeyAwayError(TeeError, LinkUnavailableError):
    """COMMUNICATION: the trusted application needs a Trusted Key that is not there, or not the one that is paired."""


class CommandId(IntEnum):
    """Commands of the payment application."""

    BEGIN_TAP = 1
    GET_VIRTUAL_CARD = 2
    CHANNEL = 3
    END_TAP = 4
    ASK_CONSENT = 5
    CHANGE_PIN = 6
    CHOOSE_PHRASE = 7
    CHANGE_LIMITS = 8
    PAIR_KEY = 9
    SHOW = 10
    REPORT = 11
    FORGET_KEY = 12
    KEY_ANSWER = 13
    FETCH_FROM_KEY = 14
    MOVE_OUT = 15
    MOVE_IN = 16
    PIN_ANCHORS = 20
    APPLY = 21
    INSTALL = 22
    REQUEST_LOAD = 23
    LOAD = 24
    OBEY_LIST = 25
    REQUEST_STATEMENT = 26
    SETTLE = 27
    REQUEST_UNBLOCK = 28
    UNBLOCK = 29


@dataclass(frozen=True, slots=True)
class BegunTap(Wire):
    """BEGIN_TAP answers: the nonce of this tap; whether payment is locked."""

    nonce: bytes
    locked: bool

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("nonce" / Bytes(CHALLENGE_LENGTH), "locked" / Flag)


@dataclass(frozen=True, slots=True)
class CardRequest(Wire):
    """GET_VIRTUAL_CARD takes: the transcript before the command, and the command as it came. Answers: VirtualCard."""

    prefix: bytes
    p1: int
    p2: int
    data: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "prefix" / Prefixed(Int32ub, GreedyBytes), "p1" / Byte, "p2" / Byte, "data" / GreedyBytes
    )


@dataclass(frozen=True, slots=True)
class ChannelRequest(Wire):
    """CHANNEL takes: one command of the channel as it came, chaining undone."""

    header: bytes
    data: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("header" / Bytes(4), "data" / GreedyBytes)

    def command(self) -> Command:
        """Return the command APDU."""
        cla, ins, p1, p2 = self.header
        return Command(cla, ins, p1, p2, self.data)


@dataclass(frozen=True, slots=True)
class Shown(Wire):
    """What the client application may show of a payment: nothing here is core data. `reference` is for its history."""

    merchant: str
    terminal_id: str
    amount: int
    currency: int
    result: Result
    balance: int
    reference: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "merchant" / PascalString(Byte, "ascii"),
        "terminal_id" / PascalString(Byte, "ascii"),
        "amount" / Int64ub,
        "currency" / Int16ub,
        "result" / Coded(Result, Byte),
        "balance" / Int64ub,
        "reference" / Bytes(REFERENCE_LENGTH),
    )


@dataclass(frozen=True, slots=True)
class ChannelAnswer(Wire):
    """CHANNEL answers: what may be shown, and the encrypted body for the terminal."""

    shown: Shown
    body: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("shown" / Nested(Shown), "body" / GreedyBytes)


@dataclass(frozen=True, slots=True)
class Consent(Wire):
    """ASK_CONSENT answers: whether the user agreed on the trusted UI to the payment that was too large to go through."""

    granted: bool

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("granted" / Flag)


@dataclass(frozen=True, slots=True)
class Dialogue(Wire):
    """What a command answers that may need the Trusted Key: an APDU to send to it, or the answer itself.

    The APDU is to be sent `pause_ms` milliseconds from now, and what comes back is given to KEY_ANSWER, with the number of
    this `talk`; it answers a Dialogue too. Talks are carried one after the other. The channel is the trusted world's: nothing
    in these bytes is for the client application.
    """

    talk: int
    pause_ms: int
    apdu: bytes
    answer: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "talk" / Int32ub, "pause_ms" / Int16ub, "apdu" / Prefixed(Int32ub, GreedyBytes), "answer" / GreedyBytes
    )


@dataclass(frozen=True, slots=True)
class KeyAnswer(Wire):
    """KEY_ANSWER takes: the Key's answer to the APDU of a Dialogue, empty when the Key cannot be reached."""

    talk: int
    apdu: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("talk" / Int32ub, "apdu" / GreedyBytes)


@dataclass(frozen=True, slots=True)
class FromKey(Wire):
    """FETCH_FROM_KEY answers: what the user began on the Key, in words, empty for nothing; what came of it is done."""

    words: str

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("words" / PascalString(Byte, "utf8"))


@dataclass(frozen=True, slots=True)
class NewLimits(Wire):
    """CHANGE_LIMITS takes: what may go through without asking, in minor units: one payment, their sum and their number
    since the last consent (0 for no limit of that kind); and above what a payment needs the Trusted Key (0 for never). The
    trusted UI asks for the user's agreement.
    """

    payment: int
    sum: int
    count: int
    key: int = 0

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "payment" / Int64ub, "sum" / Int64ub, "count" / Int32ub, "key" / Int64ub
    )


@dataclass(frozen=True, slots=True)
class Agreed(Wire):
    """What the commands answer that the user does on the trusted UI: whether it was done; nothing of what was typed."""

    done: bool

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("done" / Flag)


@dataclass(frozen=True, slots=True)
class WalletView(Wire):
    """SHOW and LOAD answer: what the client application keeps a copy of. `masked_number` is that of the next card.

    `pin_tries` is how many are left, NO_PIN where there is none. `key` names the Trusted Key that is paired, empty without
    one; `key_cards_left` counts the cards that it backs, which are not among `cards_left`. `held` says that the user locked
    the wallet at the Key, `moving` that its purse is on its way to or from there, `moved` that it is there.
    """

    device: bytes
    currency: int
    balance: int
    loads: int
    masked_number: str
    cards_left: int
    no_pin_limit: int
    locked: bool
    sum_limit: int = 0
    count_limit: int = 0
    pin_tries: int = NO_PIN
    key_limit: int = 0
    key: bytes = b""
    key_cards_left: int = 0
    held: bool = False
    moving: bool = False
    moved: bool = False

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "device" / Prefixed(Byte, GreedyBytes),
        "currency" / Int16ub,
        "balance" / Int64ub,
        "loads" / Int32ub,
        "masked_number" / PascalString(Byte, "utf8"),
        "cards_left" / Int16ub,
        "no_pin_limit" / Int64ub,
        "locked" / Flag,
        "sum_limit" / Int64ub,
        "count_limit" / Int32ub,
        "pin_tries" / Byte,
        "key_limit" / Int64ub,
        "key" / Prefixed(Byte, GreedyBytes),
        "key_cards_left" / Int16ub,
        "held" / Flag,
        "moving" / Flag,
        "moved" / Flag,
    )


@dataclass(frozen=True, slots=True)
class Report(Wire):
    """REPORT answers: what locks the process down, what is missing, and how often it did what costs time."""

    landlock_abi: int
    seccomp: bool
    missing: tuple[str, ...]
    operations: tuple[int, ...]

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "landlock_abi" / Byte,
        "seccomp" / Flag,
        "missing" / PrefixedArray(Byte, PascalString(Int16ub, "utf8")),
        "operations" / PrefixedArray(Byte, Int32ub),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "missing", tuple(self.missing))
        object.__setattr__(self, "operations", tuple(self.operations))


@dataclass(frozen=True, slots=True)
class ApplyRequest(Wire):
    """APPLY takes: purse currency and how many cards. Answers: an issuing.Application."""

    currency: int
    count: int
    with_key: bool = False

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("currency" / Int16ub, "count" / Byte, "with_key" / Flag)


@dataclass(frozen=True, slots=True)
class Installation(Wire):
    """INSTALL takes: the application and the issuer's answer to it, as messages."""

    application: bytes
    issuance: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "application" / Prefixed(Int32ub, GreedyBytes), "issuance" / Prefixed(Int32ub, GreedyBytes)
    )


@dataclass(frozen=True, slots=True)
class LoadOrder(Wire):
    """REQUEST_LOAD takes: how much of the purse currency. Answers: an issuing.LoadRequest."""

    amount: int
    currency: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("amount" / Int64ub, "currency" / Int16ub)


@dataclass(frozen=True, slots=True)
class StatementOrder(Wire):
    """REQUEST_STATEMENT takes: the issuer's nonce. Answers: a settlement.Statement as an issuing message."""

    nonce: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("nonce" / Bytes(NONCE_LENGTH))


@dataclass(frozen=True, slots=True)
class DecidedDebit(Wire):
    """What became of one debit; `reference` is the one of Shown."""

    reference: bytes
    outcome: SettledAs

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "reference" / Bytes(REFERENCE_LENGTH), "outcome" / Coded(SettledAs, Byte)
    )


@dataclass(frozen=True, slots=True)
class SettledView(Wire):
    """SETTLE, which takes a settlement.Settlement, answers: the wallet now, what was decided, whether more is to be listed."""

    view: WalletView
    decided: tuple[DecidedDebit, ...]
    more: bool

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "view" / Prefixed(Int16ub, Nested(WalletView)),
        "decided" / PrefixedArray(Int16ub, Nested(DecidedDebit)),
        "more" / Flag,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "decided", tuple(self.decided))


@dataclass(frozen=True, slots=True)
class Nothing(Wire):
    """No parameters, or no answer."""

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields()
