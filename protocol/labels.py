# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Domain separation: every signature and key derivation starts with a label of its own, length-prefixed."""

from __future__ import annotations

from enum import StrEnum


class Label(StrEnum):
    """One label for each thing that is signed or derived; project-defined, all for protocol version 1."""

    POS_SIGNATURE = "TapLab1 terminal hello"
    CARD_ENCRYPTION = "TapLab1 card envelope"
    CARD_SIGNATURE = "TapLab1 card answer"
    CHANNEL_COMMAND_KEY = "TapLab1 channel command key"
    CHANNEL_COMMAND_IV = "TapLab1 channel command iv"
    CHANNEL_RESPONSE_KEY = "TapLab1 channel response key"
    CHANNEL_RESPONSE_IV = "TapLab1 channel response iv"
    TRANSACTION_ID = "TapLab1 transaction id"
    RECEIPT = "TapLab1 receipt"
    CANCELLATION = "TapLab1 cancellation"
    POS_TAP_KEY = "TapLab1 terminal tap key"
    APPLICATION = "TapLab1 wallet application"
    ISSUED_NUMBERS = "TapLab1 issued numbers"
    ISSUANCE = "TapLab1 issuance"
    LOAD = "TapLab1 load"
    TERMINAL_APPLICATION = "TapLab1 terminal application"
    BLOCK_LIST = "TapLab1 block list"
    UNBLOCK = "TapLab1 unblock PIN"
    STATEMENT = "TapLab1 wallet statement"
    SETTLEMENT = "TapLab1 settlement"
    CLAIM = "TapLab1 claim"
    VOID = "TapLab1 void"
    REPORT_ANSWER = "TapLab1 report answer"
    STORAGE_KEY = "TapLab1 storage key"
    COUNTER_KEY = "TapLab1 counter key"
    KEY_RECEIPT = "TapLab1 key's receipt"
    KEY_FLASH = "TapLab1 key's flash"
    KEY_CELL_NAME = "TapLab1 key's cell name"


def labelled(label: Label, *parts: bytes) -> bytes:
    """Return length(label) ‖ label ‖ parts. The parts have fixed lengths or carry their own."""
    name = label.value.encode("ascii")
    return bytes([len(name)]) + name + b"".join(parts)
