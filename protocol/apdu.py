# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Commands and answers, ISO 7816-4:2020 §5.1, in their short and extended forms (ISO 7816-3:2006 §12.1.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from construct import (
    Byte,
    Bytes,
    Const,
    Construct,
    ConstructError,
    GreedyBytes,
    Int16ub,
    Prefixed,
    Terminated,
)

from protocol.errors import DecodeError
from protocol.layout import Fields
from protocol.status import StatusWord

MAX_DATA = 0xFFFF
SHORT_MAX_DATA = 0xFF
SHORT_MAX_NE = 0x100
MAX_NE = 0x10000
CHAINING_BIT = 0x10
_CHAINABLE = (0x00, 0x80)  # classes 00 to 1F and 80 to 9F

_HEADER = ("cla" / Byte, "ins" / Byte, "p1" / Byte, "p2" / Byte)
_ZERO = Const(b"\0")
_CASES: dict[str, Construct[Any, Any]] = {
    "1": Fields(*_HEADER, Terminated),
    "2S": Fields(*_HEADER, "le" / Byte, Terminated),
    "3S": Fields(*_HEADER, "data" / Prefixed(Byte, GreedyBytes), Terminated),
    "4S": Fields(*_HEADER, "data" / Prefixed(Byte, GreedyBytes), "le" / Byte, Terminated),
    "2E": Fields(*_HEADER, _ZERO, "le" / Int16ub, Terminated),
    "3E": Fields(*_HEADER, _ZERO, "data" / Prefixed(Int16ub, GreedyBytes), Terminated),
    "4E": Fields(*_HEADER, _ZERO, "data" / Prefixed(Int16ub, GreedyBytes), "le" / Int16ub, Terminated),
}
_RESPONSE = Fields("data" / Bytes(lambda given: given.length), "sw" / Int16ub, Terminated)


@dataclass(frozen=True, slots=True)
class Command:
    """A command APDU.

    `data` is the command data field of Nc = 0 to 65,535 bytes; `ne` the number of answer bytes expected, 1 to
    65,536, or None when no answer data is expected. ValueError when a number does not fit.
    """

    cla: int
    ins: int
    p1: int
    p2: int
    data: bytes = b""
    ne: int | None = None

    def __post_init__(self) -> None:
        if any(not 0 <= part <= 0xFF for part in (self.cla, self.ins, self.p1, self.p2)):
            raise ValueError("CLA, INS, P1 and P2 are a byte each")
        if len(self.data) > MAX_DATA:
            raise ValueError(f"{len(self.data)} bytes of data, more than {MAX_DATA}")
        if self.ne is not None and not 1 <= self.ne <= MAX_NE:
            raise ValueError(f"Ne {self.ne} is not within 1 to {MAX_NE}")

    @property
    def header(self) -> bytes:
        """CLA INS P1 P2 as four bytes."""
        return bytes((self.cla, self.ins, self.p1, self.p2))

    @property
    def unchained_header(self) -> bytes:
        """The header with the chaining bit cleared: what transcripts and channels are computed over."""
        return bytes((self.cla & ~CHAINING_BIT, self.ins, self.p1, self.p2))

    @property
    def is_chained(self) -> bool:
        """Whether more of this command follows: CLA bit 5 of the first interindustry class (ISO 7816-4 §5.4.1) and of ours."""
        return bool(self.cla & CHAINING_BIT) and self.cla & 0xE0 in _CHAINABLE

    @property
    def needs_extended(self) -> bool:
        """Whether a length does not fit the short form."""
        return len(self.data) > SHORT_MAX_DATA or (self.ne or 0) > SHORT_MAX_NE

    def with_data(self, data: bytes) -> Command:
        """Return the same command with other data."""
        return replace(self, data=data)

    def encode(self) -> bytes:
        """Return the bytes: short where every length fits, else extended."""
        parts = {"cla": self.cla, "ins": self.ins, "p1": self.p1, "p2": self.p2, "data": self.data}
        case = {(False, False): "1", (False, True): "2", (True, False): "3", (True, True): "4"}[
            bool(self.data), self.ne is not None
        ]
        if self.needs_extended:
            return _CASES[case + "E"].build({**parts, "le": (self.ne or 0) & 0xFFFF})
        return _CASES[case if case == "1" else case + "S"].build({**parts, "le": (self.ne or 0) & 0xFF})

    @classmethod
    def decode(cls, apdu: bytes) -> Command:
        """Return the command of `apdu`; DecodeError when its lengths do not add up."""
        case = _case_of(apdu)
        try:
            parsed = _CASES[case].parse(apdu)
        except ConstructError:
            raise DecodeError("Command", "Lc", f"does not fit an APDU of {len(apdu)} bytes") from None
        if case in ("3E", "4E") and not parsed["data"]:
            raise DecodeError("Command", "Lc", "an extended length of 0")
        ne: int | None = None
        if "le" in parsed:
            ne = parsed["le"] or (MAX_NE if case.endswith("E") else SHORT_MAX_NE)
        return cls(parsed["cla"], parsed["ins"], parsed["p1"], parsed["p2"], parsed.get("data", b""), ne)


def _case_of(apdu: bytes) -> str:
    """Tell the case apart by length and fifth byte, ISO 7816-3:2006 §12.1.3."""
    if len(apdu) <= 4:
        return "1"
    if len(apdu) == 5:
        return "2S"
    if apdu[4]:
        return "3S" if len(apdu) == 5 + apdu[4] else "4S"
    if len(apdu) == 7:
        return "2E"
    return "3E" if len(apdu) == 7 + int.from_bytes(apdu[5:7], "big") else "4E"


@dataclass(frozen=True, slots=True)
class Response:
    """A response APDU: data of 0 to 65,536 bytes and a status word."""

    data: bytes
    sw: StatusWord

    def encode(self) -> bytes:
        """Return data ‖ SW."""
        return self.data + self.sw.to_bytes(2, "big")

    @classmethod
    def decode(cls, apdu: bytes) -> Response:
        """Return the answer of `apdu`; DecodeError below two bytes or above 65,538."""
        if not 2 <= len(apdu) <= MAX_NE + 2:
            raise DecodeError("Response", "SW", f"{len(apdu)} bytes are no response APDU")
        parsed = _RESPONSE.parse(apdu, length=len(apdu) - 2)
        return cls(parsed["data"], StatusWord(parsed["sw"]))
