# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A field that can be torn: faults at a chosen byte, frame or time of a tap, under any link.

`KIND@WHERE:N` with KIND tear, drop, delay, duplicate or corrupt, and WHERE frame, byte or time: `tear@frame:7` takes the card
away while the seventh frame is on its way, `corrupt@byte:120` flips a bit of byte 120, `delay@time:20:50` holds the first
frame after 20 ms back for 50 ms. Frames and bytes are counted from 1, in both directions, from the activation on. Over
ISO 14443-4 they are those on the air (blocks without CRC; RATS is the first); on other links each APDU is a frame. A fault
strikes once.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from protocol.errors import CardRemovedError, CardSilentError, UsageError
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink

DEFAULT_DELAY_MS = 10.0
MAX_DELAY_MS = 60_000.0
_FLIP = 0x01


class FaultKind(StrEnum):
    """What happens to a frame: the field goes, it is lost, comes late, comes twice, or comes damaged."""

    TEAR = "tear"
    DROP = "drop"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    CORRUPT = "corrupt"


class Where(StrEnum):
    """What is counted until it happens."""

    FRAME = "frame"
    BYTE = "byte"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `number` counts frames or bytes from 1, or milliseconds; `delay_ms` matters to DELAY only."""

    kind: FaultKind
    where: Where
    number: float
    delay_ms: float = DEFAULT_DELAY_MS

    @staticmethod
    def parse(text: str) -> Fault:
        """Return the fault that `KIND@WHERE:N[:MILLISECONDS]` names; UsageError says what is wrong with it."""
        kind, _, rest = text.partition("@")
        where, _, numbers = rest.partition(":")
        number, colon, delay = numbers.partition(":")
        if kind not in set(FaultKind) or where not in set(Where):
            raise UsageError(f"{text!r} is no fault; write one as tear@frame:7, corrupt@byte:120 or delay@time:20:50")
        if colon and kind != FaultKind.DELAY:
            raise UsageError(f"only a delay has milliseconds of its own, not {text!r}")
        count, wait = _positive(number, text), _positive(delay, text) if colon else DEFAULT_DELAY_MS
        if where != Where.TIME and not (count.is_integer() and count >= 1):
            raise UsageError(f"frames and bytes are counted 1, 2, 3, …, not {text!r}")
        return Fault(FaultKind(kind), Where(where), count, wait)

    def __str__(self) -> str:
        tail = f":{self.delay_ms:g}" if self.kind is FaultKind.DELAY else ""
        return f"{self.kind}@{self.where}:{self.number:g}{tail}"


def _positive(text: str, whole: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise UsageError(f"{whole!r} does not say where: a number belongs after the colon, as in tear@frame:7")
    if float(text) > MAX_DELAY_MS:
        raise UsageError(f"numbers of a fault are at most {MAX_DELAY_MS:g}, not {text}")
    return float(text)


@dataclass(slots=True)
class _Plan:
    """Counts what goes by and says when the fault strikes."""

    fault: Fault
    frames: int = 0
    octets: int = 0
    began: float = 0.0
    is_spent: bool = False

    def begin(self) -> None:
        self.frames = self.octets = 0
        self.began = time.monotonic()

    def strike(self, frame: bytes) -> tuple[FaultKind | None, bytes]:
        """Return what happens to the next frame, and the frame as it is sent: a bit of it flipped for CORRUPT."""
        before = self.octets
        self.frames += 1
        self.octets += len(frame)
        if self.is_spent or not self._is_here(before):
            return None, frame
        self.is_spent = True
        if self.fault.kind is FaultKind.DELAY:
            time.sleep(self.fault.delay_ms / 1000)
        if self.fault.kind is not FaultKind.CORRUPT or not frame:
            return self.fault.kind, frame
        at = int(self.fault.number) - before - 1 if self.fault.where is Where.BYTE else len(frame) // 2
        return self.fault.kind, frame[:at] + bytes([frame[at] ^ _FLIP]) + frame[at + 1 :]

    def _is_here(self, before: int) -> bool:
        if self.fault.where is Where.FRAME:
            return self.frames == self.fault.number
        if self.fault.where is Where.BYTE:
            return before < self.fault.number <= self.octets
        return 1000 * (time.monotonic() - self.began) >= self.fault.number


class FaultyLink(CardLink):
    """Wraps the terminal's end of any link; an APDU is a frame. What is damaged arrives damaged: no CRC guards it here."""

    def __init__(self, link: CardLink, fault: Fault) -> None:
        """Let `fault` strike once on `link`."""
        self._link = link
        self._plan = _Plan(fault)
        self._again: bytes | None = None

    @property
    def has_struck(self) -> bool:
        """Whether the fault has happened."""
        return self._plan.is_spent

    @property
    def max_data(self) -> int:
        """What the link within carries."""
        return self._link.max_data

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        """Begin a tap, and count anew."""
        self._again = None
        activation = self._link.activate(timeout)
        self._plan.begin()
        return activation

    def transceive(self, apdu: bytes) -> bytes:
        """Pass the APDU on and its answer back, unless the fault strikes one of them."""
        kind, apdu = self._plan.strike(apdu)
        self._lose(kind)
        answer = self._link.transceive(apdu)
        if kind is FaultKind.DUPLICATE:
            self._link.transceive(apdu)
        held, self._again = self._again, None
        answer = answer if held is None else held
        kind, answer = self._plan.strike(answer)
        self._lose(kind)
        if kind is FaultKind.DUPLICATE:
            self._again = answer
        return answer

    def _lose(self, kind: FaultKind | None) -> None:
        if kind is FaultKind.TEAR:
            self._link.deactivate()
            raise CardRemovedError("the card has left the field")
        if kind is FaultKind.DROP:
            self._link.deactivate()
            raise CardSilentError("the card did not answer in time")

    def deactivate(self) -> None:
        """End the tap."""
        self._link.deactivate()

    def close(self) -> None:
        """Close the link within."""
        self._link.close()


class Frames(Protocol):
    """What carries ISO 14443-4 frames, CRC aside: a radio, or what stands for one."""

    def begin(self) -> None:
        """A card was found; RATS comes next."""

    def exchange(self, frame: bytes, timeout: float) -> bytes | None:
        """Send a frame and return the one that comes back; None for silence or damage, CardRemovedError without a field."""

    def stay_silent(self, timeout: float) -> None:
        """Let the time of an answer pass that cannot come."""

    def switch_off(self) -> None:
        """The field goes."""


class FramedLink(CardLink):
    """A link over frames, which faults can be put under."""

    frames: Frames


@dataclass(slots=True)
class FaultyFrames:
    """Wraps frames: what is damaged on the air is dropped by the receiver's CRC, so it is silence to the other end."""

    frames: Frames
    fault: Fault
    _plan: _Plan = field(init=False)
    _again: bytes | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._plan = _Plan(self.fault)

    @property
    def has_struck(self) -> bool:
        """Whether the fault has happened."""
        return self._plan.is_spent

    def begin(self) -> None:
        """Count anew."""
        self._again = None
        self._plan.begin()
        self.frames.begin()

    def exchange(self, frame: bytes, timeout: float) -> bytes | None:
        """Exchange frames, unless the fault strikes one of them."""
        kind, _ = self._plan.strike(frame)
        self._tear(kind)
        if kind in (FaultKind.DROP, FaultKind.CORRUPT):
            self.frames.stay_silent(timeout)
            return None
        answer = self.frames.exchange(frame, timeout)
        if kind is FaultKind.DUPLICATE:
            answer = self.frames.exchange(frame, timeout)
        held, self._again = self._again, None
        answer = answer if held is None else held
        if answer is None:
            return None
        kind, _ = self._plan.strike(answer)
        self._tear(kind)
        if kind is FaultKind.DUPLICATE:
            self._again = answer
        return None if kind in (FaultKind.DROP, FaultKind.CORRUPT) else answer

    def _tear(self, kind: FaultKind | None) -> None:
        if kind is FaultKind.TEAR:
            self.frames.switch_off()
            raise CardRemovedError("the card has left the field")

    def stay_silent(self, timeout: float) -> None:
        """Let the time pass."""
        self.frames.stay_silent(timeout)

    def switch_off(self) -> None:
        """The field goes."""
        self.frames.switch_off()


def inject(link: CardLink, fault: Fault) -> CardLink:
    """Return `link` with `fault` in it: under the frames where it has some, around the APDUs elsewhere."""
    if isinstance(link, FramedLink):
        link.frames = FaultyFrames(link.frames, fault)
        return link
    return FaultyLink(link, fault)
