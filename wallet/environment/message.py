# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Message: the fixed-size trigger that crosses between the worlds. It carries no data, only where the data is.

One seqpacket socket joins the two processes, so a Message arrives whole or not at all; each answer repeats the sequence
number of its request. Payloads lie in shared memory (shared_memory.py). Project-defined, in GlobalPlatform's vocabulary.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum

from protocol.errors import DecodeError

_MAGIC = b"TEEM"
_LAYOUT = struct.Struct(">4sBBHIIII")  # magic, kind, origin, session, sequence, command, result, length
MESSAGE_LENGTH = _LAYOUT.size


class Kind(IntEnum):
    """What a Message asks for, or that it is the answer."""

    OPEN_SESSION = 1
    INVOKE_COMMAND = 2
    CLOSE_SESSION = 3
    ANSWER = 4


_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Message:
    """One trigger. `length` is that of the payload in shared memory; `result` and `origin` matter in answers only."""

    kind: Kind
    sequence: int
    session: int = 0
    command: int = 0
    result: int = 0
    origin: int = 0
    length: int = 0

    def encode(self) -> bytes:
        """Return the 24 bytes of this Message."""
        return _LAYOUT.pack(
            _MAGIC, self.kind, self.origin, self.session, self.sequence, self.command, self.result, self.length
        )

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Return the Message; DecodeError for anything that is none."""
        if len(data) != MESSAGE_LENGTH:
            raise DecodeError("Message", "", "not of the one size that Messages have")
        magic, kind, origin, session, sequence, command, result, length = _LAYOUT.unpack(data)
        if magic != _MAGIC or kind not in _KINDS:
            raise DecodeError("Message", "kind", "unknown")
        return cls(Kind(kind), sequence, session, command, result, origin, length)


def send(descriptor: int, message: Message) -> None:
    """Send one Message; OSError when the other world is gone."""
    os.write(descriptor, message.encode())


def receive(descriptor: int) -> Message | None:
    """Return the next Message, None when the other world has closed; DecodeError for anything that is no Message.

    Plain reads and writes, since the trusted side has no socket calls once it is locked down.
    """
    data = os.read(descriptor, MESSAGE_LENGTH + 1)
    if not data:
        return None
    return Message.decode(data)
