# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What every link is. The terminal's end moves one APDU at a time; the card's end drives a card.

Chaining, tracing and fault injection are wrappers around these, so a new link only moves bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from protocol.apdu import MAX_DATA
from protocol.closing import Closing
from protocol.errors import DecodeError

NO_CARD_TIMEOUT = 30.0
ANSWER_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class ContactlessCard:
    """What only a radio tells of a card: ISO 14443-3 UID, ATQA and SAK, the ATS as it came."""

    uid: bytes
    atqa: bytes
    sak: int
    ats: bytes
    technology: str


@dataclass(frozen=True, slots=True)
class Activation:
    """What the terminal learns when a card comes into its field: the ATR (for a contactless card as PC/SC part 3 makes it)."""

    atr: bytes
    card: ContactlessCard | None = None

    @property
    def historical(self) -> bytes:
        """The historical bytes, ISO 7816-4 §12.1.1; DecodeError when the ATR is too short for what it announces."""
        return historical_bytes(self.atr)

    @property
    def takes_extended_length(self) -> bool:
        """Whether the card states extended Lc and Le (third table of the card capabilities, ISO 7816-4 §12.1.1.10)."""
        capabilities = _capabilities(self.historical)
        return len(capabilities) == 3 and bool(capabilities[2] & 0x40)


class CardLink(Closing):
    """The terminal's end of a link."""

    @property
    def max_data(self) -> int:
        """The most bytes of data that the link carries in one command; longer ones are chained."""
        return MAX_DATA

    @abstractmethod
    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        """Wait up to `timeout` seconds for a card and reset it: a tap begins.

        Raises CardSilentError when none comes, LinkUnavailableError when the link itself cannot be used.
        """

    @abstractmethod
    def transceive(self, apdu: bytes) -> bytes:
        """Send one command APDU and return the answer; CardRemovedError or CardSilentError when there is none."""

    def interrupt(self) -> None:
        """Let a command that another thread waits for fail now; a link that cannot do so ends it when its time is over."""

    @abstractmethod
    def deactivate(self) -> None:
        """End the tap: the field goes off. Does nothing when no card is active."""

    @abstractmethod
    def close(self) -> None:
        """Give the link back; it cannot be used any more."""


class CardHandler(Protocol):
    """A card as the card's end of a link drives it. None of these may raise."""

    def activate(self) -> None:
        """The field is on: a tap begins."""

    def process(self, apdu: bytes) -> bytes:
        """Answer one command APDU, whatever its bytes are."""

    def deactivate(self) -> None:
        """The field is off or the link is gone."""


class CardPort(ABC):
    """The card's end of a link."""

    @abstractmethod
    def serve(self, card: CardHandler) -> None:
        """Let `card` answer until `close` is called, tap after tap."""

    @abstractmethod
    def close(self) -> None:
        """Stop serving; may be called from another thread or a signal handler."""


def contactless_atr(historical: bytes) -> bytes:
    """Return the ATR that a PC/SC reader reports for an ISO 14443-4 card: PC/SC part 3 §3.1.3.2.3.1."""
    body = bytes([0x80 | len(historical), 0x80, 0x01]) + historical
    check = 0
    for byte in body:
        check ^= byte
    return b"\x3b" + body + bytes([check])


def card_historical(*, extended: bool) -> bytes:
    """Return our historical bytes: compact TLV 73, card capabilities: names, chaining, and `extended` lengths."""
    return bytes([0x80, 0x73, 0xC0, 0x01, 0xC0 if extended else 0x80])


def historical_bytes(atr: bytes) -> bytes:
    """Return the historical bytes of an ATR (ISO 7816-3 §8.2); DecodeError when they are not all there."""
    if len(atr) < 2:
        raise DecodeError("ATR", "T0", "too short")
    position, announced = 1, atr[1]
    while announced & 0xF0:
        position += (announced >> 4).bit_count()
        if not announced & 0x80:
            break
        if position >= len(atr):
            raise DecodeError("ATR", "TD", "too short")
        announced = atr[position]
    historical = atr[position + 1 : position + 1 + (atr[1] & 0x0F)]
    if len(historical) != atr[1] & 0x0F:
        raise DecodeError("ATR", "historical bytes", "too short")
    return historical


def _capabilities(historical: bytes) -> bytes:
    """Find the compact-TLV object 7, card capabilities; empty when the card does not state any."""
    if historical[:1] not in (b"\x80", b"\x00"):
        return b""
    position = 1
    while position < len(historical):
        tag, length = historical[position] >> 4, historical[position] & 0x0F
        if tag == 7:
            return historical[position + 1 : position + 1 + length]
        position += 1 + length
    return b""
