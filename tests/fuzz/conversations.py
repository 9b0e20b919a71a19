# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the parsers promise that take part in a conversation: each input is what the other side says, piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from pos import probe
from protocol.apdu import MAX_DATA, MAX_NE, Command, Response
from protocol.errors import CardRemovedError, DecodeError, TransportError
from protocol.status import StatusWord
from protocol.transport.base import Activation, CardLink, card_historical
from protocol.transport.chaining import MAX_ANSWER, MAX_FETCHES, CardChaining, TerminalChaining
from protocol.transport.isodep import MAX_APDU, Ats, CardHalf, Dialogue, ReaderHalf, rats
from tests.fuzz.cutting import chunks, refused


def _then_gone(answers: Iterator[bytes]) -> Callable[[bytes], bytes]:
    def transceive(_: bytes) -> bytes:
        for answer in answers:
            return answer
        raise CardRemovedError("the card has left the field")

    return transceive


def check_card_half(data: bytes) -> str:
    """Feed the card's half frames, and answers of the application; an empty frame is one that came damaged."""
    half, delivered = CardHalf(Ats(historical=card_historical(extended=True))), 0
    if data[:1] < b"\x80":
        half.receive(rats())
    for frame in chunks(data[1:]):
        reaction = half.receive(frame or None)
        assert reaction.send is None or 1 <= len(reaction.send) <= 254
        if reaction.deliver is not None:
            delivered += 1
            assert len(reaction.deliver) <= MAX_APDU
        if half.is_computing and (what := len(frame) % 4):
            answer = half.ask_time(1 + len(frame) % 59) if what == 3 else half.answer(bytes(16 * len(frame)))
            assert answer.send is not None
            assert len(answer.send) <= 254
    return f"{min(delivered, 3)} {half.is_active} {half.is_computing}"


def check_reader_half(data: bytes) -> str:
    """Feed the reader's half frames, then silence: an answer or a TransportError, after no more than so many frames."""
    first = int.from_bytes(data[:2], "big")
    frames = list(chunks(data[2:]))
    half = ReaderHalf(Ats(frame=(16, 64, 256)[first % 3]), wait_budget=60)
    left = iter(frames)
    steps = itertools.count()
    try:
        answer = _run(half.exchange(bytes(first % 700)), left, steps)
        assert len(answer) <= MAX_APDU + 256
        outcome = f"{bool(answer)}"
    except TransportError as error:
        outcome = refused(error)
    assert _run(half.deselect(), left, steps) in (b"\xc2", b"")
    assert next(steps) <= len(frames) + 8
    return outcome


def _run(dialogue: Dialogue, frames: Iterator[bytes], steps: Iterator[int]) -> bytes:
    try:
        next(dialogue)
        while True:
            next(steps)
            dialogue.send(next(frames, None) or None)
    except StopIteration as finished:
        answer: bytes = finished.value
        return answer


def check_card_chaining(data: bytes) -> str:
    """Feed the card's chaining commands; the application's answers are as long as P1 and P2 say, up to 4 KiB."""
    seen: list[Command] = []

    def answer(command: Command) -> Response:
        seen.append(command)
        return Response(bytes((command.p1 & 0x0F) << 8 | command.p2), StatusWord.OK)

    chaining = CardChaining(answer)
    last = b""
    for apdu in chunks(data):
        last = chaining.process(apdu)
        assert 2 <= len(last) <= MAX_NE + 2
    assert all(not command.is_chained and len(command.data) <= MAX_DATA for command in seen)
    return f"{min(len(seen), 3)} {last[-2:].hex()}"


def check_terminal_chaining(data: bytes) -> str:
    """Feed the terminal's chaining answers, for ever the same ones if the first bit says so."""
    first = int.from_bytes(data[:2], "big")
    answers = list(chunks(data[2:]))
    asked = itertools.count()
    transceive = _then_gone(itertools.cycle(answers) if first & 0x8000 else iter(answers))

    def counted(apdu: bytes) -> bytes:
        number = next(asked)
        assert number <= 2 * (MAX_FETCHES + 3)
        assert number > 8 or Command.decode(apdu).encode() == apdu
        return transceive(apdu)

    command = Command(0x80, 0x50, 0, 0, bytes(first % 700), MAX_NE)
    try:
        response = TerminalChaining(counted, extended=bool(first & 0x4000), max_data=0xFFFF).exchange(command)
    except (DecodeError, TransportError) as error:
        return refused(error)
    assert len(response.data) <= 2 * MAX_ANSWER
    return f"{bool(response.data)} {response.sw >> 8:02X}"


class _Scripted(CardLink):
    """A card that says what the input says."""

    def __init__(self, data: bytes) -> None:
        said = chunks(data)
        self.atr = next(said, b"")
        self._transceive = _then_gone(said)

    def activate(self, timeout: float = 0.0) -> Activation:
        return Activation(self.atr)

    def transceive(self, apdu: bytes) -> bytes:
        assert Command.decode(apdu).encode() == apdu
        return self._transceive(apdu)

    def deactivate(self) -> None:
        pass

    def close(self) -> None:
        pass


def check_probe(data: bytes) -> str:
    """Expect a finding, or that the card left: the directory, names and NDEF file are as hostile as the card."""
    try:
        finding, _ = probe.probe(_Scripted(data), 0.0)
    except TransportError as error:
        return refused(error)
    assert len(finding.ndef) <= 4096 + MAX_ANSWER
    return f"{len(finding.applications)} {len(finding.directory)} {bool(finding.ndef)} {finding.uid_is_random}"
