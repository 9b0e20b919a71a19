# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Amounts are whole minor units with the exponent of ISO 4217, and what is no amount is a sentence."""

from __future__ import annotations

import operator
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UsageError
from protocol.money import MAX_MINOR, Amount, Currency

_SAMPLE = st.sampled_from([Currency.of(code) for code in ("EUR", "USD", "JPY", "KWD", "IQD", "CLF", "ISK", "UYW")])


@pytest.mark.parametrize(
    ("code", "number", "exponent"),
    [
        ("EUR", 978, 2),
        ("USD", 840, 2),
        ("GBP", 826, 2),
        ("JPY", 392, 0),
        ("KRW", 410, 0),
        ("CLP", 152, 0),
        ("ISK", 352, 0),
        ("UGX", 800, 0),
        ("KWD", 414, 3),
        ("BHD", 48, 3),
        ("TND", 788, 3),
        ("CLF", 990, 4),
        ("UYW", 927, 4),
        # Locale data (CLDR) shows these with fewer decimals than ISO 4217 gives them.
        ("IQD", 368, 3),
        ("LBP", 422, 2),
        ("IRR", 364, 2),
        ("SYP", 760, 2),
        ("AFN", 971, 2),
        ("ALL", 8, 2),
        ("MMK", 104, 2),
        ("RSD", 941, 2),
        ("YER", 886, 2),
        ("LAK", 418, 2),
        ("KPW", 408, 2),
        ("SOS", 706, 2),
    ],
)
def test_currency_has_number_and_exponent_of_iso_4217(code: str, number: int, exponent: int) -> None:  # B7
    assert Currency.of(code) == Currency(code, number, exponent)
    assert Currency.of(number) == Currency(code, number, exponent)


@pytest.mark.parametrize("code", ["XXX", "XTS", "XAU", "XDR", "EURO", "EU", "", "978", "€", 0, 999, -978, 1000])
def test_what_has_no_minor_units_is_no_currency(code: str | int) -> None:
    with pytest.raises(ValueError, match="no ISO 4217 currency"):
        Currency.of(code)


@pytest.mark.parametrize(
    ("text", "currency", "minor", "shown"),
    [
        ("12.50", "EUR", 1250, "12.50 EUR"),
        ("12.5", "EUR", 1250, "12.50 EUR"),
        ("12", "EUR", 1200, "12.00 EUR"),
        ("0.01", "EUR", 1, "0.01 EUR"),
        ("0.00", "EUR", 0, "0.00 EUR"),
        ("0012.50", "EUR", 1250, "12.50 EUR"),
        ("12.500", "EUR", 1250, "12.50 EUR"),
        ("12.50", "eur", 1250, "12.50 EUR"),
        ("500", "JPY", 500, "500 JPY"),
        ("500.0", "JPY", 500, "500 JPY"),
        ("1.234", "KWD", 1234, "1.234 KWD"),
        ("1.5", "IQD", 1500, "1.500 IQD"),
        ("1.2345", "CLF", 12345, "1.2345 CLF"),
        ("9999999999.99", "EUR", MAX_MINOR, "9999999999.99 EUR"),
        ("999999999999", "JPY", MAX_MINOR, "999999999999 JPY"),
        ("0.1", "EUR", 10, "0.10 EUR"),
        ("1.15", "EUR", 115, "1.15 EUR"),
    ],
)
def test_amount_is_read_and_shown_in_its_currency(text: str, currency: str, minor: int, shown: str) -> None:
    amount = Amount.parse(text, currency)
    assert amount.minor == minor
    assert str(amount) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "12.",
        ".50",
        "-12.50",
        "+12.50",
        "12,50",
        "1 000",
        "1_000",
        " 12.50",
        "12.50 ",
        "12.50\n",
        "1e3",
        "1E-2",
        "NaN",
        "Infinity",
        "0x10",
        "12.5.0",
        "12.50 EUR",
        "１２",
        "١٢",
        "twelve",
        "1" * 13,
        "0" * 100,
        "1.00000",
    ],
)
def test_what_is_no_amount_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="no amount of money; write it as"):
        Amount.parse(text, "EUR")


@pytest.mark.parametrize(
    ("text", "currency"), [("12.505", "EUR"), ("0.5", "JPY"), ("1.2345", "KWD"), ("0.0001", "USD")]
)
def test_more_decimals_than_the_currency_has_is_a_usage_error(text: str, currency: str) -> None:  # B7
    with pytest.raises(UsageError, match="more decimals than"):
        Amount.parse(text, currency)


@pytest.mark.parametrize(("text", "currency"), [("10000000000.00", "EUR"), ("999999999999", "KWD")])
def test_more_than_twelve_digits_is_a_usage_error(text: str, currency: str) -> None:
    with pytest.raises(UsageError, match="more than a payment can carry"):
        Amount.parse(text, currency)


@pytest.mark.parametrize("currency", ["", "XXX", "EURO", "€", "978"])
def test_unknown_currency_is_a_usage_error(currency: str) -> None:
    with pytest.raises(UsageError, match="write it as EUR"):
        Amount.parse("12.50", currency)


@pytest.mark.parametrize("minor", [-1, MAX_MINOR + 1])
def test_amount_has_0_to_12_digits(minor: int) -> None:
    with pytest.raises(ValueError, match="12 digits"):
        Amount(minor, Currency.of("EUR"))


@given(st.integers(0, MAX_MINOR), _SAMPLE)
def test_any_amount_is_read_back_from_what_is_shown(minor: int, currency: Currency) -> None:
    amount = Amount(minor, currency)
    number, code = str(amount).split(" ")
    assert Amount.parse(number, code) == amount


@given(st.integers(0, MAX_MINOR), _SAMPLE)
def test_amount_is_never_a_float(minor: int, currency: Currency) -> None:
    amount = Amount(minor, currency)
    assert type(amount.decimal) is Decimal
    assert amount.decimal * 10**currency.exponent == minor
    assert type(Amount.parse(str(amount).split(" ")[0], currency.code).minor) is int


@pytest.mark.parametrize("compare", [operator.lt, operator.le, operator.gt, operator.ge])
def test_amounts_of_two_currencies_have_no_order(compare: Callable[[Amount, Amount], bool]) -> None:  # B7
    with pytest.raises(TypeError):
        compare(Amount(5, Currency.of("EUR")), Amount(6, Currency.of("JPY")))
