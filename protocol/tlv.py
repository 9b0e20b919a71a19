# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Strict BER-TLV as EMV uses it: ISO/IEC 8825-1 with minimal, definite lengths; EMV Book 3 Annex B.

Two ways in: `tagged` describes one data object of a known structure, `parse` reads a template whose objects may
come in any order, as in an FCI of somebody else's card.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from construct import (
    ConstError,
    Construct,
    GreedyBytes,
    Prefixed,
    StreamError,
    TerminatedError,
    stream_read,
    stream_write,
)

from protocol.errors import DecodeError
from protocol.layout import Fields

MAX_LENGTH = 0xFFFF

if TYPE_CHECKING:
    IntConstruct = Construct[int, int]
    AnyConstruct = Construct[Any, Any]
else:  # construct's own classes take no type arguments at run time
    IntConstruct = AnyConstruct = Construct


class _Tag(IntConstruct):
    """A tag of one to three bytes as the number that its bytes spell, as in 0x9F02."""

    def _parse(self, stream: Any, context: Any, path: Any) -> int:
        first = stream_read(stream, 1, path)
        tag = first
        if first[0] & 0x1F == 0x1F:
            following = stream_read(stream, 1, path)
            tag += following
            if following[0] & 0x80:
                tag += (third := stream_read(stream, 1, path))
                if third[0] & 0x80:
                    raise StreamError("tag longer than three bytes", path=path)
            if following[0] & 0x7F == 0:
                raise StreamError("tag longer than needed", path=path)
        if first[0] in (0x00, 0xFF):
            raise StreamError("padding where a tag should be", path=path)
        return int.from_bytes(tag, "big")

    def _build(self, obj: int, stream: Any, context: Any, path: Any) -> int:
        data = tag_bytes(obj)
        stream_write(stream, data, len(data), path)
        return obj


class _Length(IntConstruct):
    """A definite length in its shortest form, up to 65,535."""

    def _parse(self, stream: Any, context: Any, path: Any) -> int:
        first = stream_read(stream, 1, path)[0]
        if first < 0x80:
            return int(first)
        if first not in (0x81, 0x82):
            raise StreamError("indefinite or overlong length", path=path)
        length = int.from_bytes(stream_read(stream, first & 0x0F, path), "big")
        if length < (0x80 if first == 0x81 else 0x100):
            raise StreamError("length not in its shortest form", path=path)
        return length

    def _build(self, obj: int, stream: Any, context: Any, path: Any) -> int:
        data = _length_bytes(obj)
        stream_write(stream, data, len(data), path)
        return obj


def _length_bytes(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    if length < 0x100:
        return bytes([0x81, length])
    if length <= MAX_LENGTH:
        return bytes([0x82]) + length.to_bytes(2, "big")
    raise ValueError(f"a data object of {length} bytes is longer than {MAX_LENGTH}")


TAG = _Tag()
LENGTH = _Length()
OBJECT = Fields("tag" / TAG, "value" / Prefixed(LENGTH, GreedyBytes))


def tag_bytes(tag: int) -> bytes:
    """Return the one to three bytes of `tag`."""
    return tag.to_bytes((tag.bit_length() + 7) // 8 or 1, "big")


def encode(tag: int, value: bytes) -> bytes:
    """Return one data object."""
    return tag_bytes(tag) + _length_bytes(len(value)) + value


class _Tagged(AnyConstruct):
    """A data object that must stand here, with one tag, and a value that is `body` and nothing after it."""

    def __init__(self, tag: int, body: Construct[Any, Any]) -> None:
        super().__init__()
        self._tag = tag_bytes(tag)
        self._body = body

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        if stream_read(stream, len(self._tag), path) != self._tag:
            raise ConstError("another tag", path=path)
        length = LENGTH._parse(stream, context, path)
        value = BytesIO(stream_read(stream, length, path))
        parsed = self._body._parsereport(value, context, path)
        if value.read(1):
            raise TerminatedError("bytes after the value", path=path)
        return parsed

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        value = BytesIO()
        built = self._body._build(obj, value, context, path)
        data = self._tag + _length_bytes(value.tell()) + value.getvalue()
        stream_write(stream, data, len(data), path)
        return built


def tagged(tag: int, body: Construct[Any, Any]) -> Construct[Any, Any]:
    """Describe a data object of a known structure: strict by its layout, so order and repetition need no checks."""
    return _Tagged(tag, body)


class _Optional(AnyConstruct):
    """A data object that may stand here; without it the value is empty."""

    def __init__(self, tag: int, body: Construct[Any, Any]) -> None:
        super().__init__()
        self._tag = tag_bytes(tag)
        self._tagged = _Tagged(tag, body)

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        position = stream.tell()
        there = stream.read(len(self._tag)) == self._tag
        stream.seek(position)
        return self._tagged._parse(stream, context, path) if there else b""

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        return self._tagged._build(obj, stream, context, path) if obj else obj


def optional(tag: int, body: Construct[Any, Any]) -> Construct[Any, Any]:
    """Describe a data object of bytes that is left out when they are empty."""
    return _Optional(tag, body)


def parse(data: bytes, structure: str = "TLV") -> dict[int, bytes]:
    """Return the data objects of one template level, in order.

    Twice the same tag, padding, an indefinite or overlong length and bytes left over are DecodeErrors that name
    `structure`; directories, which repeat a tag, use `parse_list`.
    """
    objects = parse_list(data, structure)
    found = dict(objects)
    if len(found) != len(objects):
        raise DecodeError(structure, "", "the same tag twice")
    return found


def parse_list(data: bytes, structure: str = "TLV") -> list[tuple[int, bytes]]:
    """Return (tag, value) of every data object of one template level, repeated tags included."""
    objects: list[tuple[int, bytes]] = []
    stream = BytesIO(data)
    while (position := stream.tell()) < len(data):
        try:
            item = OBJECT.parse_stream(stream)
        except StreamError:
            raise DecodeError(structure, f"offset {position}", "not a BER-TLV data object") from None
        objects.append((item["tag"], item["value"]))
    return objects


def require(objects: dict[int, bytes], tag: int, structure: str) -> bytes:
    """Return the value of `tag`; DecodeError when the template does not hold it."""
    if tag not in objects:
        raise DecodeError(structure, f"{tag:X}", "missing")
    return objects[tag]


def template(tag: int, objects: Iterable[tuple[int, bytes]]) -> bytes:
    """Return a constructed data object that holds `objects` in order."""
    return encode(tag, b"".join(encode(inner, value) for inner, value in objects))
