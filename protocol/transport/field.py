# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A contactless field in one process: both halves of ISO 14443-4 in front of a card, frame by frame, without a radio.

Time does not pass in it, so a tap over it takes what the parties take; it is where taps are torn by the thousand.
"""

from __future__ import annotations

import os

from protocol.errors import CardRemovedError, DecodeError, UsageError
from protocol.transport.base import (
    NO_CARD_TIMEOUT,
    Activation,
    CardHandler,
    ContactlessCard,
    card_historical,
    contactless_atr,
)
from protocol.transport.fault import FramedLink, Frames
from protocol.transport.isodep import FRAME_SIZES, MAX_APDU, Ats, CardHalf, Dialogue, ReaderHalf, rats

_ATQA = bytes.fromhex("0400")  # one cascade level, bit-frame anticollision: ISO 14443-3 §6.5.2
_SAK = 0x20  # ISO 14443-4: ISO 14443-3 §6.5.3
_RANDOM_UID_START = 0x08  # a random UID starts so: ISO 14443-3 §6.5.4


class CardFrames:
    """A card as a reader hears it: its half of ISO 14443-4, driven by the reader's frames."""

    def __init__(self, card: CardHandler, ats: Ats) -> None:
        """Put `card` behind a half with this ATS."""
        self._card = card
        self._half = CardHalf(ats)
        self._is_on = False

    def begin(self) -> None:
        """The field is on: a tap begins."""
        self._half.reset()
        self._card.activate()
        self._is_on = True

    def exchange(self, frame: bytes, timeout: float) -> bytes | None:
        """Let the card react to a frame; None where it stays silent."""
        if not self._is_on:
            raise CardRemovedError("the card has left the field")
        reaction = self._half.receive(frame)
        while reaction.deliver is not None:
            reaction = self._half.answer(self._card.process(reaction.deliver))
        if reaction.deselected:
            self.switch_off()
        return reaction.send

    def stay_silent(self, timeout: float) -> None:
        """No time passes here."""

    def switch_off(self) -> None:
        """The field goes, and the card knows."""
        was_on, self._is_on = self._is_on, False
        if was_on:
            self._card.deactivate()


class FieldLink(FramedLink):
    """The terminal's end: a card that lies in the field for good. `frame` is the largest frame that both ends take."""

    def __init__(self, card: CardHandler, *, frame: int = 256, extended: bool = True) -> None:
        """Lay `card` into the field; `extended` is what it states of its lengths."""
        self.frames: Frames = CardFrames(card, Ats(frame=frame, historical=card_historical(extended=extended)))
        self._fsdi = FRAME_SIZES.index(frame)
        self._half: ReaderHalf | None = None

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        """Begin a tap: RATS. CardRemovedError when it is not answered."""
        self.deactivate()
        self.frames.begin()
        answered = self.frames.exchange(rats(self._fsdi), 0)
        if answered is None:
            raise CardRemovedError("the card has left the field")
        try:
            ats = Ats.decode(answered)
        except DecodeError:
            raise CardRemovedError("the card did not answer as one") from None
        self._half = ReaderHalf(ats)
        uid = bytes([_RANDOM_UID_START]) + os.urandom(3)
        card = ContactlessCard(uid, _ATQA, _SAK, answered, "ISO 14443-4 type A")
        return Activation(contactless_atr(ats.historical[:15]), card)

    def transceive(self, apdu: bytes) -> bytes:
        """Send an APDU by blocks and return the answer."""
        half, self._half = self._half, None
        if half is None:
            raise CardRemovedError("no card is active")
        if len(apdu) > MAX_APDU:
            raise UsageError(f"a command of {len(apdu)} bytes is longer than this link can carry")
        answer = self._run(half.exchange(apdu))
        self._half = half  # an exchange that failed ends the tap
        return answer

    def _run(self, dialogue: Dialogue) -> bytes:
        try:
            wanted = next(dialogue)
            while True:
                wanted = dialogue.send(self.frames.exchange(wanted.frame, 0))
        except StopIteration as finished:
            answer: bytes = finished.value
            return answer

    def deactivate(self) -> None:
        """End the tap: the field goes."""
        self._half = None
        self.frames.switch_off()

    def close(self) -> None:
        """End the tap."""
        self.deactivate()
