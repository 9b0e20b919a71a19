# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""One encoding for one value: whatever BER would also allow, padding and repetition are refused (P1)."""

from __future__ import annotations

import pytest
from construct import Byte, Bytes, ConstructError, Struct
from hypothesis import given
from hypothesis import strategies as st

from protocol import tlv
from protocol.errors import DecodeError
from protocol.tags import Tag

_ONE_BYTE_TAGS = [tag for tag in range(0x01, 0xFF) if tag & 0x1F != 0x1F]
_TWO_BYTE_TAGS = [first << 8 | second for first in range(0x1F, 0xFF, 0x20) for second in range(1, 0x80)]
_THREE_BYTE_TAGS = [0x9F8101, 0xDF8102, 0xBFFF7F]
_TAGS = st.sampled_from(_ONE_BYTE_TAGS + _TWO_BYTE_TAGS + _THREE_BYTE_TAGS)
_VALUES = st.one_of(st.binary(max_size=140), st.sampled_from([127, 128, 255, 256]).map(bytes))


@pytest.mark.parametrize(
    ("tag", "value", "encoded"),
    [
        (Tag.DF_NAME, b"", "84 00"),
        (Tag.AMOUNT, bytes.fromhex("000000001250"), "9F02 06 000000001250"),
        (Tag.TRANSACTION_CURRENCY, bytes.fromhex("0978"), "5F2A 02 0978"),
        (Tag.FCI_ISSUER_DISCRETIONARY, b"\x61\x00", "BF0C 02 6100"),
        (0xDF8101, b"\xaa", "DF8101 01 AA"),
        (Tag.DF_NAME, bytes(127), "84 7F" + 127 * "00"),
        (Tag.DF_NAME, bytes(128), "84 8180" + 128 * "00"),
        (Tag.DF_NAME, bytes(255), "84 81FF" + 255 * "00"),
        (Tag.DF_NAME, bytes(256), "84 820100" + 256 * "00"),
        (Tag.DF_NAME, bytes(65535), "84 82FFFF" + 65535 * "00"),
    ],
)
def test_data_object_has_one_encoding(tag: int, value: bytes, encoded: str) -> None:
    assert tlv.encode(tag, value) == bytes.fromhex(encoded)
    assert tlv.parse(bytes.fromhex(encoded)) == {tag: value}


def test_value_beyond_65535_bytes_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="65535"):
        tlv.encode(Tag.DF_NAME, bytes(65536))


_BAD = {
    "tag alone": "84",
    "half a two-byte tag": "9F",
    "half a three-byte tag": "9F81",
    "length missing after two-byte tag": "9F02",
    "length announces more than is there": "84 02 AA",
    "long length cut": "84 81",
    "longer length cut": "84 82 01",
    "indefinite length": "E1 80 84 00 00 00",
    "length 5 in two bytes": "84 81 05 0102030405",
    "length 127 in two bytes": "84 81 7F" + 127 * "00",
    "length 5 in three bytes": "84 82 0005 0102030405",
    "length 255 in three bytes": "84 82 00FF" + 255 * "00",
    "length 5 in four bytes": "84 83 000005 0102030405",
    "length 65536 in four bytes": "84 83 010000" + 65536 * "00",
    "length in 126 bytes": "84 FE" + 126 * "00",
    "reserved length FF": "84 FF",
    "padding 00 before": "00 84 01 AA",
    "padding 00 behind": "84 01 AA 00",
    "padding 00 00 behind": "84 01 AA 0000",
    "padding FF before": "FF 84 01 AA",
    "padding FF behind": "84 01 AA FF",
    "tag with a leading zero": "9F8002 01 AA",
    "tag number zero in two bytes": "9F00 01 AA",
    "tag of four bytes": "9F818101 01 AA",
    "byte left over": "84 01 AA 85",
    "second object cut": "84 01 AA 85 02 01",
}


@pytest.mark.attack("P1")
@pytest.mark.parametrize("encoded", _BAD.values(), ids=_BAD.keys())
def test_other_than_one_strict_encoding_is_refused(encoded: str) -> None:  # P1
    with pytest.raises(DecodeError) as caught:
        tlv.parse(bytes.fromhex(encoded), "FCI")
    assert caught.value.structure == "FCI"


@pytest.mark.attack("P1")
@pytest.mark.parametrize(
    "encoded", ["84 01 AA 84 01 AA", "84 01 AA 84 01 BB", "84 01 AA 85 00 84 00", "9F02 00 5F2A 00 9F02 00"]
)
def test_same_tag_twice_is_refused(encoded: str) -> None:  # P1
    with pytest.raises(DecodeError, match="twice"):
        tlv.parse(bytes.fromhex(encoded))


def test_list_keeps_repeated_tags_in_order() -> None:
    encoded = bytes.fromhex("61 01 AA 61 01 BB")
    assert tlv.parse_list(encoded) == [(0x61, b"\xaa"), (0x61, b"\xbb")]


def test_objects_keep_their_order() -> None:
    assert list(tlv.parse(bytes.fromhex("9A 00 5F2A 00 84 00"))) == [0x9A, 0x5F2A, 0x84]


def test_no_bytes_are_an_empty_template() -> None:
    assert tlv.parse(b"") == {}


def test_template_holds_its_objects_in_order() -> None:
    encoded = tlv.template(Tag.FCI_PROPRIETARY, [(Tag.VERSIONS, b"\1"), (Tag.SUITES, b"\2\1")])
    assert encoded == bytes.fromhex("A5 07 80 01 01 81 02 02 01")


@pytest.mark.attack("P1")
def test_deep_nesting_is_parsed_one_level_at_a_time() -> None:  # P1
    nested = b""
    for _ in range(5000):
        nested = tlv.encode(0xE1, nested)
    assert list(tlv.parse(nested)) == [0xE1]


def test_missing_object_is_named() -> None:
    with pytest.raises(DecodeError, match="9F02") as caught:
        tlv.require({}, Tag.AMOUNT, "Debit")
    assert (caught.value.structure, caught.value.field) == ("Debit", "9F02")


@given(st.dictionaries(_TAGS, _VALUES, max_size=6))
def test_any_template_survives(objects: dict[int, bytes]) -> None:
    encoded = b"".join(tlv.encode(tag, value) for tag, value in objects.items())
    assert tlv.parse(encoded) == objects
    assert list(tlv.parse(encoded)) == list(objects)


@given(st.lists(st.tuples(_TAGS, _VALUES), max_size=6))
def test_any_list_survives(objects: list[tuple[int, bytes]]) -> None:
    encoded = b"".join(tlv.encode(tag, value) for tag, value in objects)
    assert tlv.parse_list(encoded) == objects


@given(st.binary(max_size=40))
def test_any_bytes_are_refused_or_the_one_encoding_of_what_they_hold(data: bytes) -> None:
    try:
        objects = tlv.parse_list(data)
    except DecodeError:
        return
    assert b"".join(tlv.encode(tag, value) for tag, value in objects) == data


_LAYOUT = tlv.tagged(0x7F21, Struct("first" / tlv.tagged(0x93, Bytes(2)), "second" / tlv.tagged(0x95, Byte)))


def test_known_structure_is_built_and_parsed() -> None:
    encoded = bytes.fromhex("7F21 07 93 02 AABB 95 01 05")
    assert _LAYOUT.build({"first": b"\xaa\xbb", "second": 5}) == encoded
    parsed = _LAYOUT.parse(encoded)
    assert (parsed["first"], parsed["second"]) == (b"\xaa\xbb", 5)


@pytest.mark.parametrize(("length", "body"), [("8105", 5), ("820005", 5), ("8200C8", 200), ("83000005", 5)])
def test_known_structure_has_lengths_in_their_shortest_form(length: str, body: int) -> None:  # P1
    layout = tlv.tagged(0x84, Bytes(body))
    with pytest.raises(ConstructError):
        layout.parse(bytes.fromhex("84" + length) + bytes(body))
    assert layout.parse(layout.build(bytes(body))) == bytes(body)


@pytest.mark.attack("P1")
@pytest.mark.parametrize(
    "encoded",
    [
        "7F22 07 93 02 AABB 95 01 05",  # another tag
        "7F21 07 95 01 05 93 02 AABB",  # another order
        "7F21 04 93 02 AABB",  # the last object missing
        "7F21 0B 93 02 AABB 93 02 AABB 95 01 05",  # an object twice
        "7F21 09 93 02 AABB 95 01 05 0000",  # padding within
        "7F21 08 93 03 AABBCC 95 01 05",  # a value too long
        "7F21 06 93 01 AA 95 01 05",  # a value too short
        "7F21 08 93 02 AABB 95 02 0505",  # a byte after the last value
        "7F21 06 93 02 AABB 95 01 05",  # the last byte outside
        "7F21 08 93 02 AABB 95 01 05",  # a byte more announced
        "7F21 8107 93 02 AABB 95 01 05",  # length longer than needed
        "7F21 80 93 02 AABB 95 01 05 0000",  # indefinite length
        "7F21 08 93 8102 AABB 95 01 05",  # inner length longer than needed
    ],
)
def test_known_structure_is_strict(encoded: str) -> None:  # P1
    with pytest.raises(ConstructError):
        _LAYOUT.parse(bytes.fromhex(encoded))
