# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Answers to reset, ours and hostile ones."""

from __future__ import annotations

from functools import reduce
from operator import xor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import DecodeError
from protocol.transport.base import Activation, card_historical, contactless_atr, historical_bytes


def test_our_atr_by_hand() -> None:
    assert contactless_atr(card_historical(extended=True)).hex().upper() == "3B8580018073C001C0F6"
    assert contactless_atr(card_historical(extended=False)).hex().upper() == "3B8580018073C00180B6"


@pytest.mark.parametrize("extended", [True, False])
def test_our_atr_states_its_lengths(extended: bool) -> None:
    activation = Activation(contactless_atr(card_historical(extended=extended)))
    assert activation.historical == card_historical(extended=extended)
    assert activation.takes_extended_length is extended


@given(st.binary(max_size=15))
def test_historical_bytes_are_found_again(historical: bytes) -> None:
    atr = contactless_atr(historical)
    assert historical_bytes(atr) == historical
    assert reduce(xor, atr[1:]) == 0


@pytest.mark.parametrize(
    ("atr", "historical"),
    [
        ("3B00", ""),
        ("3B02 1450", "1450"),
        ("3B72 940000 0102", "0102"),  # TA, TB and TC
        ("3BF2 94000081 31 2045 0102 00", "0102"),  # TD1 announces TD2, TD2 announces TA3 and TB3
        ("3B8F 8001 804F0CA000000306030001000000006A", "804F0CA00000030603000100000000"),
    ],
)
def test_historical_bytes_of_other_cards(atr: str, historical: str) -> None:
    assert historical_bytes(bytes.fromhex(atr)).hex().upper() == historical


@pytest.mark.parametrize(
    "atr",
    [
        "",
        "3B",
        "3B80",  # TD1 announced and missing
        "3B8080",  # TD2 announced and missing
        "3BF0",
        "3B05 01020304",  # a historical byte missing
        "3B8F8001",
        "3B" + "80" * 40,  # TD after TD without end
        "3BFF" + "FF" * 10,
    ],
)
def test_hostile_atr_is_a_decode_error(atr: str) -> None:
    activation = Activation(bytes.fromhex(atr))
    with pytest.raises(DecodeError, match="ATR"):
        _ = activation.historical
    with pytest.raises(DecodeError, match="ATR"):
        _ = activation.takes_extended_length


@pytest.mark.parametrize(
    ("historical", "extended"),
    [
        ("80 73 00 00 40", True),
        ("80 31 C0 73 00 00 40", True),  # after another object
        ("00 73 00 00 40 00 9000", True),  # with a status indicator
        ("80 73 00 00 80", False),  # chaining only
        ("80 72 00 40", False),  # two tables only
        ("80 71 40", False),
        ("80 73 00 40", False),  # cut
        ("80 7F", False),
        ("80", False),
        ("", False),
        ("C1 73 00 00 40", False),  # another category: proprietary
        ("80 41", False),  # an object that runs past the end
    ],
)
def test_extended_length_is_taken_only_where_it_is_stated(historical: str, extended: bool) -> None:
    assert Activation(contactless_atr(bytes.fromhex(historical))).takes_extended_length is extended


@given(st.binary(max_size=64))
def test_any_atr_is_read_or_refused(atr: bytes) -> None:
    try:
        stated = Activation(atr).takes_extended_length
    except DecodeError:
        return
    assert stated in (True, False)
