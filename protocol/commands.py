# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The commands of the tap. SELECT and GET RESPONSE are ISO 7816-4; class 80 is project-defined (docs/protocol.md)."""

from __future__ import annotations

from enum import IntEnum

from protocol.apdu import MAX_NE, SHORT_MAX_NE, Command
from protocol.messages import GetVirtualCard, RelayCheck

CLA_INTERINDUSTRY = 0x00
CLA_PROPRIETARY = 0x80
VERSION_1 = 0x01
DEFAULT_NAME = bytes.fromhex("F05441504C414201")  # category F (unregistered), "TAPLAB", 01
KEY_NAME = bytes.fromhex("F05441504B455901")  # the Trusted Key: category F, "TAPKEY", 01


class Ins(IntEnum):
    """Instruction bytes."""

    SELECT = 0xA4
    GET_RESPONSE = 0xC0
    GET_VIRTUAL_CARD = 0x50
    DEBIT = 0x52
    CONFIRM = 0x54
    CANCEL = 0x56
    RELAY_CHECK = 0x58

    @property
    def title(self) -> str:
        """The name that a person reads."""
        return self.name.replace("_", " ")


class Occurrence(IntEnum):
    """P2 of SELECT by name: which of the applications whose names start alike (ISO 7816-4:2020 §11.2.2)."""

    FIRST = 0x00
    NEXT = 0x02


def select(name: bytes, occurrence: Occurrence = Occurrence.FIRST) -> Command:
    """SELECT by DF name, 1 to 16 bytes, exact or right-truncated; the answer is an FCI (ISO 7816-4 §11.2.2)."""
    if not 1 <= len(name) <= 16:
        raise ValueError("an application name has 1 to 16 bytes")
    return Command(CLA_INTERINDUSTRY, Ins.SELECT, 0x04, occurrence, name, SHORT_MAX_NE)


def relay_check(challenge: RelayCheck) -> Command:
    """RELAY CHECK: the terminal's challenge; the wallet's nonce comes back at once."""
    return Command(CLA_PROPRIETARY, Ins.RELAY_CHECK, 0, 0, challenge.encode(), SHORT_MAX_NE)


def get_virtual_card(version: int, suite: int, hello: GetVirtualCard) -> Command:
    """GET VIRTUAL CARD: the terminal proves itself and asks for the card, encrypted to its key of this tap."""
    return Command(CLA_PROPRIETARY, Ins.GET_VIRTUAL_CARD, version, suite, hello.encode(), MAX_NE)


def in_channel(ins: Ins, plaintext: bytes) -> Command:
    """DEBIT, CONFIRM or CANCEL before its data is encrypted."""
    return Command(CLA_PROPRIETARY, ins, 0, 0, plaintext, SHORT_MAX_NE)
