# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The answers to SELECT, ours and those of any other card."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.commands import DEFAULT_NAME
from protocol.errors import DecodeError
from protocol.fci import ApplicationFci, DirectoryEntry, decode_directory, encode_directory

_FCI = bytes.fromhex("6F 12 84 08 F05441504C414201 A5 06 80 01 01 81 01 01")
_OURS = DirectoryEntry(DEFAULT_NAME, "TapLab", 1)
_DIRECTORY = bytes.fromhex(
    "6F 2C 84 0E 325041592E5359532E4444463031 A5 1A BF0C 17 61 15 4F 08 F05441504C414201 50 06 5461704C6162 87 01 01"
)


def test_fci_has_name_versions_and_suites() -> None:
    fci = ApplicationFci(DEFAULT_NAME, (1,), (1,))
    assert fci.encode() == _FCI
    assert ApplicationFci.decode(_FCI) == fci


@given(
    st.binary(min_size=5, max_size=16),
    st.lists(st.integers(0, 255), min_size=1).map(tuple),
    st.lists(st.integers(0, 255), min_size=1).map(tuple),
)
def test_any_offer_survives(name: bytes, versions: tuple[int, ...], suites: tuple[int, ...]) -> None:
    fci = ApplicationFci(name, versions, suites)
    assert ApplicationFci.decode(fci.encode()) == fci


@pytest.mark.parametrize("cut", range(len(_FCI)))
def test_cut_fci_is_refused(cut: int) -> None:
    with pytest.raises(DecodeError):
        ApplicationFci.decode(_FCI[:cut])


@pytest.mark.parametrize(
    "data",
    [
        "6F 0A 84 08 F05441504C414201",  # no proprietary template: another card's application
        "6F 08 A5 06 80 01 01 81 01 01",  # no name
        "6F 0F 84 08 F05441504C414201 A5 03 80 01 01",  # no suites
        "6F 0F 84 08 F05441504C414201 A5 03 81 01 01",  # no versions
        "6F 15 84 08 F05441504C414201 A5 09 80 01 01 80 01 02 81 01 01",  # versions twice
        "84 08 F05441504C414201",
    ],
)
def test_fci_of_another_application_is_refused(data: str) -> None:
    with pytest.raises(DecodeError):
        ApplicationFci.decode(bytes.fromhex(data))


def test_directory_lists_applications_by_name_label_and_priority() -> None:
    assert encode_directory((_OURS,)) == _DIRECTORY
    assert decode_directory(_DIRECTORY) == (_OURS,)


def test_directory_is_read_in_order_of_priority_with_none_last() -> None:
    entries = (
        DirectoryEntry(b"AAAAA", "no priority", 0),
        DirectoryEntry(b"BBBBB", "third", 3),
        DirectoryEntry(b"CCCCC", "first", 1),
    )
    assert [entry.label for entry in decode_directory(encode_directory(entries))] == ["first", "third", "no priority"]


def test_label_and_priority_may_be_missing() -> None:
    assert DirectoryEntry.decode(bytes.fromhex("4F 05 4141414141")) == DirectoryEntry(b"AAAAA", "", 0)


def test_entry_without_a_name_is_refused() -> None:
    with pytest.raises(DecodeError, match="4F"):
        DirectoryEntry.decode(bytes.fromhex("50 01 41"))


@pytest.mark.parametrize("length", [0, 17, 64])
def test_name_that_no_select_can_carry_is_refused(length: int) -> None:
    entry = DirectoryEntry(DEFAULT_NAME[:length].ljust(length, b"A"), "", 1)
    with pytest.raises(DecodeError):
        DirectoryEntry.decode(entry.encode()[2:])


@pytest.mark.parametrize("priority", ["87 00", "87 02 0101"])
def test_priority_is_one_byte(priority: str) -> None:
    with pytest.raises(DecodeError, match="87"):
        DirectoryEntry.decode(bytes.fromhex("4F 05 4141414141" + priority))


@given(st.binary(max_size=80))
def test_any_bytes_are_a_directory_or_refused(data: bytes) -> None:
    try:
        decode_directory(data)
    except DecodeError:
        return


@given(st.integers(0, len(_DIRECTORY) - 1), st.integers(1, 255))
def test_changed_directory_is_read_or_refused(position: int, change: int) -> None:
    changed = bytearray(_DIRECTORY)
    changed[position] ^= change
    try:
        entries = decode_directory(bytes(changed))
    except DecodeError:
        return
    assert all(1 <= len(entry.name) <= 16 for entry in entries)
