# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What an exchange would take on the air: ISO 14443-3 and -4, type A, both directions at one bit rate.

The model has no processing time in it: what it gives is the least that a radio needs for these bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CARRIER_HZ = 13_560_000
BIT_RATES = (106, 212, 424, 848)
_ETU_SECONDS = 128 / CARRIER_HZ  # at 106 kbit/s, ISO 14443-3 §6.1.1
_FDT_TO_CARD = 1172 / CARRIER_HZ  # least time from a terminal's frame to the card's, ISO 14443-3 §6.2.1.1
_FDT_TO_TERMINAL = 6780 / CARRIER_HZ  # least time that EMV Contactless Book D grants a card before the next frame
_BLOCK_OVERHEAD = 3  # PCB and CRC_A, ISO 14443-4 §7.1
_SHORT_FRAME_ETU = 9 + 2  # WUPA: seven bits, start and end of frame

# Frames of an activation, in bytes: anticollision, SELECT and RATS; ATQA, UID with check byte, SAK and our ATS.
_ACTIVATION_TERMINAL = (2, 9, 4)
_ACTIVATION_CARD = (2, 5, 3, 12)


@dataclass(frozen=True, slots=True)
class AirTime:
    """Frames and milliseconds of some APDUs."""

    frames: int
    milliseconds: float


def activation_ms() -> float:
    """Return the milliseconds from WUPA to the end of ATS; always at 106 kbit/s."""
    etu = _SHORT_FRAME_ETU
    etu += sum(_terminal_etu(size) for size in _ACTIVATION_TERMINAL)
    etu += sum(_card_etu(size) for size in _ACTIVATION_CARD)
    turns = len(_ACTIVATION_CARD)
    return 1000 * (etu * _ETU_SECONDS + turns * (_FDT_TO_CARD + _FDT_TO_TERMINAL))


def air_time(lengths: Iterable[tuple[int, int]], kbit: int = 106, frame: int = 256) -> AirTime:
    """Return what exchanges of (command length, answer length) take after an activation.

    `kbit` is one of BIT_RATES, `frame` the largest frame in bytes (FSD = FSC).
    """
    if kbit not in BIT_RATES:
        raise ValueError(f"{kbit} kbit/s is no ISO 14443 bit rate")
    if frame <= _BLOCK_OVERHEAD:
        raise ValueError(f"a frame of {frame} bytes carries nothing")
    frames, seconds = 0, 0.0
    etu = _ETU_SECONDS * 106 / kbit
    for command, answer in lengths:
        from_terminal = [*_blocks(command, frame), *[_BLOCK_OVERHEAD] * (len(_blocks(answer, frame)) - 1)]
        from_card = [*[_BLOCK_OVERHEAD] * (len(_blocks(command, frame)) - 1), *_blocks(answer, frame)]
        frames += len(from_terminal) + len(from_card)
        seconds += etu * (sum(map(_terminal_etu, from_terminal)) + sum(map(_card_etu, from_card)))
        seconds += len(from_card) * (_FDT_TO_CARD + _FDT_TO_TERMINAL)
    return AirTime(frames, 1000 * seconds)


def _blocks(length: int, frame: int) -> list[int]:
    """Frame sizes of the I-blocks that carry an APDU of `length` bytes."""
    room = frame - _BLOCK_OVERHEAD
    full, rest = divmod(length, room)
    return [frame] * full + ([rest + _BLOCK_OVERHEAD] if rest or not full else [])


def _card_etu(size: int) -> int:
    return 1 + 9 * size


def _terminal_etu(size: int) -> int:
    return 1 + 9 * size + 2
