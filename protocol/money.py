# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Amounts in minor units and their currency; codes and exponents from ISO 4217, never from a locale library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

import iso4217

from protocol.errors import UsageError

MAX_MINOR = 10**12 - 1  # EMV tag 9F02 is n12


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency: alphabetic code, numeric code (EMV tag 5F2A) and number of minor-unit digits."""

    code: str
    number: int
    exponent: int

    def __str__(self) -> str:
        return self.code

    @staticmethod
    def of(code: str | int) -> Currency:
        """Return the currency of an alphabetic or numeric code; ValueError when ISO 4217 has none with minor units."""
        try:
            return _by_code()[code.upper() if isinstance(code, str) else code]
        except KeyError:
            raise ValueError(f"{code!r} is no ISO 4217 currency with an amount") from None


@cache
def _by_code() -> dict[str | int, Currency]:
    known: dict[str | int, Currency] = {}
    for entry in iso4217.Currency:
        if entry.exponent is not None and entry.number is not None:
            currency = Currency(entry.code, entry.number, entry.exponent)
            known[currency.code] = known[currency.number] = currency
    return known


@dataclass(frozen=True, slots=True)
class Amount:
    """A non-negative amount of money in minor units, at most twelve digits (EMV tag 9F02)."""

    minor: int
    currency: Currency

    def __post_init__(self) -> None:
        if not 0 <= self.minor <= MAX_MINOR:
            raise ValueError(f"an amount has 0 to 12 digits in minor units, not {self.minor}")

    @staticmethod
    def parse(text: str, currency: str) -> Amount:
        """Return the amount that a person wrote as ``12.50`` and ``EUR``; UsageError says what is wrong with it."""
        try:
            unit = Currency.of(currency)
        except ValueError as error:
            raise UsageError(f"{error}; write it as EUR, USD, JPY, …") from None
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,4})?", text, re.ASCII):
            raise UsageError(f"{text!r} is no amount of money; write it as 12.50")
        scaled = Decimal(text).scaleb(unit.exponent)
        if scaled != int(scaled):
            raise UsageError(f"{text} has more decimals than {unit} uses ({unit.exponent})")
        if scaled > MAX_MINOR:
            raise UsageError(f"{text} {unit} is more than a payment can carry")
        return Amount(int(scaled), unit)

    @property
    def decimal(self) -> Decimal:
        """The amount in major units, with exactly the currency's decimals."""
        return Decimal(self.minor).scaleb(-self.currency.exponent)

    def __str__(self) -> str:
        return f"{self.decimal:.{self.currency.exponent}f} {self.currency.code}"
