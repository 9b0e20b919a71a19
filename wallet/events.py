# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What happens at the card, told to whoever looks: history, screen, housekeeping. Nothing here is core data."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.messages import Result
from wallet.tee.contract import WalletView


class Step(StrEnum):
    """The wallet's steps of a tap; the letter and number are those of docs/architecture.md."""

    NAME_ANSWERED = "S3"
    CARD_REQUESTED = "S5"
    CARD_SIGNED = "S6"
    CARD_RETURNED = "S7"
    DEBITED = "S9"
    CONFIRMED = "confirmed"
    RECOVERED = "recovered"
    TERMINAL_REFUSED = "terminal refused"
    TAP_ENDED = "tap ended"
    ASKING = "asking"
    KEY = "key"
    CONSENT = "consent"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `at` is in nanoseconds since 1970; `reason` is what the trusted world said;
    `view` comes with the end of a tap."""

    step: Step
    text: str
    merchant: str = ""
    terminal_id: str = ""
    amount: int = 0
    currency: int = 0
    result: Result | None = None
    balance: int | None = None
    reason: str = ""
    view: WalletView | None = None
    reference: bytes = b""
    at: int = field(default_factory=time.time_ns)
