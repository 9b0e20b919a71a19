# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Payments that the user confirmed on the Key: remembered for a minute, each good for one receipt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol.key_commands import PaymentQuestion
from protocol.messages import Receipt, Result, certificate_hash
from protocol.money import Amount, Currency

CONFIRMED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Payment:
    """What the user saw: to whom (SHA-256 of the terminal's certificate), how much, and which trusted world asked."""

    terminal_hash: bytes
    amount: int
    currency: int
    peer: bytes

    @classmethod
    def of(cls, question: PaymentQuestion, peer: bytes) -> Payment:
        """Return what a question is about."""
        return cls(certificate_hash(question.certificate), question.amount, question.currency, peer)


def text_of(question: PaymentQuestion) -> str:
    """Return what the user is asked; ValueError for a currency that has no amounts."""
    amount = Amount(question.amount, Currency.of(question.currency))
    return f"Pay {amount} to {question.certificate.merchant.name}?"


class ConfirmedPayments:
    """The payment that was confirmed last, until it is used or a minute has gone by."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Measure the minute by `clock`."""
        self._clock = clock
        self._confirmed: tuple[Payment, float] | None = None

    def remember(self, payment: Payment) -> None:
        """Note that the user has just confirmed `payment`; one that was confirmed before is forgotten."""
        self._confirmed = payment, self._clock() + CONFIRMED_SECONDS

    def covers(self, receipt: Receipt, peer: bytes) -> bool:
        """Tell whether `receipt` is of the payment that was confirmed, is approved, and `peer` is who asked for it."""
        confirmed = self._confirmed
        if confirmed is None or self._clock() >= confirmed[1] or receipt.result is not Result.APPROVED:
            return False
        return confirmed[0] == Payment(receipt.terminal_hash, receipt.debit.amount, receipt.debit.currency, peer)

    def use_up(self) -> None:
        """Forget the payment: it was signed."""
        self._confirmed = None
