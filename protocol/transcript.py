# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What was said since the tap began, and the two digests of it that signatures and keys are bound to.

A record is direction (01 command, 02 answer) ‖ 4-byte length ‖ content. A command's content is its header with the chaining
bit cleared ‖ data, without lengths; an answer's is data ‖ SW. Command chaining and GET RESPONSE are undone before.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from protocol.apdu import MAX_DATA, Command, Response
from protocol.errors import DecodeError
from protocol.signing import SIGNATURE_LENGTH
from protocol.status import StatusWord

FROM_TERMINAL = 1
FROM_CARD = 2
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Record:
    """One APDU of the tap."""

    direction: int
    content: bytes

    def encode(self) -> bytes:
        """Return direction ‖ length ‖ content."""
        return bytes([self.direction]) + len(self.content).to_bytes(_LENGTH_BYTES, "big") + self.content

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
    records = _records(prefix)
    wanted = [FROM_TERMINAL, FROM_CARD] * (len(records) // 2)
    if [record.direction for record in records] != wanted:
        raise DecodeError("Transcript", "direction", "commands and answers do not alternate")
    return [
        (_command(sent.content), Response(received.content[:-2], _status(received.content)))
        for sent, received in zip(records[::2], records[1::2], strict=True)
    ]


def _records(prefix: bytes) -> list[Record]:
    records: list[Record] = []
    position = 0
    while position < len(prefix):
        start = position + 1 + _LENGTH_BYTES
        end = start + int.from_bytes(prefix[position + 1 : start], "big")
        if start > len(prefix) or end > len(prefix):
            raise DecodeError("Transcript", f"record {len(records)}", "too short")
        records.append(Record(prefix[position], prefix[start:end]))
        position = end
    return records


def _command(content: bytes) -> Command:
    if not 4 <= len(content) <= 4 + MAX_DATA:
        raise DecodeError("Transcript", "command", "of a length that no command has")
    cla, ins, p1, p2 = content[:4]
    return Command(cla, ins, p1, p2, content[4:])


def _status(content: bytes) -> StatusWord:
    if len(content) < 2:
        raise DecodeError("Transcript", "answer", "too short")
    return StatusWord(int.from_bytes(content[-2:], "big"))
