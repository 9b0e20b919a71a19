# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""How things look on a terminal: money, JSON, errors, and progress while somebody watches."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from protocol.money import Amount

if TYPE_CHECKING:
    from rich.progress import Progress


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


def progress_bar() -> Progress:
    """Return a progress bar on standard error that leaves nothing behind, and shows nothing where nobody watches."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
