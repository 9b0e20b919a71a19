# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What was said since the tap began, and the two digests of it that signatures and keys are bound to.

A record is direction (01 command, 02 answer) ‖ 4-byte length ‖ content. A command's content is its header with the chaining
bit cleared ‖ data, without lengths; an answer's is data ‖ SW. Command chaining and GET RESPONSE are undone before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

from construct import Byte, Construct, GreedyBytes, Int32ub, Prefixed, Struct

from protocol.apdu import Command, Response
from protocol.errors import DecodeError
from protocol.signing import SIGNATURE_LENGTH
from protocol.status import StatusWord
from protocol.wire import Wire

FROM_TERMINAL = 1
FROM_CARD = 2


@dataclass(frozen=True, slots=True)
class Record(Wire):
    """One APDU of the tap."""

    direction: int
    content: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Struct("direction" / Byte, "content" / Prefixed(Int32ub, GreedyBytes))

    @classmethod
    def of_command(cls, command: Command) -> Record:
        """Return the record of a whole (unchained) command."""
        return cls(FROM_TERMINAL, command.unchained_header + command.data)

    @classmethod
    def of_response(cls, response: Response) -> Record:
        """Return the record of a whole answer."""
        return cls(FROM_CARD, response.encode())


@dataclass(frozen=True, slots=True)
class Digests:
    """T1: everything up to the terminal's signature. T2: the signature too. 32 bytes each."""

    t1: bytes
    t2: bytes


def digests(prefix: bytes, get_virtual_card: Command) -> Digests:
    """Return T1 and T2 of a tap: `prefix` is all records before GET VIRTUAL CARD, whose data ends with a signature."""
    if len(get_virtual_card.data) < SIGNATURE_LENGTH:
        raise DecodeError("GetVirtualCard", "signature", "too short")
    unsigned = get_virtual_card.with_data(get_virtual_card.data[:-SIGNATURE_LENGTH])
    return Digests(
        hashlib.sha256(prefix + Record.of_command(unsigned).encode()).digest(),
        hashlib.sha256(prefix + Record.of_command(get_virtual_card).encode()).digest(),
    )


def exchanges(prefix: bytes) -> list[tuple[Command, Response]]:
    """Return the commands and answers of `prefix`; DecodeError unless they alternate and end with an answer."""
    records: list[Record] = []
    rest = prefix
    while rest:
        length = 5 + int.from_bytes(rest[1:5], "big")
        records.append(Record.decode(rest[:length]))
        rest = rest[length:]
    wanted = [FROM_TERMINAL, FROM_CARD] * (len(records) // 2)
    if [record.direction for record in records] != wanted:
        raise DecodeError("Transcript", "direction", "commands and answers do not alternate")
    return [
        (_command(sent.content), Response(received.content[:-2], _status(received.content)))
        for sent, received in zip(records[::2], records[1::2], strict=True)
    ]


def _command(content: bytes) -> Command:
    if len(content) < 4:
        raise DecodeError("Transcript", "command", "too short")
    cla, ins, p1, p2 = content[:4]
    return Command(cla, ins, p1, p2, content[4:])


def _status(content: bytes) -> StatusWord:
    if len(content) < 2:
        raise DecodeError("Transcript", "answer", "too short")
    return StatusWord(int.from_bytes(content[-2:], "big"))
