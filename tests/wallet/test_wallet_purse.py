# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The rules of the purse, case by case, at each side of every boundary."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.certificate import CredentialCertificate, Merchant, TerminalCertificate, Usage
from protocol.messages import Debit, Result
from protocol.money import MAX_MINOR
from wallet.tee.purse import judge, pay
from wallet.tee.state import Limits, Purse

_EUR, _USD, _JPY, _KWD = 978, 840, 392, 414
_LIMIT, _BALANCE, _CEILING = 50_00, 100_00, 1000_00

_VALID = (date(2026, 1, 1), date(2027, 1, 31))
_PURSE = Purse(_EUR, _BALANCE, 1, _LIMIT, 0)
_TERMINAL = TerminalCertificate(
    bytes(8), b"TLAQ", Usage.TERMINAL, *_VALID, bytes(33), bytes(64), "TERM0001", Merchant("Bakery", 5462, _EUR)
)
_CREDENTIAL = CredentialCertificate(bytes(8), b"TLIS", Usage.CREDENTIAL, *_VALID, bytes(33), bytes(64), _CEILING)


def _judge(
    amount: int,
    *,
    purse: Purse = _PURSE,
    currency: int = _EUR,
    terminal_currency: int = _EUR,
    ceiling: int = _CEILING,
    consented: bool = False,
    limits: Limits | None = None,
) -> Result:
    debit = Debit(amount, currency, date(2026, 11, 22), time(12, 0))
    terminal = replace(_TERMINAL, merchant=replace(_TERMINAL.merchant, currency=terminal_currency))
    return judge(
        debit,
        purse,
        terminal,
        replace(_CREDENTIAL, offline_ceiling=ceiling),
        limits=limits or Limits(),
        consented=consented,
    )


@pytest.mark.parametrize(
    ("amount", "consented", "result"),
    [
        (1, False, Result.APPROVED),
        (_LIMIT - 1, False, Result.APPROVED),
        (_LIMIT, False, Result.APPROVED),
        (_LIMIT + 1, False, Result.SEE_PHONE),
        (_LIMIT + 1, True, Result.APPROVED),
        (_BALANCE, False, Result.SEE_PHONE),
        (_BALANCE, True, Result.APPROVED),
        (_BALANCE + 1, False, Result.INSUFFICIENT_FUNDS),
        (_BALANCE + 1, True, Result.INSUFFICIENT_FUNDS),
        (_CEILING, True, Result.INSUFFICIENT_FUNDS),
        (_CEILING + 1, True, Result.OVER_LIMIT),
        (MAX_MINOR, True, Result.OVER_LIMIT),
    ],
)
def test_the_first_rule_that_does_not_hold_is_the_result(amount: int, consented: bool, result: Result) -> None:
    assert _judge(amount, consented=consented) is result


@pytest.mark.parametrize("amount", [_CEILING, _CEILING + 1])
def test_the_offline_ceiling_holds_even_with_money_and_consent(amount: int) -> None:
    rich = replace(_PURSE, balance=MAX_MINOR, no_pin_limit=MAX_MINOR)
    wanted = Result.APPROVED if amount <= _CEILING else Result.OVER_LIMIT
    assert _judge(amount, purse=rich, consented=True) is wanted


def test_an_empty_purse_pays_nothing() -> None:
    assert _judge(1, purse=replace(_PURSE, balance=0)) is Result.INSUFFICIENT_FUNDS


def test_the_last_cent_can_be_paid() -> None:
    assert _judge(1, purse=replace(_PURSE, balance=1)) is Result.APPROVED


def test_a_limit_of_zero_asks_the_user_every_time() -> None:
    assert _judge(1, purse=replace(_PURSE, no_pin_limit=0)) is Result.SEE_PHONE


@pytest.mark.parametrize("consented", [False, True])
@pytest.mark.parametrize(
    ("debit", "terminal", "purse"),
    [
        (_USD, _EUR, _EUR),
        (_EUR, _USD, _EUR),
        (_EUR, _EUR, _USD),
        (_USD, _USD, _EUR),  # a foreign currency, agreed on by terminal and DEBIT
        (_JPY, _JPY, _EUR),  # no decimals: 5000 would be 5000 yen and pass a limit of 50.00
        (_KWD, _KWD, _EUR),  # three decimals
        (_KWD, _EUR, _EUR),
        (_EUR, _EUR, 0),  # a purse that has not been issued
        (0, 0, _EUR),
    ],
)
def test_the_currency_is_that_of_purse_terminal_and_payment_or_nothing_is_paid(
    debit: int, terminal: int, purse: int, consented: bool
) -> None:
    result = _judge(
        1, currency=debit, terminal_currency=terminal, purse=replace(_PURSE, currency=purse), consented=consented
    )
    assert result is Result.CURRENCY_NOT_SUPPORTED


_MINOR = st.integers(0, MAX_MINOR)


@given(
    amount=st.integers(1, MAX_MINOR),
    balance=_MINOR,
    limit=_MINOR,
    ceiling=_MINOR,
    consented=st.booleans(),
    same=st.booleans(),
)
def test_what_is_approved_breaks_no_rule(
    amount: int, balance: int, limit: int, ceiling: int, consented: bool, same: bool
) -> None:
    purse = replace(_PURSE, balance=balance, no_pin_limit=limit)
    result = _judge(amount, purse=purse, ceiling=ceiling, consented=consented, terminal_currency=_EUR if same else _USD)
    allowed = same and amount <= balance and amount <= ceiling and (consented or amount <= limit)
    assert (result is Result.APPROVED) is allowed


@pytest.mark.parametrize(
    ("limits", "spent", "payments", "result"),
    [
        (Limits(), 10**9, 10**6, Result.APPROVED),
        (Limits(sum=30_00), 20_00, 0, Result.APPROVED),
        (Limits(sum=30_00), 20_01, 0, Result.SEE_PHONE),
        (Limits(count=3), 0, 2, Result.APPROVED),
        (Limits(count=3), 0, 3, Result.SEE_PHONE),
        (Limits(sum=30_00, count=3), 20_00, 3, Result.SEE_PHONE),
    ],
)
def test_what_went_through_since_the_last_consent_is_limited(
    limits: Limits, spent: int, payments: int, result: Result
) -> None:
    purse = replace(_PURSE, spent=spent, payments=payments)
    assert _judge(10_00, purse=purse, limits=limits) is result
    assert _judge(10_00, purse=purse, limits=limits, consented=True) is Result.APPROVED


def test_a_consent_lets_the_counting_begin_anew() -> None:
    once = pay(10_00, _PURSE, consented=False)
    assert (once.balance, once.spent, once.payments, once.debits) == (90_00, 10_00, 1, 1)
    twice = pay(5_00, once, consented=False)
    assert (twice.spent, twice.payments) == (15_00, 2)
    agreed = pay(60_00, twice, consented=True)
    assert (agreed.balance, agreed.spent, agreed.payments, agreed.debits) == (25_00, 0, 0, 3)


@pytest.mark.parametrize("amount", [0, -1])
def test_a_payment_of_nothing_or_less_does_not_exist(amount: int) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        _judge(amount)
