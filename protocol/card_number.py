# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Virtual card numbers: sixteen digits with a Luhn check digit, in a range that no real scheme uses.

ISO/IEC 7812-1: a first digit 9 leaves the next three to a country code; 999 belongs to no country, so no issuer can have
been given a number that starts so.
"""

from __future__ import annotations

from dataclasses import dataclass

LENGTH = 16
PREFIX = "999910"


@dataclass(frozen=True, slots=True, repr=False)
class CardNumber:
    """A virtual card number; prints masked (first six, last four). ValueError unless it is one of ours and passes Luhn."""

    digits: str

    def __post_init__(self) -> None:
        if len(self.digits) != LENGTH or not (self.digits.isascii() and self.digits.isdecimal()):
            raise ValueError("a virtual card number has sixteen digits")
        if not self.digits.startswith(PREFIX):
            raise ValueError("not in the range of virtual card numbers")
        if luhn_digit(self.digits[:-1]) != self.digits[-1]:
            raise ValueError("the check digit of the card number is wrong")

    @staticmethod
    def from_index(index: int) -> CardNumber:
        """Return the number with `index` (0 to 10^9 - 1) between prefix and check digit."""
        if not 0 <= index < 10**9:
            raise ValueError("the range holds 10^9 virtual card numbers")
        body = f"{PREFIX}{index:09d}"
        return CardNumber(body + luhn_digit(body))

    @property
    def masked(self) -> str:
        """First six and last four digits, as PCI DSS 3.4 allows to show them."""
        return f"{self.digits[:6]}••••••{self.digits[-4:]}"

    def __str__(self) -> str:
        return self.masked

    def __repr__(self) -> str:
        return f"CardNumber({self.masked})"


def luhn_digit(body: str) -> str:
    """Return the check digit that completes `body`, ISO/IEC 7812-1 Annex B."""
    total = 0
    for position, digit in enumerate(reversed(body)):
        doubled = int(digit) * (2 if position % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)
