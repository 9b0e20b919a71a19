# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The freshness counter: it only grows, survives a torn write, and believes no number without its MAC."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wallet.tee.freshness import FreshnessCounter

_KEY = bytes(range(32))
_SLOT = 40


@contextmanager
def opened(folder: Path, key: bytes = _KEY) -> Iterator[FreshnessCounter]:
    counter = FreshnessCounter(folder, key)
    try:
        yield counter
    finally:
        for descriptor in counter.descriptors:
            os.close(descriptor)


def value_in(folder: Path, key: bytes = _KEY) -> int:
    with opened(folder, key) as counter:
        return counter.value


@pytest.fixture
def at_five(tmp_path: Path) -> Path:
    """A folder whose counter went from 1 to 5."""
    with opened(tmp_path) as counter:
        for value in range(1, 6):
            counter.advance(value)
    return tmp_path


def test_it_starts_at_zero_and_keeps_what_it_was_set_to(tmp_path: Path, at_five: Path) -> None:
    assert value_in(at_five) == 5
    (tmp_path / "freshness").unlink()
    assert value_in(tmp_path) == 0


@pytest.mark.parametrize("value", [-1, 0, 4, 5])
def test_it_does_not_go_back_or_stand_still(at_five: Path, value: int) -> None:
    with opened(at_five) as counter, pytest.raises(ValueError, match="only grows"):
        counter.advance(value)
    assert value_in(at_five) == 5


def test_it_may_skip_numbers(at_five: Path) -> None:
    for value in (6, 8, 9, 2**63):
        with opened(at_five) as counter:
            counter.advance(value)
        assert value_in(at_five) == value


def test_a_write_torn_at_any_byte_leaves_the_number_before(at_five: Path) -> None:
    file = at_five / "freshness"
    before = file.read_bytes()
    with opened(at_five) as counter:
        counter.advance(6)
    after = file.read_bytes()
    for written in range(_SLOT):
        file.write_bytes(after[:written] + before[written:])  # 6 is even: the first slot
        assert value_in(at_five) == (6 if after[:written] + before[written:] == after else 5)
    file.write_bytes(after)
    assert value_in(at_five) == 6


def test_the_first_write_torn_at_any_byte_is_zero(tmp_path: Path) -> None:
    with opened(tmp_path) as counter:
        counter.advance(1)
    file = tmp_path / "freshness"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert value_in(tmp_path) == 0


def test_a_changed_byte_anywhere_never_makes_the_number_greater(at_five: Path) -> None:
    file = at_five / "freshness"
    good = file.read_bytes()
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1 :])
        assert value_in(at_five) == (4 if at >= _SLOT else 5)


@given(content=st.binary(max_size=3 * _SLOT))
@settings(deadline=None)
def test_no_bytes_that_somebody_made_up_are_believed(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("counter")
    (folder / "freshness").write_bytes(content)
    assert value_in(folder) == 0


def test_another_wallets_counter_is_not_believed(at_five: Path) -> None:
    assert value_in(at_five, bytes(32)) == 0
