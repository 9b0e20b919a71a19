# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Commands and answers: the seven cases of ISO 7816-3 §12.1.3 at every length where one of them ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.apdu import MAX_DATA, MAX_NE, Command, Response
from protocol.commands import (
    DEFAULT_NAME,
    Ins,
    Occurrence,
    get_virtual_card,
    in_channel,
    relay_check,
    select,
)
from protocol.errors import DecodeError
from protocol.messages import GetVirtualCard, RelayCheck
from protocol.status import StatusWord

_HEADER = "80 50 01 02"

# (Nc, Ne, bytes between header and data, bytes after the data), by ISO 7816-3:2006 §12.1.3 and not by our code.
_VECTORS = [
    (0, None, "", ""),
    (0, 1, "", "01"),
    (0, 255, "", "FF"),
    (0, 256, "", "00"),
    (0, 257, "00", "0101"),
    (0, 65535, "00", "FFFF"),
    (0, 65536, "00", "0000"),
    (1, None, "01", ""),
    (1, 1, "01", "01"),
    (1, 255, "01", "FF"),
    (1, 256, "01", "00"),
    (1, 257, "00 0001", "0101"),
    (1, 65535, "00 0001", "FFFF"),
    (1, 65536, "00 0001", "0000"),
    (255, None, "FF", ""),
    (255, 1, "FF", "01"),
    (255, 255, "FF", "FF"),
    (255, 256, "FF", "00"),
    (255, 257, "00 00FF", "0101"),
    (255, 65535, "00 00FF", "FFFF"),
    (255, 65536, "00 00FF", "0000"),
    (256, None, "00 0100", ""),
    (256, 1, "00 0100", "0001"),
    (256, 255, "00 0100", "00FF"),
    (256, 256, "00 0100", "0100"),
    (256, 257, "00 0100", "0101"),
    (256, 65535, "00 0100", "FFFF"),
    (256, 65536, "00 0100", "0000"),
    (65535, None, "00 FFFF", ""),
    (65535, 1, "00 FFFF", "0001"),
    (65535, 255, "00 FFFF", "00FF"),
    (65535, 256, "00 FFFF", "0100"),
    (65535, 257, "00 FFFF", "0101"),
    (65535, 65535, "00 FFFF", "FFFF"),
    (65535, 65536, "00 FFFF", "0000"),
]
every_case = pytest.mark.parametrize(("nc", "ne", "before", "after"), _VECTORS)

_BYTE = st.integers(0, 0xFF)
_COMMANDS = st.builds(
    Command,
    _BYTE,
    _BYTE,
    _BYTE,
    _BYTE,
    st.one_of(st.binary(max_size=300), st.sampled_from([0, 1, 255, 256, 257, MAX_DATA]).map(bytes)),
    st.one_of(st.none(), st.integers(1, 300), st.integers(1, MAX_NE)),
)


def _data(length: int) -> bytes:
    return (bytes(range(1, 252)) * (length // 251 + 1))[:length]


@every_case
def test_command_encodes_to_its_case(nc: int, ne: int | None, before: str, after: str) -> None:
    data = _data(nc)
    expected = bytes.fromhex(_HEADER + before) + data + bytes.fromhex(after)
    assert Command(0x80, 0x50, 0x01, 0x02, data, ne).encode() == expected


@every_case
def test_case_decodes_to_the_command(nc: int, ne: int | None, before: str, after: str) -> None:
    data = _data(nc)
    apdu = bytes.fromhex(_HEADER + before) + data + bytes.fromhex(after)
    assert Command.decode(apdu) == Command(0x80, 0x50, 0x01, 0x02, data, ne)


@pytest.mark.parametrize(
    ("apdu", "command"),
    [
        ("80500102 00 0001 AA", Command(0x80, 0x50, 1, 2, b"\xaa")),
        ("80500102 00 0001 AA 0001", Command(0x80, 0x50, 1, 2, b"\xaa", 1)),
        ("80500102 00 0100", Command(0x80, 0x50, 1, 2, b"", 256)),
    ],
)
def test_extended_form_of_a_short_length_is_understood(apdu: str, command: Command) -> None:
    assert Command.decode(bytes.fromhex(apdu)) == command


@pytest.mark.attack("P2")
@pytest.mark.parametrize(
    "apdu",
    [
        "",
        "80",
        "805001",
        "80500102 02 AA",  # Lc larger than what is there
        "80500102 01 AA 00 00",  # two bytes after short data
        "80500102 00 00",  # half an extended Le
        "80500102 00 0002 AA",  # extended Lc larger than what is there
        "80500102 00 0001 AA 00",  # half an extended Le after data
        "80500102 00 0001 AA 000000",  # three bytes after extended data
        "80500102 00 0000 00",  # Lc 0000 does not exist, and half an Le
        "80500102 00 0000 0010",  # Lc 0000 does not exist
    ],
)
def test_lengths_that_do_not_add_up_are_refused(apdu: str) -> None:  # P2
    with pytest.raises(DecodeError, match="Command"):
        Command.decode(bytes.fromhex(apdu))


@pytest.mark.parametrize("length", [1, 255, 256])
def test_every_cut_of_a_command_with_data_is_refused_or_another_command(length: int) -> None:
    whole = Command(0x80, 0x50, 1, 2, _data(length), 256)
    apdu = whole.encode()
    for cut in range(len(apdu)):
        decoded = _decoded(apdu[:cut])
        assert decoded is None or decoded != whole


def _decoded(apdu: bytes) -> Command | None:
    try:
        return Command.decode(apdu)
    except DecodeError:
        return None


@given(_COMMANDS)
def test_any_command_survives_the_wire(command: Command) -> None:
    assert Command.decode(command.encode()) == command


@given(st.one_of(st.binary(max_size=40), st.binary(min_size=250, max_size=270)))
def test_any_bytes_decode_to_a_command_that_means_the_same_or_are_refused(apdu: bytes) -> None:
    command = _decoded(apdu)
    if command is not None:
        assert apdu.startswith(command.header)
        assert command.data in apdu
        assert len(command.encode()) <= len(apdu)
        assert Command.decode(command.encode()) == command


@given(_BYTE, _BYTE, _BYTE, _BYTE, st.binary(max_size=12))
def test_fifth_byte_zero_starts_an_extended_length_or_is_refused(
    cla: int, ins: int, p1: int, p2: int, rest: bytes
) -> None:
    apdu = bytes([cla, ins, p1, p2, 0]) + rest
    command = _decoded(apdu)
    if command is not None and command.data:
        assert int.from_bytes(rest[:2], "big") == len(command.data)


@pytest.mark.parametrize("header", [(256, 0, 0, 0), (-1, 0, 0, 0), (0, 256, 0, 0), (0, 0, 256, 0), (0, 0, 0, -1)])
def test_header_byte_out_of_range_is_no_command(header: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="a byte each"):
        Command(*header)


@pytest.mark.parametrize("ne", [0, -1, MAX_NE + 1])
def test_ne_out_of_range_is_no_command(ne: int) -> None:
    with pytest.raises(ValueError, match="Ne"):
        Command(0, 0, 0, 0, b"", ne)


def test_data_beyond_65535_bytes_is_no_command() -> None:
    with pytest.raises(ValueError, match="65535"):
        Command(0, 0, 0, 0, bytes(MAX_DATA + 1))


@pytest.mark.parametrize(
    ("nc", "ne", "extended"),
    [(255, 256, False), (255, None, False), (256, None, True), (0, 257, True), (0, 256, False)],
)
def test_extended_length_is_needed_from_256_bytes_of_data_or_257_of_answer(
    nc: int, ne: int | None, extended: bool
) -> None:
    assert Command(0, 0, 0, 0, bytes(nc), ne).needs_extended is extended


def test_chaining_bit_is_cleared_in_what_is_bound() -> None:
    chained = Command(0x90, 0x50, 1, 2)
    assert chained.is_chained
    assert chained.header == bytes.fromhex("90500102")
    assert chained.unchained_header == bytes.fromhex("80500102")
    assert not Command(0x80, 0x50, 1, 2).is_chained


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65535, 65536])
def test_response_is_data_and_status_word(length: int) -> None:
    response = Response(_data(length), StatusWord.OK)
    assert response.encode() == _data(length) + b"\x90\x00"
    assert Response.decode(response.encode()) == response


@pytest.mark.parametrize("length", [0, 1, 65539])
def test_bytes_too_few_or_too_many_are_no_response(length: int) -> None:
    with pytest.raises(DecodeError, match="Response"):
        Response.decode(bytes(length))


@given(st.binary(min_size=2, max_size=300))
def test_any_two_bytes_or_more_are_a_response(apdu: bytes) -> None:
    assert Response.decode(apdu).encode() == apdu


def test_commands_of_the_tap_have_their_headers() -> None:
    challenge = RelayCheck(bytes(range(8)))
    assert select(DEFAULT_NAME).encode() == bytes.fromhex("00A4040008F05441504C41420100")
    assert select(b"2PAY", Occurrence.NEXT).encode() == bytes.fromhex("00A4040204 32504159 00")
    assert Command(0x00, Ins.GET_RESPONSE, 0, 0, b"", 256).encode() == bytes.fromhex("00C0000000")
    assert relay_check(challenge).encode() == bytes.fromhex("8058000008 0001020304050607 00")
    assert in_channel(Ins.DEBIT, b"").header == bytes.fromhex("80520000")
    assert in_channel(Ins.CONFIRM, b"").header == bytes.fromhex("80540000")
    assert in_channel(Ins.CANCEL, b"").header == bytes.fromhex("80560000")


def test_get_virtual_card_carries_version_and_suite_in_p1_p2(terminal_hello: GetVirtualCard) -> None:
    command = get_virtual_card(1, 2, terminal_hello)
    assert command.header == bytes.fromhex("80500102")
    assert command.data == terminal_hello.encode()


@pytest.mark.parametrize("length", [0, 17])
def test_name_to_select_has_1_to_16_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        select(bytes(length))
