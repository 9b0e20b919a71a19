# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Taps torn, and worse, at every byte of every frame, in every manner of a tap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from lab.torture.arena import Arena, charge
from protocol.transport.fault import Fault, FaultKind, Frames, Where, inject
from protocol.transport.field import FieldLink

AGAIN_SECONDS = 5.0
_BYTES, _FRAMES = 900, 24  # of a tap, roughly


@dataclass(frozen=True, slots=True)
class Manner:
    """One manner of a tap: the largest frame, extended lengths or not, the directory first or not."""

    name: str
    frame: int = 256
    extended: bool = True
    directory: bool = False


MANNERS = (
    Manner("by name"),
    Manner("by the directory", directory=True),
    Manner("short lengths", extended=False),
    Manner("frames of 64 bytes", frame=64),
    Manner("frames of 16 bytes", frame=16),
)


class Meter:
    """Frames that are counted as they go by: how long a tap is, before it is torn at each of its bytes."""

    def __init__(self, frames: Frames) -> None:
        """Count what goes to `frames` and comes back."""
        self._inner = frames
        self.frames = self.octets = 0

    def begin(self) -> None:
        """Begin a tap."""
        self._inner.begin()

    def exchange(self, frame: bytes, timeout: float) -> bytes | None:
        """Count a frame, and its answer if there is one."""
        answer = self._inner.exchange(frame, timeout)
        self.frames += 1 + (answer is not None)
        self.octets += len(frame) + len(answer or b"")
        return answer

    def stay_silent(self, timeout: float) -> None:
        """Let time pass."""
        self._inner.stay_silent(timeout)

    def switch_off(self) -> None:
        """End the tap."""
        self._inner.switch_off()


def _length(arena: Arena, manner: Manner) -> tuple[int, int]:
    """Return how many frames and bytes a tap of this manner has."""
    link = _link(arena, manner)
    meter = link.frames = Meter(link.frames)
    arena.case(f"{manner.name}, whole", lambda terminal: charge(terminal, link), kind="")
    return meter.frames, meter.octets


def _link(arena: Arena, manner: Manner) -> FieldLink:
    return arena.link(frame=manner.frame, extended=manner.extended)


def _faults(frames: int, octets: int, stride: int, start: int) -> Iterator[Fault]:
    """Yield a tear at every byte, then every other fault at every frame; with a stride, only every so many of each."""
    for octet in range(1 + start % stride, octets + 1, stride):
        yield Fault(FaultKind.TEAR, Where.BYTE, octet)
    others = [kind for kind in FaultKind if kind is not FaultKind.TEAR]
    for number in range(1 + start % stride, frames * len(others) + 1, stride):
        kind = others[number % len(others)]
        yield Fault(kind, Where.FRAME, 1 + (number - 1) // len(others), delay_ms=1.0)


def tear(arena: Arena, *, stride: int, manners: tuple[Manner, ...] = MANNERS) -> None:
    """Torture taps of each manner; half of the time the shopper presents the card again within the same charge."""
    for manner in manners:
        terminals = _options(manner)
        arena.terminal(**terminals[0])
        frames, octets = _length(arena, manner)
        for again in terminals:
            arena.terminal(**again)
            for fault in _faults(frames, octets, stride, arena.random.randrange(1 << 16)):
                link = inject(_link(arena, manner), fault)
                arena.case(f"{manner.name}, {fault}, {again}", partial(charge, link=link))
        arena.close_books(manner.name)


def _options(manner: Manner) -> list[dict[str, Any]]:
    common = {"use_directory": manner.directory, "short": not manner.extended}
    return [{**common, "again": 0.0}, {**common, "again": AGAIN_SECONDS}]


def count(stride: int) -> int:
    """Return about how many cases `tear` has, for a progress bar."""
    return 2 * len(MANNERS) * (_BYTES + 4 * _FRAMES) // stride
