# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The air model against figures worked out by hand from ISO 14443-3 and -4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.transport.air import BIT_RATES, activation_ms, air_time

_ETU_MS = 128 / 13_560  # 9.44 µs
_TURN_MS = (1172 + 6780) / 13_560  # the card waits 86 µs before it answers, the terminal 500 µs
_LENGTHS = st.lists(st.tuples(st.integers(4, 2000), st.integers(2, 2000)), min_size=1, max_size=5)


def _by_hand(etu: int, turns: int, kbit: int = 106) -> float:
    return etu * _ETU_MS * 106 / kbit + turns * _TURN_MS


def test_activation_by_hand() -> None:
    # WUPA 9 + 2; anticollision 2, SELECT 9 and RATS 4 bytes; ATQA 2, UID 5, SAK 3 and ATS 12 bytes.
    terminal = (9 + 2) + (1 + 9 * 2 + 2) + (1 + 9 * 9 + 2) + (1 + 9 * 4 + 2)
    card = (1 + 9 * 2) + (1 + 9 * 5) + (1 + 9 * 3) + (1 + 9 * 12)
    assert activation_ms() == pytest.approx(_by_hand(terminal + card, 4))
    assert activation_ms() == pytest.approx(5.7, abs=0.1)


def test_one_small_exchange_by_hand() -> None:
    # 14 + 3 bytes there: 1 + 9 · 17 + 2 = 156 etu. 22 + 3 bytes back: 1 + 9 · 25 = 226 etu.
    air = air_time([(14, 22)])
    assert air.frames == 2
    assert air.milliseconds == pytest.approx(_by_hand(382, 1))
    assert air.milliseconds == pytest.approx(4.192, abs=0.001)


def test_exchanges_add_up() -> None:
    assert air_time([]).milliseconds == 0
    first, second, both = air_time([(14, 22)]), air_time([(14, 10)]), air_time([(14, 22), (14, 10)])
    assert both.frames == first.frames + second.frames == 4
    assert both.milliseconds == pytest.approx(first.milliseconds + second.milliseconds)


@pytest.mark.parametrize(
    ("command", "answer", "frames", "etu", "turns"),
    [
        (253, 2, 2, (3 + 9 * 256) + (1 + 9 * 5), 1),
        # One byte more: a second block of 4 bytes, and the card's R(ACK) of 3 bytes between them.
        (254, 2, 4, (3 + 9 * 256) + (1 + 9 * 3) + (3 + 9 * 4) + (1 + 9 * 5), 2),
        (506, 2, 4, 2 * (3 + 9 * 256) + (1 + 9 * 3) + (1 + 9 * 5), 2),
        (507, 2, 6, 2 * (3 + 9 * 256) + 2 * (1 + 9 * 3) + (3 + 9 * 4) + (1 + 9 * 5), 3),
        (5, 253, 2, (3 + 9 * 8) + (1 + 9 * 256), 1),
        # The terminal's R(ACK) asks for the second block.
        (5, 254, 4, (3 + 9 * 8) + (1 + 9 * 256) + (3 + 9 * 3) + (1 + 9 * 4), 2),
        (254, 254, 6, (3 + 9 * 256) + (1 + 27) + (3 + 36) + (1 + 9 * 256) + (3 + 27) + (1 + 36), 3),
    ],
)
def test_block_boundary_by_hand(command: int, answer: int, frames: int, etu: int, turns: int) -> None:
    air = air_time([(command, answer)])
    assert air.frames == frames
    assert air.milliseconds == pytest.approx(_by_hand(etu, turns))


def test_smaller_frames_make_more_blocks() -> None:
    assert air_time([(61, 2)], frame=64).frames == 2
    assert air_time([(62, 2)], frame=64).frames == 4


@pytest.mark.parametrize("kbit", BIT_RATES)
def test_only_the_bits_get_faster(kbit: int) -> None:
    assert air_time([(14, 22)], kbit).milliseconds == pytest.approx(_by_hand(382, 1, kbit))


@given(_LENGTHS)
def test_faster_bits_take_less_time_and_the_same_frames(lengths: list[tuple[int, int]]) -> None:
    times = [air_time(lengths, kbit) for kbit in BIT_RATES]
    assert [air.milliseconds for air in times] == sorted((air.milliseconds for air in times), reverse=True)
    assert len({air.milliseconds for air in times}) == len(BIT_RATES)
    assert len({air.frames for air in times}) == 1


@given(_LENGTHS, st.integers(0, 4), st.booleans())
def test_a_byte_more_takes_longer(lengths: list[tuple[int, int]], index: int, sent: bool) -> None:
    command, answer = lengths[index % len(lengths)]
    longer = list(lengths)
    longer[index % len(lengths)] = (command + 1, answer) if sent else (command, answer + 1)
    assert air_time(longer).milliseconds > air_time(lengths).milliseconds
    assert air_time(longer).frames >= air_time(lengths).frames


@pytest.mark.parametrize("kbit", [0, 105, 107, 1696])
def test_other_bit_rate_is_refused(kbit: int) -> None:
    with pytest.raises(ValueError, match="bit rate"):
        air_time([(14, 22)], kbit)
