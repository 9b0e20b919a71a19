# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""nfcpy's UDP radio on 127.0.0.1: both ends of our link, and parties that speak its datagrams without keeping to anything.

A datagram is the technology, a space and the frame in hexadecimal; `RFOFF` is the end of the field.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.demo import free_udp_port
from protocol.closing import Closing
from protocol.transport.base import CardHandler, CardPort
from protocol.transport.isodep import rats
from protocol.transport.nfc import NfcLink, NfcPort

PATIENCE = 15.0  # seconds until a test gives up waiting for what must happen
_UID = bytes.fromhex("08010203")
_UID_AND_CHECK = _UID + bytes([functools.reduce(operator.xor, _UID)])
_LONGEST_DATAGRAM = 4096


def wait_until_bound(port: int) -> None:
    """Wait until somebody listens at a UDP port of this machine."""
    until = time.monotonic() + PATIENCE
    while f":{port:04X} " not in Path("/proc/net/udp").read_text():
        assert time.monotonic() < until, f"nobody listens at {port}"


class EchoCard:
    """Answers each APDU by a function (an echo by default) and notes what the link does with it."""

    def __init__(self, answer: Callable[[bytes], bytes] = bytes) -> None:
        self._answer = answer
        self.events: list[str | bytes] = []
        self._changed = threading.Condition()

    def activate(self) -> None:
        self._note("on")

    def process(self, apdu: bytes) -> bytes:
        self._note(apdu)
        return self._answer(apdu)

    def deactivate(self) -> None:
        self._note("off")

    def _note(self, event: str | bytes) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, event: str | bytes, times: int = 1) -> None:
        """Wait until the link did this so many times."""
        with self._changed:
            came = self._changed.wait_for(lambda: self.events.count(event) >= times, PATIENCE)
        assert came, f"{event!r} did not come: {self.events}"


class Rig(Closing):
    """Both ends of one link: the terminal's, and the card's ends that are laid to it one after the other."""

    def __init__(self) -> None:
        self.port = free_udp_port()
        self.path = f"udp:127.0.0.1:{self.port}"
        self.url = f"nfc:{self.path}"
        self.link = NfcLink(self.path)
        self._served: list[tuple[CardPort, threading.Thread]] = []

    def lay(self, card: CardHandler) -> None:
        """Let `card` be served until it is taken away."""
        port = NfcPort(self.path)
        thread = threading.Thread(target=port.serve, args=(card,), daemon=True)
        thread.start()
        self._served.append((port, thread))
        wait_until_bound(self.port)

    def take_away(self, *, awake: bool = True) -> None:
        """End the card's end that was laid last; it must stop serving. Kept `awake`, it notices at once."""
        port, thread = self._served.pop()
        port.close()
        if awake:
            with RawReader(self.port) as reader:
                reader.send(b"106A 3000")
        thread.join(PATIENCE)
        assert not thread.is_alive(), "close() did not end serve()"

    def assert_serving(self) -> None:
        assert all(thread.is_alive() for _, thread in self._served), "serve() ended by itself"

    def restart_terminal(self) -> None:
        self.link.close()
        self.link = NfcLink(self.path)

    def tap(self, apdu: bytes) -> bytes:
        """One tap of one command."""
        self.link.activate(PATIENCE)
        answer = self.link.transceive(apdu)
        self.link.deactivate()
        return answer

    def close(self) -> None:
        """End the terminal's end, then the card's."""
        self.link.close()
        while self._served:
            self.take_away()


@contextlib.contextmanager
def raw_card(port: int, answer: Callable[[bytes], bytes | None], *, sens_res: bytes = b"106A 0400") -> Iterator[None]:
    """Be a card without manners: selected as any, then `answer` makes a datagram of each frame, None for silence."""
    usual = {
        b"\x26": sens_res,
        b"\x93\x20": b"106A " + _UID_AND_CHECK.hex().encode(),
        b"\x93\x70" + _UID_AND_CHECK: b"106A 20",
    }
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as radio:
        radio.bind(("127.0.0.1", port))
        with _answering(radio, usual, answer):
            yield


@contextlib.contextmanager
def _answering(
    radio: socket.socket, usual: dict[bytes, bytes], answer: Callable[[bytes], bytes | None]
) -> Iterator[None]:
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            if not select.select([radio], [], [], 0.05)[0]:
                continue
            datagram, sender = radio.recvfrom(_LONGEST_DATAGRAM)
            if not datagram.startswith(b"106A "):
                continue
            frame = bytes.fromhex(datagram[5:].decode())
            back = usual[frame] if frame in usual else answer(frame)
            if back is not None:
                radio.sendto(back, sender)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(PATIENCE)


class RawReader(Closing):
    """A reader without manners: it sends any datagram, and goes without a word."""

    def __init__(self, port: int) -> None:
        self._radio = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._radio.settimeout(1.0)
        self._card = ("127.0.0.1", port)

    def send(self, datagram: bytes) -> None:
        self._radio.sendto(datagram, self._card)

    def ask(self, frame: bytes) -> bytes | None:
        """Send a frame and return the one that comes back, None when none does in a second."""
        self.send(b"106A " + frame.hex().encode())
        try:
            return bytes.fromhex(self._radio.recv(_LONGEST_DATAGRAM).removeprefix(b"106A ").decode())
        except TimeoutError:
            return None

    def activate(self) -> None:
        """Select the card and send RATS, as often as it takes."""
        for _ in range(int(PATIENCE)):
            if self.ask(b"\x26") is None:
                continue
            uid = self.ask(b"\x93\x20")
            if uid is not None and self.ask(b"\x93\x70" + uid) and self.ask(rats()):
                return
        raise AssertionError("no card answers")

    def close(self) -> None:
        """Be gone; nothing is said to the card."""
        self._radio.close()
