# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""How an input is cut into what a conversation needs, and what is said of a refusal."""

from __future__ import annotations

import re
from collections.abc import Iterator

from protocol.errors import TapLabError


def chunks(data: bytes) -> Iterator[bytes]:
    """Yield what `join` joined; what is cut off is shorter than it says."""
    position = 0
    while position < len(data):
        length, position = data[position], position + 1
        if length == 0xFF:
            length, position = int.from_bytes(data[position : position + 2], "big"), position + 2
        yield data[position : position + length]
        position += length


def join(*parts: bytes) -> bytes:
    """Return length ‖ bytes of each part; 255 stands before a length of two bytes."""
    return b"".join(_length(len(part)) + part for part in parts)


def _length(length: int) -> bytes:
    return bytes([length]) if length < 0xFF else b"\xff" + length.to_bytes(2, "big")


def refused(error: TapLabError) -> str:
    """Return why, without the numbers, so that outcomes are few."""
    return re.sub(r"[0-9]+", "#", str(error))
