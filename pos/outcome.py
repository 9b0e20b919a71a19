# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""How a transaction ended, as a value: for the screen, for scripts, for the exit code."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pos.relay import RelayCheckResult
from protocol.money import Amount
from protocol.transport.air import BIT_RATES, activation_ms, air_time
from protocol.transport.trace import Exchange


class OutcomeKind(StrEnum):
    """The ways in which a transaction can end."""

    APPROVED = "approved"
    DECLINED = "declined"
    SEE_PHONE = "see phone"
    TORN = "torn"
    NO_APPLICATION = "no application"
    NOT_VERIFIED = "not verified"
    NOT_ACCEPTED = "terminal not accepted"
    NO_CARD = "no card"


class Step(StrEnum):
    """The terminal's steps of a tap; letter and number are those of docs/architecture.md."""

    NAME_SENT = "S2"
    CARD_ASKED = "S4"
    CARD_CHECKED = "S8"
    PAID = "S9"
    PRESENT_AGAIN = "present again"


@dataclass(frozen=True, slots=True)
class Progress:
    """One step that has just been taken. `at` is in nanoseconds since 1970."""

    step: Step
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Air:
    """What the tap put on the link, and what that takes on the air by the model of docs/protocol.md.

    `lengths` are (command, answer) bytes of each APDU, `to_receipt` how many of them there were when the receipt came.
    `key_bytes` of the answers are there because a Trusted Key signed too.
    """

    lengths: tuple[tuple[int, int], ...] = ()
    to_receipt: int = 0
    key_bytes: int = 0

    @property
    def bytes_command(self) -> int:
        """Bytes from the terminal to the card."""
        return sum(command for command, _ in self.lengths)

    @property
    def bytes_response(self) -> int:
        """Bytes from the card to the terminal."""
        return sum(answer for _, answer in self.lengths)

    def milliseconds(self, kbit: int = 106) -> float:
        """Modelled air time of activation and all APDUs."""
        return activation_ms() + air_time(self.lengths, kbit).milliseconds

    @property
    def milliseconds_to_receipt(self) -> float:
        """Modelled air time at 106 kbit/s until the receipt is there."""
        return activation_ms() + air_time(self.lengths[: self.to_receipt]).milliseconds

    @property
    def by_bit_rate(self) -> dict[int, float]:
        """Modelled milliseconds of the whole tap at each bit rate."""
        return {kbit: self.milliseconds(kbit) for kbit in BIT_RATES}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a transaction ended. `reason` is one clause for a person; `charged` says whether money may have moved.

    `relay` is how long RELAY CHECK took; `reference` names the transaction in the journal;
    `settled` names earlier ones that this tap showed to have been paid.
    """

    kind: OutcomeKind
    amount: Amount
    reason: str = ""
    card: str = ""
    reference: str = ""
    receipt_verified: bool = False
    charged: bool | None = False
    relay: RelayCheckResult | None = None
    air: Air = Air()
    steps: tuple[Progress, ...] = ()
    trace: tuple[Exchange, ...] = field(default=(), repr=False)
    settled: tuple[str, ...] = ()

    @property
    def approved(self) -> bool:
        """Whether the merchant is paid."""
        return self.kind is OutcomeKind.APPROVED

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.amount}" + (f" ({self.reason})" if self.reason else "")
