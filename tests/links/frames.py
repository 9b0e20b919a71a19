# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Both halves of ISO 14443-4 joined by air that a test may disturb, frame by frame. No link and no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from protocol.transport.base import card_historical
from protocol.transport.isodep import Ats, CardHalf, Dialogue, Reaction, ReaderHalf, Send, rats

ATS = Ats(historical=card_historical(extended=True))
WTX_PCB = 0xF2
STEPS = 5000  # no dialogue here needs as many frames


class Harm(Enum):
    """What can happen to a frame on its way."""

    NONE = "none"
    LOST = "lost"
    DAMAGED = "damaged"
    DOUBLED = "doubled"


Fate = Callable[[int], Harm]
"""Given how many frames were on the air before, in both directions, what happens to this one."""


def data(length: int) -> bytes:
    """Return bytes that tell where in the message they belong."""
    return b"".join(number.to_bytes(4, "big") for number in range(length // 4 + 1))[:length]


def echo(apdu: bytes) -> bytes:
    return apdu + b"\x90\x00"


def run(dialogue: Dialogue, card: Callable[[Send], bytes | None], steps: int = STEPS) -> bytes:
    """Drive the reader's half against `card` and return what the dialogue returns; it may not go on for ever."""
    try:
        wanted = next(dialogue)
        for _ in range(steps):
            wanted = dialogue.send(card(wanted))
    except StopIteration as finished:
        answer: bytes = finished.value
        return answer
    raise AssertionError(f"no end after {steps} frames")


def script(dialogue: Dialogue, rows: list[tuple[str, str | None]]) -> bytes:
    """Drive the reader's half by a table of (frame it must send, frame that comes back or None), all of it used up."""
    left = deque(rows)

    def card(wanted: Send) -> bytes | None:
        expected, back = left.popleft()
        assert wanted.frame.hex(" ") == expected.lower()
        return None if back is None else bytes.fromhex(back)

    try:
        return run(dialogue, card, len(rows) + 1)
    finally:
        assert not left, f"the reader did not say {left[0][0]}"


def active_card(ats: Ats = ATS, fsdi: int = 8) -> CardHalf:
    """Return a card's half after RATS."""
    half = CardHalf(ats)
    assert half.receive(rats(fsdi)).send == ats.encode()
    return half


def swapped(half: CardHalf, frame: str) -> Reaction:
    return half.receive(bytes.fromhex(frame))


@dataclass
class Tap:
    """An active card with an application at one end, a reader at the other, `fate` over every frame between them.

    The application needs `extensions` waiting time extensions for each command. What the card says while the reader
    does not listen waits for it, as on nfcpy's UDP radio: that is harder than a real field.
    """

    fate: Fate = lambda _: Harm.NONE
    application: Callable[[bytes], bytes] = echo
    extensions: int = 0
    ats: Ats = ATS
    fsdi: int = 8
    delivered: list[bytes] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    _inbox: deque[bytes | None] = field(default_factory=deque)
    _open_extensions: int = 0

    def __post_init__(self) -> None:
        self.card = active_card(self.ats, self.fsdi)
        self.reader = ReaderHalf(self.ats)

    def exchange(self, apdu: bytes) -> bytes:
        """Let the reader ask and return the answer it takes."""
        return run(self.reader.exchange(apdu), self._send)

    def _send(self, wanted: Send) -> bytes | None:
        for frame in self._passed(wanted.frame):
            answer = self._react(frame)
            if answer is not None:
                self._inbox += self._passed(answer)
        return self._inbox.popleft() if self._inbox else None

    def _passed(self, frame: bytes) -> list[bytes | None]:
        harm = self.fate(len(self.frames))
        self.frames.append(frame)
        arriving: dict[Harm, list[bytes | None]] = {Harm.LOST: [], Harm.DAMAGED: [None], Harm.DOUBLED: [frame, frame]}
        return arriving.get(harm, [frame])

    def _react(self, frame: bytes | None) -> bytes | None:
        reaction = self.card.receive(frame)
        if reaction.deliver is not None:
            self.delivered.append(reaction.deliver)
            self._open_extensions = self.extensions
            return self._think()
        granted = frame is not None and frame[0] == WTX_PCB and self._open_extensions > 0
        if granted and self.card.is_computing:
            self._open_extensions -= 1
            return self._think()
        return reaction.send

    def _think(self) -> bytes | None:
        if self._open_extensions:
            return self.card.ask_time().send
        return self.card.answer(self.application(self.delivered[-1])).send


def only(position: int, harm: Harm, count: int = 1) -> Fate:
    """Harm the frames from `position` on, `count` of them."""
    return lambda number: harm if position <= number < position + count else Harm.NONE
