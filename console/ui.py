# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""How things look on a terminal: money, JSON, and a console that knows whether anybody watches."""

from __future__ import annotations

import json
import sys
from typing import Any

from protocol.money import Amount


def money(amount: Amount) -> str:
    """Return an amount as a person reads it; the number of decimals is ISO 4217's, the grouping Babel's."""
    from babel.numbers import format_currency

    decimals = "." + "0" * amount.currency.exponent if amount.currency.exponent else ""
    return format_currency(
        amount.decimal, amount.currency.code, format=f"#,##0{decimals} ¤¤", locale="en", currency_digits=False
    )


def print_json(value: Any) -> None:
    """Print one JSON object on a line of its own, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def print_error(program: str, sentence: str) -> None:
    """Print why a command ended, on standard error."""
    sys.stderr.write(f"{program}: {sentence}\n")
