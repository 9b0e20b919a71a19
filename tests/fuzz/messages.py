# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the parsers of whole messages promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from protocol import describe, tlv
from protocol.apdu import Command
from protocol.errors import DecodeError
from protocol.fci import decode_directory, encode_directory
from protocol.transcript import FROM_CARD, FROM_TERMINAL, Record, exchanges
from protocol.transport.base import Activation
from protocol.transport.isodep import Ats
from protocol.wire import Wire
from tests.fuzz.cutting import chunks, refused

ACCEPTED = "accepted"
Check = Callable[[bytes], str]


def _encode(value: Any) -> bytes:
    encoded: bytes = value.encode()
    return encoded


def strict(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes] = _encode) -> Check:
    """Expect a value that encodes to exactly the input, or DecodeError."""

    def check(data: bytes) -> str:
        try:
            value = decode(data)
        except DecodeError as error:
            return refused(error)
        assert encode(value) == data
        return ACCEPTED

    return check


def wire(kind: type[Wire]) -> Check:
    """Expect the same of a Wire, encoded anew, since a decoded value remembers its bytes; and that it can be shown."""

    def encode(value: Any) -> bytes:
        assert kind.__name__ in repr(value)
        return _encode(replace(value))

    return strict(kind.decode, encode)


def lenient(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes] = _encode) -> Check:
    """Expect DecodeError or a value that decodes to itself again: other people's cards say the same in many ways."""

    def check(data: bytes) -> str:
        try:
            value = decode(data)
        except DecodeError as error:
            return refused(error)
        assert decode(encode(value)) == value
        return ACCEPTED

    return check


def check_command(data: bytes) -> str:
    """Expect of a command that only an extended length which was not needed is written another way."""
    try:
        command = Command.decode(data)
    except DecodeError as error:
        return refused(error)
    encoded = command.encode()
    assert Command.decode(encoded) == command
    assert encoded == data or (len(data) > 6 and data[4] == 0 and len(encoded) < len(data))
    return f"{command.data != b''} {command.ne is None} {command.is_chained}"


def check_tlv(data: bytes) -> str:
    """Expect data objects that join to the input again, each of its tags once where that is asked for."""
    try:
        objects = tlv.parse_list(data)
    except DecodeError as error:
        return refused(error)
    assert b"".join(tlv.encode(tag, value) for tag, value in objects) == data
    try:
        assert tlv.parse(data) == dict(objects)
    except DecodeError:
        assert len(dict(objects)) < len(objects)
    return f"{min(len(objects), 3)}"


def check_directory(data: bytes) -> str:
    """Expect entries in order of priority, and the same ones from the directory that we would make of them."""
    try:
        entries = decode_directory(data)
    except DecodeError as error:
        return refused(error)
    assert list(entries) == sorted(entries, key=lambda entry: entry.priority or 16)
    if all(entry.label.isascii() for entry in entries):
        assert decode_directory(encode_directory(entries)) == entries
    return f"{min(len(entries), 3)}"


def check_transcript(data: bytes) -> str:
    """Expect commands and answers whose records join to the input again."""
    try:
        said = exchanges(data)
    except DecodeError as error:
        return refused(error)
    records = [
        Record(FROM_TERMINAL, command.header + command.data).encode() + Record(FROM_CARD, response.encode()).encode()
        for command, response in said
    ]
    assert b"".join(records) == data
    return f"{min(len(said), 3)}"


def check_ats(data: bytes) -> str:
    """Expect the same ATS from the one that we would make of it, where that fits its length byte."""
    try:
        ats = Ats.decode(data)
    except DecodeError as error:
        return refused(error)
    assert data.endswith(ats.historical)
    if len(ats.historical) <= 0xFF - 5:
        assert Ats.decode(ats.encode()) == ats
    return f"{ats.frame} {ats.fwi} {ats.sfgi}"


def check_atr(data: bytes) -> str:
    """Expect as many historical bytes as T0 announces."""
    activation = Activation(data)
    try:
        historical, extended = activation.historical, activation.takes_extended_length
    except DecodeError as error:
        return refused(error)
    assert historical in data
    assert len(historical) == data[1] & 0x0F
    return f"{extended}"


def check_description(data: bytes) -> str:
    """Expect parts that join to the APDUs again, and lines of text that hold every byte."""
    sent, received, *_ = (*chunks(data), b"", b"")
    try:
        described = describe.parts_of(sent, received)
        title = describe.summary(sent, received)
    except DecodeError as error:
        return refused(error)
    for apdu, parts in zip((sent, received), described, strict=True):
        assert b"".join(part.data for part in parts) == apdu
        shown = [line for line in describe.lines_of(parts) if not line.lstrip().startswith("#")]
        assert bytes.fromhex("".join(shown)) == apdu
    return title.partition(":")[0]
