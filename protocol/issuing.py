# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What wallets and terminals say to the issuer. On the way each message is its kind, one byte, and its body.

All of it is project-defined; docs/protocol.md says who signs what and why each request can be repeated safely.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, TypeVar

from construct import Byte, Bytes, Construct, GreedyBytes, Int32ub, Int64ub, Prefixed, PrefixedArray

from protocol import signing
from protocol.card_number import CardNumber
from protocol.certificate import (
    TERMINAL_ID_LENGTH,
    CredentialCertificate,
    Merchant,
    PrintableText,
    TerminalCertificate,
)
from protocol.errors import DecodeError, TapLabError
from protocol.labels import Label, labelled
from protocol.layout import Fields
from protocol.messages import CardNumberField
from protocol.settlement import (
    NONCE_LENGTH,
    IssuerNonce,
    NonceRequest,
    ReportAnswer,
    Settlement,
    Statement,
    TerminalReport,
)
from protocol.vouchers import DEVICE_ID_LENGTH, LoadRequest, Voucher
from protocol.wire import Coded, Nested, NumericInt, Wire

AnyWire = TypeVar("AnyWire", bound=Wire)

MAX_CREDENTIALS = 64


class RefusalReason(IntEnum):
    """Why the issuer does not do what it was asked."""

    MALFORMED = 1
    SIGNATURE = 2
    UNKNOWN_DEVICE = 3
    BLOCKED = 4
    LOAD_NUMBER = 5
    CURRENCY = 6
    TERMINAL_ID_TAKEN = 7
    KEY_TAKEN = 8
    NONCE = 9
    GAP = 10
    RESTORED = 11
    NOT_ALLOWED = 12
    UNKNOWN_CURRENCY = 13

    @property
    def words(self) -> str:
        """The reason as a person reads it."""
        return {
            RefusalReason.MALFORMED: "the request is malformed",
            RefusalReason.SIGNATURE: "the signature of the request is wrong",
            RefusalReason.UNKNOWN_DEVICE: "no virtual card was ever applied for by this wallet",
            RefusalReason.BLOCKED: "this wallet or terminal is blocked",
            RefusalReason.LOAD_NUMBER: "the load number is not the next one",
            RefusalReason.CURRENCY: "the purse is in another currency",
            RefusalReason.TERMINAL_ID_TAKEN: "another terminal has this terminal id",
            RefusalReason.KEY_TAKEN: "a key in the request belongs to another wallet",
            RefusalReason.NONCE: "the statement was not signed over the newest nonce; try again",
            RefusalReason.GAP: "the wallet's list of debits does not follow on its last one",
            RefusalReason.UNKNOWN_CURRENCY: "the currency is none that ISO 4217 lists with an amount",
            RefusalReason.NOT_ALLOWED: "nobody has allowed it; `tap-issuer unblock-pin` does",
            RefusalReason.RESTORED: "this wallet was put back to an older copy; `tap-wallet sync` goes on from there",
        }[self]


class IssuerRefusedError(TapLabError):
    """The issuer answered with a refusal."""

    def __init__(self, reason: RefusalReason) -> None:
        """Keep the reason, so that a caller can choose by it."""
        super().__init__(f"the issuer refused: {reason.words}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AnchorsRequest(Wire):
    """Ask for the trust anchors; done once, when a wallet or terminal is set up."""

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields()


@dataclass(frozen=True, slots=True)
class Anchors(Wire):
    """The public keys that everything else is checked with: both CAs, and the issuer's key for loads, lists and time."""

    issuer_id: bytes
    issuer_key: bytes
    operations_key: bytes
    acquirer_id: bytes
    acquirer_key: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "issuer_id" / Bytes(4),
        "issuer_key" / Bytes(signing.POINT_LENGTH),
        "operations_key" / Bytes(signing.POINT_LENGTH),
        "acquirer_id" / Bytes(4),
        "acquirer_key" / Bytes(signing.POINT_LENGTH),
    )


@dataclass(frozen=True, slots=True)
class Application(Wire):
    """A wallet applies for virtual cards: one for each credential key, numbers to be sealed to `sealing_key` (X25519).

    `locked_down` says whether the TEE runs with every protection the kernel offers; the device key signs it all.
    `co_signing_keys` are a Trusted Key's, one for each credential, or none. Repeating an application brings the same
    certificates and numbers.
    """

    device_key: bytes
    sealing_key: bytes
    currency: int
    locked_down: int
    credential_keys: tuple[bytes, ...]
    signature: bytes
    co_signing_keys: tuple[bytes, ...] = ()

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "device_key" / Bytes(signing.POINT_LENGTH),
        "sealing_key" / Bytes(32),
        "currency" / NumericInt(4),
        "locked_down" / Byte,
        "credential_keys" / PrefixedArray(Byte, Bytes(signing.POINT_LENGTH)),
        "co_signing_keys" / PrefixedArray(Byte, Bytes(signing.POINT_LENGTH)),
        "signature" / Bytes(signing.SIGNATURE_LENGTH),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "credential_keys", tuple(self.credential_keys))
        if not 1 <= len(self.credential_keys) <= MAX_CREDENTIALS:
            raise ValueError(f"1 to {MAX_CREDENTIALS} credentials are applied for at once")
        object.__setattr__(self, "co_signing_keys", tuple(self.co_signing_keys))
        if len(self.co_signing_keys) not in (0, len(self.credential_keys)):
            raise ValueError("a Trusted Key backs each credential of an application, or none")

    def signature_input(self) -> bytes:
        """Return what the device key signs."""
        return labelled(Label.APPLICATION, self.encode()[: -signing.SIGNATURE_LENGTH])

    def digest(self) -> bytes:
        """Return the SHA-256 that the answer is bound to."""
        return hashlib.sha256(self.encode()).digest()


@dataclass(frozen=True, slots=True)
class Issuance(Wire):
    """Certificates for the keys applied for, in order, and the numbers, HPKE-sealed to the TEE; signed by the issuer."""

    certificates: tuple[CredentialCertificate, ...]
    sealed_numbers: bytes
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "certificates" / PrefixedArray(Byte, Nested(CredentialCertificate)),
        "signature" / Bytes(signing.SIGNATURE_LENGTH),
        "sealed_numbers" / GreedyBytes,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "certificates", tuple(self.certificates))

    def signature_input(self, application: bytes) -> bytes:
        """Return what the issuer signs; `application` is the digest of the request."""
        certificates = b"".join(certificate.encode() for certificate in self.certificates)
        return labelled(Label.ISSUANCE, application, hashlib.sha256(certificates).digest(), self.sealed_numbers)


@dataclass(frozen=True, slots=True)
class IssuedNumbers(Wire):
    """The plaintext of Issuance.sealed_numbers."""

    numbers: tuple[CardNumber, ...]

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("numbers" / PrefixedArray(Byte, CardNumberField()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", tuple(self.numbers))

    @staticmethod
    def info(application: bytes) -> bytes:
        """Return the HPKE info; `application` is the digest of the request."""
        return labelled(Label.ISSUED_NUMBERS, application)


@dataclass(frozen=True, slots=True)
class TerminalApplication(Wire):
    """A terminal asks the acquirer for its certificate and proves that it holds the key."""

    public_key: bytes
    terminal_id: str
    merchant: Merchant
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "public_key" / Bytes(signing.POINT_LENGTH),
        "terminal_id" / Prefixed(Byte, PrintableText(TERMINAL_ID_LENGTH)),
        "merchant" / Nested(Merchant),
        "signature" / Bytes(signing.SIGNATURE_LENGTH),
    )

    def signature_input(self) -> bytes:
        """Return what the terminal signs."""
        return labelled(Label.TERMINAL_APPLICATION, self.encode()[: -signing.SIGNATURE_LENGTH])


@dataclass(frozen=True, slots=True)
class TerminalIssuance(Wire):
    """The acquirer's certificate for a terminal."""

    certificate: TerminalCertificate

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("certificate" / Nested(TerminalCertificate))


@dataclass(frozen=True, slots=True)
class BlockListRequest(Wire):
    """Ask for the newest list of what is blocked."""

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields()


@dataclass(frozen=True, slots=True)
class BlockList(Wire):
    """What is blocked: serials of terminal certificates, card numbers; with the issuer's time in seconds since 1970."""

    time: int
    terminals: tuple[bytes, ...]
    numbers: tuple[CardNumber, ...]
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "time" / Int64ub,
        "terminals" / PrefixedArray(Int32ub, Bytes(8)),
        "numbers" / PrefixedArray(Int32ub, CardNumberField()),
        "signature" / Bytes(signing.SIGNATURE_LENGTH),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "terminals", tuple(self.terminals))
        object.__setattr__(self, "numbers", tuple(self.numbers))

    def signature_input(self) -> bytes:
        """Return what the issuer signs."""
        return labelled(Label.BLOCK_LIST, self.encode()[: -signing.SIGNATURE_LENGTH])


@dataclass(frozen=True, slots=True)
class UnblockRequest(Wire):
    """A wallet asks for its PIN to be unblocked; `challenge` is the TEE's, so that an answer is good once."""

    device: bytes
    challenge: bytes
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "device" / Bytes(DEVICE_ID_LENGTH),
        "challenge" / Bytes(NONCE_LENGTH),
        "signature" / Bytes(signing.SIGNATURE_LENGTH),
    )

    def signature_input(self) -> bytes:
        """Return what the device key signs."""
        return labelled(Label.UNBLOCK, b"?", self.encode()[: -signing.SIGNATURE_LENGTH])


@dataclass(frozen=True, slots=True)
class Unblocking(Wire):
    """The issuer lets a PIN have its tries back, since its operator said so."""

    device: bytes
    challenge: bytes
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = UnblockRequest.LAYOUT

    def signature_input(self) -> bytes:
        """Return what the issuer signs."""
        return labelled(Label.UNBLOCK, b"!", self.encode()[: -signing.SIGNATURE_LENGTH])


@dataclass(frozen=True, slots=True)
class Refusal(Wire):
    """The issuer does not do it, and why."""

    reason: RefusalReason

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("reason" / Coded(RefusalReason, Byte))


_KINDS: dict[int, type[Wire]] = {
    0x01: AnchorsRequest,
    0x81: Anchors,
    0x02: Application,
    0x82: Issuance,
    0x03: LoadRequest,
    0x83: Voucher,
    0x04: TerminalApplication,
    0x84: TerminalIssuance,
    0x05: BlockListRequest,
    0x85: BlockList,
    0x06: NonceRequest,
    0x86: IssuerNonce,
    0x07: Statement,
    0x87: Settlement,
    0x08: TerminalReport,
    0x88: ReportAnswer,
    0x09: UnblockRequest,
    0x89: Unblocking,
    0xFF: Refusal,
}
_KIND_OF = {kind: code for code, kind in _KINDS.items()}


def encode_message(message: Wire) -> bytes:
    """Return kind ‖ body."""
    return bytes([_KIND_OF[type(message)]]) + message.encode()


def expect(data: bytes, kind: type[AnyWire]) -> AnyWire:
    """Return the answer in `data`, which should be a `kind`; IssuerRefusedError when the issuer refused."""
    message = decode_message(data)
    if isinstance(message, Refusal):
        raise IssuerRefusedError(message.reason)
    if not isinstance(message, kind):
        raise DecodeError("IssuerMessage", "kind", "an answer to something else")
    return message


def decode_message(data: bytes) -> Wire:
    """Return the message; DecodeError when its kind is unknown or its body malformed."""
    if not data or data[0] not in _KINDS:
        raise DecodeError("IssuerMessage", "kind", "unknown")
    return _KINDS[data[0]].decode(data[1:])
