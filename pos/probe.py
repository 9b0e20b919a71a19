# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What is in the field? Selects and reads what any reader may, and never asks for a payment record."""

from __future__ import annotations

from dataclasses import dataclass

from protocol import tlv
from protocol.apdu import Command, Response
from protocol.commands import DEFAULT_NAME, select
from protocol.errors import DecodeError, ForeignCardError
from protocol.fci import DIRECTORY_NAME, DirectoryEntry, decode_directory
from protocol.status import StatusWord
from protocol.tags import Tag
from protocol.transport.base import Activation, CardLink
from protocol.transport.chaining import TerminalChaining
from protocol.transport.trace import TracingLink

NDEF_NAME = bytes.fromhex("D2760000850101")  # NFC Forum Type 4 Tag §5.4.2
_KNOWN_NAMES = {
    "TapLab wallet": DEFAULT_NAME,
    "NFC Forum Type 4 tag": NDEF_NAME,
    "GlobalPlatform card manager": bytes.fromhex("A000000151000000"),
    "PIV": bytes.fromhex("A000000308"),
    "OpenPGP card": bytes.fromhex("D27600012401"),
    "FIDO": bytes.fromhex("A0000006472F0001"),
    "electronic passport": bytes.fromhex("A0000002471001"),
}
_CAPABILITY_FILE = bytes.fromhex("E103")
_MAX_NDEF = 4096
_READ_SIZE = 0xF0


@dataclass(frozen=True, slots=True)
class Application:
    """An application that answered to a known name: what it is, the name it gives itself, its answer."""

    what: str
    name: bytes
    fci: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """What is in the field. Bytes are as the card sent them; `foreign` says what it is when no APDU can reach it."""

    atr: bytes = b""
    uid: bytes = b""
    atqa: bytes = b""
    sak: int | None = None
    ats: bytes = b""
    extended_length: bool = False
    directory: tuple[DirectoryEntry, ...] = ()
    applications: tuple[Application, ...] = ()
    ndef: bytes = b""
    foreign: str = ""

    @property
    def uid_is_random(self) -> bool | None:
        """Whether the UID changes with each activation (ISO 14443-3 §6.5.4); None when no UID is known."""
        return self.uid[0] == 0x08 and len(self.uid) == 4 if self.uid else None


def probe(link: CardLink, timeout: float) -> tuple[Finding, TracingLink]:
    """Return what is in the field of `link`, and the trace of the asking; CardSilentError when nothing comes."""
    traced = TracingLink(link)
    try:
        activation = traced.activate(timeout)
    except ForeignCardError as error:
        return Finding(foreign=str(error)), traced
    try:
        return _examine(traced, activation), traced
    finally:
        traced.deactivate()


def _examine(link: CardLink, activation: Activation) -> Finding:
    try:
        extended = activation.takes_extended_length
    except DecodeError:
        extended = False
    card = TerminalChaining(link.transceive, extended=extended, max_data=link.max_data)
    applications = tuple(filter(None, (_find(card, what, name) for what, name in _KNOWN_NAMES.items())))
    radio = activation.card
    return Finding(
        atr=activation.atr,
        uid=radio.uid if radio else b"",
        atqa=radio.atqa if radio else b"",
        sak=radio.sak if radio else None,
        ats=radio.ats if radio else b"",
        extended_length=extended,
        directory=_read_directory(card),
        applications=applications,
        ndef=_read_ndef(card) if any(one.name.startswith(NDEF_NAME) for one in applications) else b"",
    )


def _exchange(card: TerminalChaining, command: Command) -> Response:
    try:
        return card.exchange(command)
    except DecodeError:
        return Response(b"", StatusWord.NO_PRECISE_DIAGNOSIS)


def _find(card: TerminalChaining, what: str, name: bytes) -> Application | None:
    response = _exchange(card, select(name))
    if response.sw not in (StatusWord.OK, StatusWord.SELECTED_FILE_DEACTIVATED):
        return None
    return Application(what, _own_name(response.data) or name, response.data)


def _own_name(fci: bytes) -> bytes:
    try:
        return tlv.parse(tlv.parse(fci).get(Tag.FCI_TEMPLATE, b"")).get(Tag.DF_NAME, b"")
    except DecodeError:
        return b""


def _read_directory(card: TerminalChaining) -> tuple[DirectoryEntry, ...]:
    response = _exchange(card, select(DIRECTORY_NAME))
    if response.sw is not StatusWord.OK:
        return ()
    try:
        return decode_directory(response.data)
    except DecodeError:
        return ()


def _read_ndef(card: TerminalChaining) -> bytes:
    """Read the NDEF file that the capability container names: NFC Forum Type 4 Tag §5.4."""
    _exchange(card, select(NDEF_NAME))
    container = _read_file(card, _CAPABILITY_FILE, 0, 15)
    if len(container) < 11:
        return b""
    file = container[9:11]
    head = _read_file(card, file, 0, 2)
    length = min(int.from_bytes(head, "big"), _MAX_NDEF) if len(head) == 2 else 0
    return _read_file(card, file, 2, length)


def _read_file(card: TerminalChaining, file: bytes, offset: int, length: int) -> bytes:
    chosen = _exchange(card, Command(0x00, 0xA4, 0x00, 0x0C, file))
    if chosen.sw is not StatusWord.OK:
        return b""
    data = b""
    while len(data) < length:
        size = min(_READ_SIZE, length - len(data))
        at = offset + len(data)
        piece = _exchange(card, Command(0x00, 0xB0, at >> 8, at & 0xFF, b"", size))
        if piece.sw is not StatusWord.OK or not piece.data:
            break
        data += piece.data
    return data
