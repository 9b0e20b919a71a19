# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What is said to a Trusted Key: its instructions, and the bodies of its commands and answers (docs/trusted-key.md).

Class 80, project-defined, but for FETCH and the event that it returns, which are made as in ETSI TS 102 223.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from construct import Byte, Const, Construct, GreedyBytes, Int16ub, Int32ub, Int64ub, Prefixed, PrefixedArray

from protocol.apdu import SHORT_MAX_NE, Command
from protocol.certificate import PrintableText, TerminalCertificate
from protocol.commands import CLA_PROPRIETARY
from protocol.fci import MAX_NAME
from protocol.layout import Fields
from protocol.messages import Receipt
from protocol.status import StatusWord
from protocol.tags import Tag
from protocol.tlv import tagged
from protocol.wire import Coded, FieldAdapter, Nested, NumericInt, Wire

KEY_VERSION = 1
MAX_TEXT = 80
MAX_SECONDS = 60
MAX_OBJECT = 0x4000
_PROACTIVE_COMMAND, _COMMAND_DETAILS, _DEVICE_IDENTITIES = 0xD0, 0x81, 0x82  # ETSI TS 101 220 §7.2
_MAX_EVENT = 0x80  # ISO 7816-4 §12.5.1: what 62XX can announce


class KeyIns(IntEnum):
    """Instruction bytes of the Key's modules; those of its secure channel are GlobalPlatform's."""

    FETCH = 0x12

    GENERATE_KEY = 0x30
    PUBLIC_KEY = 0x32
    SIGN = 0x34
    AGREE = 0x36
    MAC = 0x38
    RANDOM = 0x3A
    COUNTER = 0x3C
    LIST_KEYS = 0x3E
    DELETE_KEY = 0x40
    SIGN_RECEIPT = 0x42

    PAIR = 0x60

    ASK = 0x70
    POLL = 0x72
    SHOW = 0x74
    CLEAR = 0x76
    CONFIRM_PAYMENT = 0x78

    WRITE = 0xD0
    BEGIN = 0xD2
    APPEND = 0xD4
    COMMIT = 0xD6
    READ = 0xD8
    LIST = 0xDA
    DELETE = 0xDC
    WIPE = 0xDE

    @property
    def title(self) -> str:
        """The name that a person reads."""
        return self.name.replace("_", " ")


class CounterStep(IntEnum):
    """P1 of COUNTER."""

    READ = 0x00
    ADVANCE = 0x01
    CREATE = 0x02


class KeyModule(IntEnum):
    """The modules, as the FCI lists those that are there."""

    CHANNEL = 0x01
    STORAGE = 0x02
    COMPUTING = 0x03
    INTERACTION = 0x04

    @property
    def title(self) -> str:
        """The name that a person reads and chooses it by."""
        return self.name.lower()


class Rule(IntEnum):
    """Who may use an object, a key or a counter."""

    OPEN = 0x00
    CHANNEL = 0x01
    PEER = 0x02
    CREATOR = 0x03

    @property
    def words(self) -> str:
        """The rule as a person reads it."""
        return {
            Rule.OPEN: "anybody",
            Rule.CHANNEL: "within an encrypted channel",
            Rule.PEER: "a trusted world that is paired",
            Rule.CREATOR: "the trusted world that made it",
        }[self]


class KeyKind(IntEnum):
    """What a slot holds."""

    P256 = 0x01
    X25519 = 0x02
    ED25519 = 0x03
    AES128 = 0x04


class KeyUse(IntEnum):
    """What a key is for, one thing only. RECEIPT is for one receipt of a payment that was confirmed on the Key."""

    SIGN = 0x01
    AGREE = 0x02
    MAC = 0x03
    RECEIPT = 0x04


USES_OF = {
    KeyKind.P256: frozenset({KeyUse.SIGN, KeyUse.AGREE, KeyUse.RECEIPT}),
    KeyKind.X25519: frozenset({KeyUse.AGREE}),
    KeyKind.ED25519: frozenset({KeyUse.SIGN}),
    KeyKind.AES128: frozenset({KeyUse.MAC}),
}


class Reply(IntEnum):
    """How a question stands."""

    PENDING = 0x00
    CONFIRMED = 0x01
    CANCELLED = 0x02
    TIMED_OUT = 0x03


class EventKind(IntEnum):
    """What the user began (type of command in ETSI TS 102 223 §9.4; these are not in use there)."""

    LOCK = 0xF0
    READY_TO_PAY = 0xF1
    NEXT_CARD = 0xF2

    @property
    def words(self) -> str:
        """The event as the Key's menu has it."""
        return self.name.capitalize().replace("_", " ")


class _Modules(FieldAdapter):
    """Modules, a byte each, in order, none twice."""

    def __init__(self) -> None:
        """Describe a field that runs to the end of its data object."""
        super().__init__(GreedyBytes)

    def _decode(self, obj: bytes, context: Any, path: Any) -> tuple[KeyModule, ...]:
        modules = tuple(KeyModule(code) for code in obj)
        if list(modules) != sorted(set(modules)):
            raise ValueError("modules not in order")
        return modules

    def _encode(self, obj: tuple[KeyModule, ...], context: Any, path: Any) -> bytes:
        return bytes(obj)


class _Name(FieldAdapter):
    """The name of an object, a key or a counter: 1 to 16 bytes."""

    def _decode(self, obj: bytes, context: Any, path: Any) -> bytes:
        if not 1 <= len(obj) <= MAX_NAME:
            raise ValueError(f"a name has 1 to {MAX_NAME} bytes")
        return obj

    _encode = _decode


_NAME = _Name(Prefixed(Byte, GreedyBytes))
_RULE = Coded(Rule, Byte)


@dataclass(frozen=True, slots=True)
class Named(Wire):
    """The name of an object, a key or a counter, where a command needs no more."""

    name: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("name" / _NAME)


@dataclass(frozen=True, slots=True)
class NewCounter(Wire):
    """COUNTER, to create one: its name and who may use it."""

    name: bytes
    rule: Rule

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("name" / _NAME, "rule" / _RULE)


@dataclass(frozen=True, slots=True)
class CounterValue(Wire):
    """The answer to COUNTER."""

    value: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("value" / Int64ub)


@dataclass(frozen=True, slots=True)
class WriteObject(Wire):
    """WRITE: an object at once, new or in the place of the one of this name."""

    name: bytes
    rule: Rule
    value: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "name" / _NAME, "rule" / _RULE, "value" / Prefixed(Int16ub, GreedyBytes)
    )


@dataclass(frozen=True, slots=True)
class BeginObject(Wire):
    """BEGIN: an object that comes in pieces by APPEND and is there with COMMIT; `length` is that of the whole."""

    name: bytes
    rule: Rule
    length: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("name" / _NAME, "rule" / _RULE, "length" / Int16ub)


@dataclass(frozen=True, slots=True)
class ReadObject(Wire):
    """READ: `length` bytes from `offset` on, fewer where the object ends, all of them for 0."""

    name: bytes
    offset: int
    length: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("name" / _NAME, "offset" / Int16ub, "length" / Int16ub)


@dataclass(frozen=True, slots=True)
class ListedObject(Wire):
    """One object in the answer to LIST."""

    name: bytes
    rule: Rule
    length: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("name" / _NAME, "rule" / _RULE, "length" / Int16ub)


@dataclass(frozen=True, slots=True)
class ObjectList(Wire):
    """The answer to LIST: the objects that the asking side may use, and the room that is left for all."""

    objects: tuple[ListedObject, ...]
    free_objects: int
    free_bytes: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "objects" / PrefixedArray(Byte, Nested(ListedObject)), "free_objects" / Byte, "free_bytes" / Int32ub
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))


@dataclass(frozen=True, slots=True)
class GenerateKey(Wire):
    """GENERATE KEY: the answer is the public key, nothing for AES."""

    name: bytes
    kind: KeyKind
    use: KeyUse
    rule: Rule

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "name" / _NAME, "kind" / Coded(KeyKind, Byte), "use" / Coded(KeyUse, Byte), "rule" / _RULE
    )

    def __post_init__(self) -> None:
        if self.use not in USES_OF[self.kind]:
            raise ValueError(f"a key of kind {self.kind.name} is not for {self.use.name}")


@dataclass(frozen=True, slots=True)
class KeyList(Wire):
    """The answer to LIST KEYS: the keys that the asking side may use, and how many more there is room for."""

    keys: tuple[GenerateKey, ...]
    free: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("keys" / PrefixedArray(Byte, Nested(GenerateKey)), "free" / Byte)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))


@dataclass(frozen=True, slots=True)
class KeyOrder(Wire):
    """SIGN, AGREE, MAC: the key, and the message or the other side's public key."""

    name: bytes
    data: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("name" / _NAME, "data" / Prefixed(Int16ub, GreedyBytes))


@dataclass(frozen=True, slots=True)
class ReceiptOrder(Wire):
    """SIGN RECEIPT: the key, which is used up by it, and the receipt of the payment that was confirmed."""

    name: bytes
    receipt: Receipt

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("name" / _NAME, "receipt" / Nested(Receipt))


@dataclass(frozen=True, slots=True)
class Question(Wire):
    """ASK, and SHOW with 0 seconds: printable ASCII that fits the screen, and how long the user may take."""

    seconds: int
    text: str

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("seconds" / Byte, "text" / Prefixed(Byte, PrintableText(MAX_TEXT)))

    def __post_init__(self) -> None:
        _require_seconds(self.seconds, least=0)


@dataclass(frozen=True, slots=True)
class PaymentQuestion(Wire):
    """CONFIRM PAYMENT: who is to be paid, and how much (minor units). The Key makes the text of it itself."""

    seconds: int
    amount: int
    currency: int
    certificate: TerminalCertificate

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "seconds" / Byte,
        "amount" / NumericInt(12),
        "currency" / NumericInt(4),
        "certificate" / Nested(TerminalCertificate),
    )

    def __post_init__(self) -> None:
        _require_seconds(self.seconds, least=1)
        if self.amount <= 0:
            raise ValueError("the amount of a payment is greater than 0")


def _require_seconds(seconds: int, *, least: int) -> None:
    if not least <= seconds <= MAX_SECONDS:
        raise ValueError(f"a question stands for {least} to {MAX_SECONDS} seconds")


@dataclass(frozen=True, slots=True)
class QuestionState(Wire):
    """The answer to ASK, CONFIRM PAYMENT and POLL: the number of the question, and how it stands."""

    number: int
    reply: Reply

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("number" / Int16ub, "reply" / Coded(Reply, Byte))


@dataclass(frozen=True, slots=True)
class QuestionNumber(Wire):
    """POLL: which question."""

    number: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("number" / Int16ub)


@dataclass(frozen=True, slots=True)
class EventDetails(Wire):
    """Command details, ETSI TS 102 223 §8.6: number, type, qualifier 00."""

    number: int
    kind: EventKind

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("number" / Byte, "kind" / Coded(EventKind, Byte), Const(b"\0"))


@dataclass(frozen=True, slots=True)
class KeyEvent(Wire):
    """The answer to FETCH: a proactive command of ETSI TS 102 223 §6.6, from the card (81) to the terminal (82)."""

    details: EventDetails

    LAYOUT: ClassVar[Construct[Any, Any]] = tagged(
        _PROACTIVE_COMMAND,
        Fields(
            "details" / tagged(_COMMAND_DETAILS, Nested(EventDetails)),
            tagged(_DEVICE_IDENTITIES, Const(b"\x81\x82")),
        ),
    )


@dataclass(frozen=True, slots=True)
class KeyOffer(Wire):
    """What an FCI says of a Key: version of these commands, and the modules that are there, a byte each."""

    version: int
    modules: tuple[KeyModule, ...]

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "version" / tagged(Tag.VERSIONS, Byte), "modules" / tagged(Tag.KEY_MODULES, _Modules())
    )


@dataclass(frozen=True, slots=True)
class KeyFci(Wire):
    """The answer to SELECT: the application's name, and what it offers."""

    name: bytes
    offer: KeyOffer

    LAYOUT: ClassVar[Construct[Any, Any]] = tagged(
        Tag.FCI_TEMPLATE,
        Fields(
            "name" / tagged(Tag.DF_NAME, _Name(GreedyBytes)), "offer" / tagged(Tag.FCI_PROPRIETARY, Nested(KeyOffer))
        ),
    )


def pairing_code(key_certificate: bytes, host_certificate: bytes) -> str:
    """Return the twelve digits that both sides of a pairing show: whoever stands between them cannot make them the same.

    48 bits of SHA-256 over both certificates.
    """
    digest = hashlib.sha256(key_certificate + host_certificate).hexdigest()[:12].upper()
    return f"{digest[:4]} {digest[4:8]} {digest[8:]}"


def key_command(ins: KeyIns, body: Wire | bytes = b"", *, p1: int = 0, p2: int = 0, ne: int = SHORT_MAX_NE) -> Command:
    """Return a command of one of the Key's modules, before the channel secures it."""
    return Command(CLA_PROPRIETARY, ins, p1, p2, body if isinstance(body, bytes) else body.encode(), ne)


def announces(length: int, *, in_channel: bool) -> StatusWord:
    """Return the status word that says "done, and an event of `length` bytes is to be fetched".

    That is 91XX as ETSI TS 102 223 §6.4 has it. In a secure channel it is a warning, 62XX (ISO 7816-4 §12.5.1: triggering
    by the card), since the channel takes every other status word for an error and drops the data.
    """
    if not 2 <= length <= _MAX_EVENT:
        raise ValueError(f"an event has 2 to {_MAX_EVENT} bytes")
    return StatusWord((0x6200 if in_channel else 0x9100) | length)


def event_length(sw: StatusWord) -> int:
    """Return how many bytes of an event a status word says are to be fetched; 0 for one that says nothing of it."""
    announced = {0x91: 0x100, 0x62: _MAX_EVENT + 1}.get(sw >> 8, 0)
    length = sw & 0xFF
    return length if 2 <= length < announced else 0


def is_done(sw: StatusWord) -> bool:
    """Tell whether the Key did what it was told, with or without an event to fetch."""
    return sw is StatusWord.OK or event_length(sw) > 0
