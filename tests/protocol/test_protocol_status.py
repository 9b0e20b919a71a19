# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Status words print as themselves, unknown ones included, and only 9000 passes."""

from __future__ import annotations

import pytest

from protocol.status import StatusError, StatusWord, raise_for_status


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0x9000, "9000 (ok)"),
        (0x6A82, "6A82 (not found)"),
        (0x6100, "6100 (256 more bytes to fetch)"),
        (0x6105, "6105 (5 more bytes to fetch)"),
        (0x6C00, "6C00 (wrong length, 256 bytes available)"),
        (0x6C10, "6C10 (wrong length, 16 bytes available)"),
        (0x6FFF, "6FFF (unknown)"),
        (0x0000, "0000 (unknown)"),
    ],
)
def test_status_word_prints_value_and_meaning(value: int, text: str) -> None:
    assert str(StatusWord(value)) == text
    assert f"{StatusWord(value)}" == text


def test_every_two_bytes_are_a_status_word() -> None:
    assert all(StatusWord(value) == value for value in range(0x10000))


@pytest.mark.parametrize("value", [-1, 0x10000])
def test_what_is_not_two_bytes_is_no_status_word(value: int) -> None:
    with pytest.raises(ValueError, match=str(value)):
        StatusWord(value)


def test_9000_passes() -> None:
    raise_for_status("SELECT", StatusWord(0x9000))


def test_every_other_status_word_is_raised_and_kept() -> None:
    for value in set(range(0x10000)) - {0x9000}:
        with pytest.raises(StatusError) as caught:
            raise_for_status("SELECT", StatusWord(value))
        assert caught.value.status == value


def test_error_names_command_and_status_word() -> None:
    assert str(StatusError("DEBIT", StatusWord(0x6985))) == "DEBIT was answered 6985 (conditions not satisfied)"
