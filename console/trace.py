# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`--trace`: each APDU with its name, its fields, its status word in words and its milliseconds, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from protocol.describe import lines_of, parts_of, summary
from protocol.errors import DecodeError
from protocol.transport.trace import Exchange


def print_trace(exchanges: Iterable[Exchange]) -> None:
    """Print every exchange of a tap."""
    for exchange in exchanges:
        print_exchange(exchange)


def print_exchange(exchange: Exchange) -> None:
    """Print one exchange; what is no APDU is printed as bytes."""
    sys.stderr.write("\n".join([*_lines(exchange), ""]))


def _lines(exchange: Exchange) -> list[str]:
    took = f"{1000 * exchange.seconds:.1f} ms"
    try:
        sent, received = parts_of(exchange.command, exchange.answer)
    except DecodeError:
        return [f"> {exchange.command.hex(' ').upper()}", f"< {exchange.answer.hex(' ').upper()}  # {took}"]
    head = f"# {summary(exchange.command, exchange.answer)}, {took}"
    return [head, ">", *lines_of(sent), "<", *lines_of(received)]
