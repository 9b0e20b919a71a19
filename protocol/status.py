# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Status words, ISO 7816-4:2020 §5.6, and the one function that turns a bad one into an exception."""

from __future__ import annotations

from enum import IntEnum

from protocol.errors import TapLabError


class StatusWord(IntEnum):
    """The two bytes that end every answer; an unknown value is kept and prints as itself."""

    OK = 0x9000
    SELECTED_FILE_DEACTIVATED = 0x6283
    MEMORY_FAILURE = 0x6581
    WRONG_LENGTH = 0x6700
    SECURITY_STATUS_NOT_SATISFIED = 0x6982
    CONDITIONS_NOT_SATISFIED = 0x6985
    WRONG_DATA = 0x6A80
    NOT_FOUND = 0x6A82
    NOT_ENOUGH_MEMORY = 0x6A84
    WRONG_P1_P2 = 0x6A86
    REFERENCED_DATA_NOT_FOUND = 0x6A88
    ALREADY_EXISTS = 0x6A89
    OFFSET_OUTSIDE = 0x6B00
    INS_NOT_SUPPORTED = 0x6D00
    CLA_NOT_SUPPORTED = 0x6E00
    NO_PRECISE_DIAGNOSIS = 0x6F00
    LAST_COMMAND_OF_CHAIN_EXPECTED = 0x6883
    CHAINING_NOT_SUPPORTED = 0x6884

    @classmethod
    def _missing_(cls, value: object) -> StatusWord | None:
        if not isinstance(value, int) or not 0 <= value <= 0xFFFF:
            return None
        unknown = int.__new__(cls, value)
        unknown._name_ = f"SW_{value:04X}"
        unknown._value_ = value
        return unknown

    def __str__(self) -> str:
        return f"{self.value:04X} ({self.meaning})"

    @property
    def meaning(self) -> str:
        """The status word in words."""
        if self.value >> 8 == 0x61:
            return f"{self.value & 0xFF or 256} more bytes to fetch"
        if self.value >> 8 == 0x6C:
            return f"wrong length, {self.value & 0xFF or 256} bytes available"
        if self.value >> 8 == 0x91:
            return f"ok, and an event of {self.value & 0xFF or 256} bytes to fetch"
        return "unknown" if self.name.startswith("SW_") else self.name.lower().replace("_", " ")


class StatusError(TapLabError):
    """The card answered, with a status word other than 9000."""

    def __init__(self, command: str, status: StatusWord) -> None:
        """Keep the status word, so that a caller can choose by it."""
        super().__init__(f"{command} was answered {status}")
        self.status = status


def raise_for_status(command: str, status: StatusWord) -> None:
    """Raise StatusError unless `status` is 9000; `command` is the name a person reads."""
    if status is not StatusWord.OK:
        raise StatusError(command, status)
