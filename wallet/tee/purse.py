# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The rules of the purse: a pure function from what is asked and what is there to a result."""

from __future__ import annotations

from dataclasses import replace

from protocol.certificate import CredentialCertificate, TerminalCertificate
from protocol.messages import Debit, Result
from wallet.tee.state import Limits, Purse


def judge(
    debit: Debit,
    purse: Purse,
    terminal: TerminalCertificate,
    credential: CredentialCertificate,
    *,
    limits: Limits,
    consented: bool,
) -> Result:
    """Return APPROVED, or the first reason why not.

    `limits` count since the user's last consent; `consented` says that the user agreed to exactly this payment on the
    trusted UI.
    """
    if not debit.currency == purse.currency == terminal.merchant.currency:
        return Result.CURRENCY_NOT_SUPPORTED
    if debit.amount > credential.offline_ceiling:
        return Result.OVER_LIMIT
    if debit.amount > purse.balance:
        return Result.INSUFFICIENT_FUNDS
    if not consented and _needs_consent(debit.amount, purse, limits):
        return Result.SEE_PHONE
    if needs_key(debit.amount, limits) and not credential.co_signing_key:
        return Result.SEE_PHONE
    return Result.APPROVED


def needs_key(amount: int, limits: Limits) -> bool:
    """Tell whether a payment is so large that the Trusted Key has to agree and sign."""
    return bool(limits.key) and amount > limits.key


def _needs_consent(amount: int, purse: Purse, limits: Limits) -> bool:
    return (
        amount > purse.no_pin_limit
        or bool(limits.sum and purse.spent + amount > limits.sum)
        or bool(limits.count and purse.payments + 1 > limits.count)
    )


def pay(amount: int, purse: Purse, *, consented: bool) -> Purse:
    """Return the purse after a debit; a consent lets the counting begin anew."""
    return replace(
        purse,
        balance=purse.balance - amount,
        debits=purse.debits + 1,
        spent=0 if consented else purse.spent + amount,
        payments=0 if consented else purse.payments + 1,
    )
