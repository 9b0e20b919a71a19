# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Cards in the two slots of the virtual reader, and parties that speak its wire protocol without any code of ours."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Self

from lab.pcscd import PcscService
from protocol.apdu import Command
from protocol.errors import LinkUnavailableError
from protocol.transport import pcsc
from protocol.transport.base import CardHandler, CardPort
from protocol.transport.opening import open_card_end
from tests.echo_card import EchoCard

PATIENCE = 10.0
READERS = ("Virtual PCD 00 00", "Virtual PCD 00 01")
VPCD_URLS = ("vpcd:", "vpcd:127.0.0.1:35964")
VPCD_PORTS = (35963, 35964)
FIRST = f"pcsc:{READERS[0]}"
SECOND = f"pcsc:{READERS[1]}"
_LOOK_AGAIN = 0.01


def wait_until(reached: Callable[[], bool], what: str) -> None:
    """Look until `reached` says yes; the test fails when it never does."""
    deadline = monotonic() + PATIENCE
    while not reached():
        assert monotonic() < deadline, f"{what}: not within {PATIENCE} s"
        sleep(_LOOK_AGAIN)


def atr_of(slot: int) -> bytes:
    """The ATR of the card in a slot as the PC/SC service tells it; empty when there is none."""
    return {state.name: state.atr for state in pcsc.readers()}.get(READERS[slot], b"")


def wait_for_card(slot: int = 0) -> None:
    """Wait until the PC/SC service has noticed the card in a slot."""
    wait_until(lambda: atr_of(slot) != b"", f"a card in slot {slot}")


def wait_for_no_card(slot: int = 0) -> None:
    """Wait until the PC/SC service has noticed that a slot is empty."""
    wait_until(lambda: atr_of(slot) == b"", f"no card in slot {slot}")


class Service:
    """The one PC/SC service of these tests, which tests may stop and start again."""

    def __init__(self) -> None:
        assert not _answers(), "a PC/SC service runs already; stop it: these tests start and stop their own"
        self._process: PcscService | None = None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it has both slots."""
        if self._process is not None:
            return
        self._process = PcscService()
        wait_until(_has_both_slots, "both slots of the virtual reader")

    def stop(self) -> None:
        """End it; what it was joined to finds it gone."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def restart(self) -> None:
        """End it and start it anew."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Let a block run while there is no service."""
        self.stop()
        try:
            yield
        finally:
            self.start()


def _answers() -> bool:
    try:
        pcsc.readers()
    except LinkUnavailableError:
        return False
    return True


def _has_both_slots() -> bool:
    try:
        return {state.name for state in pcsc.readers()} >= set(READERS)
    except LinkUnavailableError:
        return False


class ExchangeableCard:
    """A card that can become another one without leaving the slot, which would take a second each time."""

    def __init__(self, card: CardHandler | None = None) -> None:
        self.card: CardHandler = card or EchoCard()

    def activate(self) -> None:
        self.card.activate()

    def process(self, apdu: bytes) -> bytes:
        return self.card.process(apdu)

    def deactivate(self) -> None:
        self.card.deactivate()


class CardInSlot:
    """The wallet's end of the link in front of one slot, serving a card until it is taken out."""

    def __init__(self, card: CardHandler, slot: int = 0, *, short: bool = False) -> None:
        self.slot = slot
        self.port: CardPort = open_card_end(VPCD_URLS[slot] + ("?short" if short else ""))
        self._thread = threading.Thread(target=self.port.serve, args=(card,), daemon=True)
        self._thread.start()

    def take_out(self) -> None:
        """Close the wallet's end; it must stop serving."""
        self.port.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "close() did not end serve()"

    @property
    def serves(self) -> bool:
        """Whether it is still there for the next terminal."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        try:
            wait_for_card(self.slot)
        except AssertionError:
            self.take_out()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.take_out()
        with contextlib.suppress(LinkUnavailableError):
            wait_for_no_card(self.slot)


class RawCard:
    """A card's end of the virtual-smart-card protocol written by hand, as a card simulator has it."""

    def __init__(self, port: int, atr: bytes, answer: Callable[[bytes], bytes]) -> None:
        self._atr = atr
        self._answer = answer
        self.codes: list[int] = []
        self.apdus: list[bytes] = []
        self._port = port
        self._connection: socket.socket | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._connection is None and not self._closing.wait(_LOOK_AGAIN):
            with contextlib.suppress(ConnectionRefusedError):
                self._connection = socket.create_connection(("127.0.0.1", self._port))
        if self._connection is not None:
            with contextlib.suppress(OSError, EOFError), self._connection:
                self._serve(self._connection)

    def _serve(self, connection: socket.socket) -> None:
        while True:
            message = receive_message(connection)
            if len(message) > 1:
                self.apdus.append(message)
                send_message(connection, self._answer(message))
                continue
            self.codes.append(message[0])
            if message[0] == 4:
                send_message(connection, self._atr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def send_message(connection: socket.socket, message: bytes) -> None:
    """Send length and bytes apart, as the packaged driver does."""
    connection.sendall(len(message).to_bytes(2, "big"))
    connection.sendall(message)


def receive_message(connection: socket.socket) -> bytes:
    """Return the next message; EOFError when the other end has gone."""
    return _exactly(connection, int.from_bytes(_exactly(connection, 2), "big"))


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # or each message takes 44 ms
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


# A card of somebody else's: one master file, one application with files, and nothing that pays.

NDEF_NAME = bytes.fromhex("D2760000850101")
CAPABILITY_FILE = bytes.fromhex("E103")
NDEF_FILE = bytes.fromhex("E104")
FOREIGN_ATR = bytes.fromhex("3B80800101")  # a contactless card without historical bytes, PC/SC part 3
CONTACT_ATR = bytes.fromhex("3B021450")  # T=0, as old chip cards have


class TagCard:
    """An NFC Forum Type 4 tag by the letter of its specification: SELECT, READ BINARY, and refusals."""

    def __init__(self, message: bytes) -> None:
        capability = bytes.fromhex("000F20003B00340406") + NDEF_FILE + bytes.fromhex("04000000")
        self._files = {
            b"\x3f\x00": b"",
            CAPABILITY_FILE: capability[:15],
            NDEF_FILE: len(message).to_bytes(2, "big") + message,
        }
        self._in_application = False
        self._file: bytes | None = None
        self.apdus: list[bytes] = []

    def activate(self) -> None:
        self._in_application, self._file = False, None

    def deactivate(self) -> None:
        self.activate()

    def process(self, apdu: bytes) -> bytes:
        """Answer one APDU."""
        self.apdus.append(apdu)
        command = Command.decode(apdu)
        if (command.cla, command.ins) == (0x00, 0xA4):
            return self._select(command)
        if (command.cla, command.ins) == (0x00, 0xB0):
            return self._read(command)
        return bytes.fromhex("6E00" if command.cla else "6D00")

    def _select(self, command: Command) -> bytes:
        if command.p1 == 0x04:
            self._in_application = command.data == NDEF_NAME
            self._file = None
            return bytes.fromhex("9000" if self._in_application else "6A82")
        if command.data not in self._files or not (self._in_application or command.data == b"\x3f\x00"):
            return bytes.fromhex("6A82")
        self._file = self._files[command.data]
        return bytes.fromhex("9000")

    def _read(self, command: Command) -> bytes:
        offset = command.p1 << 8 | command.p2
        if self._file is None:
            return bytes.fromhex("6986")
        if offset >= len(self._file):
            return bytes.fromhex("6B00")
        return self._file[offset : offset + min(command.ne or 0, 0x3B)] + bytes.fromhex("9000")
