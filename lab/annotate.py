# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m lab.annotate`: pays once and writes the bytes of that tap, field by field, into docs/protocol.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.fixtures import Laboratory
from protocol import tlv
from protocol.apdu import Command, Response
from protocol.commands import Ins
from protocol.messages import SEALED_LENGTH, TAP_KEY_LENGTH
from protocol.money import Amount
from protocol.signing import SIGNATURE_LENGTH
from protocol.tags import Tag
from protocol.transport.trace import Exchange, TracingLink

DOCUMENT = Path(__file__).parents[1] / "docs" / "protocol.md"
BEGIN = "<!-- the tap below is written by `python -m lab.annotate` -->\n```text\n"
END = "```\n<!-- end of the tap -->\n"
_TEMPLATES = (Tag.CERTIFICATE, Tag.DISCRETIONARY_DATA, Tag.PUBLIC_KEY, Tag.FCI_TEMPLATE, Tag.FCI_PROPRIETARY)
_BYTES_A_LINE = 24


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of an APDU and what they are; `depth` counts the templates around them."""

    data: bytes
    meaning: str
    depth: int = 0


def parts_of(exchange: Exchange) -> tuple[list[Part], list[Part]]:
    """Return the parts of a command APDU and of its answer; joined, they are the APDUs again."""
    command = Command.decode(exchange.command)
    lengths = exchange.command[4:].partition(command.data)
    answer = Response.decode(exchange.answer)
    sent = [
        Part(command.header, f"CLA INS P1 P2: {Ins(command.ins).title}"),
        Part(lengths[0], "Lc"),
        *_command_data(command),
        Part(lengths[2], "Le"),
    ]
    received = [*_answer_data(command.ins, answer.data), Part(answer.sw.to_bytes(2, "big"), f"SW: {answer.sw.meaning}")]
    return sent, received


def _command_data(command: Command) -> Iterator[Part]:
    data = command.data
    if command.ins == Ins.SELECT:
        yield Part(data, "application name")
    elif command.ins == Ins.RELAY_CHECK:
        yield Part(data, "terminal's challenge")
    elif command.ins == Ins.GET_VIRTUAL_CARD:
        rest = TAP_KEY_LENGTH + SIGNATURE_LENGTH
        yield from _objects(data[:-rest])
        yield Part(data[-rest:-SIGNATURE_LENGTH], "X25519 key of this tap")
        yield Part(data[-SIGNATURE_LENGTH:], "terminal's signature over label ‖ T1")
    elif command.ins == Ins.DEBIT:
        yield Part(data, "in the channel: 9F02, 5F2A, 9A, 9F21 (14 bytes) and the tag (16)")
    else:
        yield Part(data, "in the channel: nothing but the tag (16)")


def _answer_data(ins: int, data: bytes) -> Iterator[Part]:
    if ins == Ins.SELECT:
        yield from _objects(data)
    elif ins == Ins.RELAY_CHECK:
        yield Part(data, "wallet's nonce")
    elif ins == Ins.GET_VIRTUAL_CARD:
        signature = SEALED_LENGTH + SIGNATURE_LENGTH
        yield Part(data[:32], "HPKE encapsulation")
        yield Part(data[32:SEALED_LENGTH], "HPKE ciphertext: number, currency, counter, secret, open id (44), tag (16)")
        yield Part(data[SEALED_LENGTH:signature], "credential's signature over label ‖ T2 ‖ certificate ‖ HPKE output")
        yield from _objects(data[signature:])
    elif ins == Ins.DEBIT:
        yield Part(data, "in the channel: result (1), signature of the receipt (64) and the tag (16)")
    else:
        yield Part(data, "in the channel: next open id (16) and the tag (16)")


def _objects(data: bytes, depth: int = 0) -> Iterator[Part]:
    for tag, value in tlv.parse_list(data):
        name = Tag(tag).name.lower().replace("_", " ")
        encoded = tlv.encode(tag, value)
        if tag in _TEMPLATES:
            yield Part(encoded[: len(encoded) - len(value)], f"{name}, {len(value)} bytes", depth)
            yield from _objects(value, depth + 1)
        else:
            yield Part(encoded, name, depth)


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
        for arrow, parts in zip("><", parts_of(exchange), strict=True):
            size = sum(len(part.data) for part in parts)
            lines.append(f"{arrow} {size} bytes")
            lines += [line for part in parts if part.data for line in _lines(part)]
        lines.append("")
    return "\n".join(lines)


def _lines(part: Part) -> Iterator[str]:
    margin = "  " * (part.depth + 1)
    yield f"{margin}# {part.meaning}"
    for start in range(0, len(part.data), _BYTES_A_LINE):
        yield margin + part.data[start : start + _BYTES_A_LINE].hex(" ").upper()


def main() -> None:
    """Write a new tap into the document."""
    text = DOCUMENT.read_text()
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    DOCUMENT.write_text(head + BEGIN + annotate(capture()) + END + tail)


if __name__ == "__main__":
    main()
