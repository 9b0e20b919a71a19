# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m lab.annotate`: docs/protocol.md is given the bytes of a new tap."""

from __future__ import annotations

from pathlib import Path

import click

from lab.fixtures import Laboratory
from protocol.describe import lines_of, parts_of
from protocol.money import Amount
from protocol.transport.trace import Exchange, TracingLink

DOCUMENT = Path(__file__).parents[1] / "docs" / "protocol.md"
BEGIN = "<!-- the tap below is written by `python -m lab.annotate` -->\n```text\n"
END = "```\n<!-- end of the tap -->\n"


def capture() -> list[Exchange]:
    """Pay 12.50 EUR in a new laboratory and return what went over the link."""
    with Laboratory() as laboratory:
        link = TracingLink(laboratory.link)
        laboratory.terminal.charge(Amount.parse("12.50", "EUR"), link)
        return list(link.exchanges)


def annotate(exchanges: list[Exchange]) -> str:
    """Return the tap as text: one part a line, broken where it is long."""
    lines: list[str] = []
    for exchange in exchanges:
        for arrow, parts in zip("><", parts_of(exchange.command, exchange.answer), strict=True):
            size = sum(len(part.data) for part in parts)
            lines.append(f"{arrow} {size} bytes")
            lines += lines_of(parts)
        lines.append("")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Pay once and write the bytes of that tap, field by field, into docs/protocol.md."""
    text = DOCUMENT.read_text()
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    DOCUMENT.write_text(head + BEGIN + annotate(capture()) + END + tail)


if __name__ == "__main__":
    main()
