# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Virtual card numbers: sixteen digits, a range that belongs to nobody, a check digit, and never shown whole (N2)."""

from __future__ import annotations

import logging
import pprint
import traceback
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.card_number import PREFIX, CardNumber, luhn_digit
from protocol.errors import DecodeError
from protocol.messages import CardPlaintext
from protocol.secret import Secret

_INDEXES = st.integers(0, 10**9 - 1)
_NUMBER = CardNumber.from_index(123456789)
_MIDDLE = _NUMBER.digits[6:12]


@dataclass(frozen=True)
class _Holder:
    number: CardNumber


def test_number_is_prefix_index_and_check_digit() -> None:
    assert _NUMBER.digits == "9999101234567899"
    assert CardNumber.from_index(0).digits == "9999100000000002"


@pytest.mark.parametrize(("body", "digit"), [("7992739871", "3"), ("0", "0"), ("1", "8"), ("9", "1"), ("18", "2")])
def test_check_digit_by_hand(body: str, digit: str) -> None:
    assert luhn_digit(body) == digit


@given(_INDEXES)
def test_every_index_is_a_number_of_the_range(index: int) -> None:
    number = CardNumber.from_index(index)
    assert number == CardNumber(number.digits)
    assert number.digits.startswith(PREFIX)
    assert len(number.digits) == 16
    assert int(number.digits[6:15]) == index


@given(_INDEXES, _INDEXES)
def test_two_indexes_are_two_numbers(first: int, second: int) -> None:
    assert (CardNumber.from_index(first) == CardNumber.from_index(second)) is (first == second)


@given(_INDEXES, st.integers(6, 15), st.integers(1, 9))
def test_one_wrong_digit_is_found(index: int, position: int, change: int) -> None:
    digits = CardNumber.from_index(index).digits
    wrong = digits[:position] + str((int(digits[position]) + change) % 10) + digits[position + 1 :]
    with pytest.raises(ValueError, match="check digit"):
        CardNumber(wrong)


@given(_INDEXES, st.integers(6, 14))
def test_neighbours_exchanged_are_found_except_0_and_9(index: int, position: int) -> None:
    digits = CardNumber.from_index(index).digits
    first, second = digits[position], digits[position + 1]
    swapped = digits[:position] + second + first + digits[position + 2 :]
    if first != second and {first, second} != {"0", "9"}:
        with pytest.raises(ValueError, match="check digit"):
            CardNumber(swapped)


@pytest.mark.parametrize(
    "digits",
    [
        "",
        "999910123456789",
        "99991012345678990",
        "9999 1012 3456 7899",
        "-999910123456789",
        "999910123456789x",
        "９９９９１０１２３４５６７８９９",
        "9999101234567899\n",
    ],
)
def test_number_has_sixteen_ascii_digits(digits: str) -> None:
    with pytest.raises(ValueError, match="sixteen digits"):
        CardNumber(digits)


@pytest.mark.parametrize("prefix", ["999911", "999909", "099910", "990910"])
def test_number_outside_the_range_is_refused(prefix: str) -> None:
    body = prefix + "123456789"
    with pytest.raises(ValueError, match="range"):
        CardNumber(body + luhn_digit(body))


@pytest.mark.parametrize("index", [-1, 10**9])
def test_index_outside_the_range_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="range"):
        CardNumber.from_index(index)


def test_masked_number_has_first_six_and_last_four() -> None:
    assert _NUMBER.masked == "999910••••••7899"
    assert str(_NUMBER) == _NUMBER.masked
    assert repr(_NUMBER) == "CardNumber(999910••••••7899)"


@pytest.mark.parametrize(
    "shown",
    [
        str(_NUMBER),
        repr(_NUMBER),
        format(_NUMBER),
        f"{_NUMBER}",
        f"{_NUMBER!r} {_NUMBER!s} {_NUMBER!a}",
        "%s %r" % (_NUMBER, _NUMBER),  # noqa: UP031 - this way of showing it is tested too
        "{} {!r}".format(_NUMBER, _NUMBER),  # noqa: UP032
        str([_NUMBER]),
        str({_NUMBER: _NUMBER}),
        str(_Holder(_NUMBER)),
        pprint.pformat(_Holder(_NUMBER)),
        repr(CardPlaintext(_NUMBER, 978, 1, Secret(bytes(16)), bytes(16))),
    ],
)
def test_middle_digits_are_never_shown(shown: str) -> None:  # N2
    assert _MIDDLE not in shown
    assert _NUMBER.digits not in shown
    assert "••••••" in shown or "\\u2022" in shown


def test_middle_digits_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("taplab.test").debug("card %s of %r", _NUMBER, _Holder(_NUMBER))
    assert "999910" in caplog.text
    assert _MIDDLE not in caplog.text


def test_wrong_number_is_not_quoted_in_the_error() -> None:
    wrong = _NUMBER.digits[:-1] + "0"
    with pytest.raises(ValueError, match="check digit") as caught:
        CardNumber(wrong)
    assert _MIDDLE not in str(caught.value)


def test_wrong_number_on_the_wire_is_not_quoted_in_the_error() -> None:
    wrong = bytes.fromhex(_NUMBER.digits[:-1] + "0") + bytes.fromhex("09780001") + bytes(32)
    with pytest.raises(DecodeError) as caught:
        CardPlaintext.decode(wrong)
    assert _MIDDLE not in "".join(traceback.format_exception(caught.value))
