# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The least that a tap can cost here: the same cryptography, the same synced writes, the same bytes over the same hops.

Three processes, as in a tap, and nothing of the protocol: no parsing, no checks, no state. `scripts/bench` measures it
in the same run as real taps, since machines are noisy and only ratios can be compared.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocol import envelope, signing
from protocol.commands import Ins
from protocol.signing import PrivateKey
from protocol.transport.opening import open_card_end, open_terminal_end

_STOP_SECONDS = 5.0
_PLAINTEXT_BYTES = 44
_TRIGGER_BYTES = 24
_FLOOR_COMMANDS = (Ins.SELECT, Ins.RELAY_CHECK, Ins.GET_VIRTUAL_CARD, Ins.DEBIT, Ins.CONFIRM)
_HOPS = (Ins.SELECT, Ins.GET_VIRTUAL_CARD, Ins.DEBIT, Ins.CONFIRM)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a tap looked like: APDU lengths in order, bytes of a sealed entry and of a journal entry."""

    lengths: tuple[tuple[int, int], ...]
    entry_bytes: int
    journal_bytes: int = 512


class _Work:
    """Keys and files to work with; every operation is done for real on values that nobody keeps."""

    def __init__(self, folder: Path, entry_bytes: int) -> None:
        self._key = PrivateKey.generate()
        self._scalar = self._key.scalar()
        self._tap_key = X25519PrivateKey.generate()
        self._signature = self._key.sign(b"")
        self._sealed = envelope.seal(bytes(_PLAINTEXT_BYTES), self._tap_key.public_key().public_bytes_raw(), b"")
        self._entry = os.urandom(entry_bytes)
        self._file = os.open(folder / f"floor-{os.getpid()}", os.O_CREAT | os.O_RDWR, 0o600)

    def sign(self) -> None:
        PrivateKey.from_scalar(self._scalar).sign(b"message")

    def verify(self) -> None:
        signing.is_valid(self._key.public, self._signature, b"")

    def seal(self) -> None:
        envelope.seal(bytes(_PLAINTEXT_BYTES), self._tap_key.public_key().public_bytes_raw(), b"")

    def unseal(self) -> None:
        envelope.unseal(self._sealed, self._tap_key, b"")

    def append_and_sync(self) -> None:
        os.lseek(self._file, 0, os.SEEK_END)
        os.write(self._file, self._entry)
        os.fdatasync(self._file)

    def overwrite_and_sync(self) -> None:
        os.pwrite(self._file, self._entry[:40], 0)
        os.fdatasync(self._file)


class _TeeHop:
    """The trusted process of the floor, as its client sees it."""

    def __init__(self, folder: Path, entry_bytes: int) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "lab.floor", "tee", str(folder), str(entry_bytes), str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
        theirs.close()

    def call(self, ins: int) -> None:
        self._socket.send(bytes([ins]) + bytes(_TRIGGER_BYTES - 1))
        self._socket.recv(_TRIGGER_BYTES)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(_STOP_SECONDS)


class _FloorCard:
    """Answers by length alone, after the same hop to a trusted process."""

    def __init__(self, tee: _TeeHop, answers: dict[int, int]) -> None:
        self._tee = tee
        self._answers = answers

    def activate(self) -> None:
        """Nothing to reset."""

    def deactivate(self) -> None:
        """Nothing to forget."""

    def process(self, apdu: bytes) -> bytes:
        if apdu[1] in _HOPS:
            self._tee.call(apdu[1])
        return bytes(self._answers[apdu[1]])


def _serve_tee(folder: Path, entry_bytes: int, channel: int) -> None:
    work = _Work(folder, entry_bytes)
    while request := os.read(channel, _TRIGGER_BYTES):
        if request[0] == Ins.GET_VIRTUAL_CARD:
            work.verify()
            work.verify()
            work.seal()
            work.sign()
        elif request[0] == Ins.DEBIT:
            work.sign()
        if request[0] in (Ins.GET_VIRTUAL_CARD, Ins.DEBIT):
            work.append_and_sync()
            work.overwrite_and_sync()
        os.write(channel, request)


def _serve_wallet(folder: Path, link: str, shape: Shape) -> None:
    tee = _TeeHop(folder, shape.entry_bytes)
    answers: dict[int, int] = {ins: answer for ins, (_, answer) in zip(_FLOOR_COMMANDS, shape.lengths, strict=True)}
    port = open_card_end(link)
    with contextlib.suppress(KeyboardInterrupt):
        port.serve(_FloorCard(tee, answers))
    tee.close()


class Floor:
    """The terminal of the floor and its two other processes."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        """Start wallet and trusted process; files go into `folder`."""
        self._shape = shape
        self._work = _Work(folder, shape.journal_bytes)
        link = f"socket:{folder}/floor.sock"
        flat = [str(length) for pair in shape.lengths for length in pair]
        command = [sys.executable, "-m", "lab.floor", "wallet", str(folder), link, str(shape.entry_bytes), *flat]
        self._process = subprocess.Popen(command)
        self._link = open_terminal_end(link)

    def tap(self) -> float:
        """Do what a tap must do at least, and return the seconds."""
        started = time.perf_counter()
        self._link.activate()
        for ins, (length, _) in zip(_FLOOR_COMMANDS, self._shape.lengths, strict=True):
            self._before(ins)
            self._link.transceive(bytes([0x80, ins]) + bytes(length - 2))
            self._after(ins)
        self._link.deactivate()
        return time.perf_counter() - started

    def _before(self, ins: Ins) -> None:
        if ins is Ins.GET_VIRTUAL_CARD:
            self._work.sign()
        elif ins is Ins.DEBIT:
            self._work.append_and_sync()

    def _after(self, ins: Ins) -> None:
        if ins is Ins.GET_VIRTUAL_CARD:
            self._work.verify()
            self._work.verify()
            self._work.unseal()
        elif ins is Ins.DEBIT:
            self._work.verify()
            self._work.append_and_sync()

    def close(self) -> None:
        """End the processes."""
        self._link.close()
        self._process.terminate()
        self._process.wait(_STOP_SECONDS)


def main() -> None:
    """Be one of the floor's processes; lab.bench starts them."""
    role, folder = sys.argv[1], Path(sys.argv[2])
    if role == "tee":
        _serve_tee(folder, int(sys.argv[3]), int(sys.argv[4]))
        return
    numbers = list(map(int, sys.argv[5:]))
    lengths = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    _serve_wallet(folder, sys.argv[3], Shape(lengths, int(sys.argv[4])))


if __name__ == "__main__":
    main()
