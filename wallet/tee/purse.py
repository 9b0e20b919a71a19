# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The rules of the purse: a pure function from what is asked and what is there to a result."""

from __future__ import annotations

from protocol.certificate import CredentialCertificate, TerminalCertificate
from protocol.messages import Debit, Result
from wallet.tee.state import Purse


def judge(
    debit: Debit,
    purse: Purse,
    terminal: TerminalCertificate,
    credential: CredentialCertificate,
    *,
    consented: bool,
) -> Result:
    """Return APPROVED, or the first reason why not.

    `consented` says that the user agreed to exactly this payment on the trusted UI.
    """
    if not debit.currency == purse.currency == terminal.merchant.currency:
        return Result.CURRENCY_NOT_SUPPORTED
    if debit.amount > credential.offline_ceiling:
        return Result.OVER_LIMIT
    if debit.amount > purse.balance:
        return Result.INSUFFICIENT_FUNDS
    if debit.amount > purse.no_pin_limit and not consented:
        return Result.SEE_PHONE
    return Result.APPROVED
