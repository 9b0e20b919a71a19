# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""APDUs in words: what each part of a command and its answer is, for traces and for docs/protocol.md.

It reads what anybody on the link can read; what is encrypted stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from protocol import tlv
from protocol.apdu import Command, Response
from protocol.commands import Ins
from protocol.errors import DecodeError
from protocol.key_commands import KeyIns
from protocol.messages import SEALED_LENGTH, TAP_KEY_LENGTH
from protocol.signing import SIGNATURE_LENGTH
from protocol.tags import Tag

_TEMPLATES = (
    Tag.CERTIFICATE, Tag.DISCRETIONARY_DATA, Tag.PUBLIC_KEY, Tag.FCI_TEMPLATE, Tag.FCI_PROPRIETARY,
    Tag.FCI_ISSUER_DISCRETIONARY, Tag.APPLICATION_TEMPLATE,
)  # fmt: skip

_BYTES_A_LINE = 24


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of an APDU and what they are; `depth` counts the templates around them."""

    data: bytes
    meaning: str
    depth: int = 0


def parts_of(sent_apdu: bytes, received_apdu: bytes) -> tuple[list[Part], list[Part]]:
    """Return the parts of a command APDU and of its answer; joined, they are the APDUs again.

    DecodeError when one of them is no APDU; data that is not understood is one part.
    """
    command = Command.decode(sent_apdu)
    answer = Response.decode(received_apdu)
    before = len(sent_apdu) - 4 - len(command.data) - _le_length(sent_apdu, command)
    lengths = sent_apdu[4 : 4 + before], sent_apdu[4 + before + len(command.data) :]
    sent = [
        Part(command.header, f"CLA INS P1 P2: {title(command.ins)}"),
        Part(lengths[0], "Lc"),
        *_understood(_command_data, command, command.data),
        Part(lengths[1], "Le"),
    ]
    received = [
        *_understood(_answer_data, command, answer.data),
        Part(answer.sw.to_bytes(2, "big"), f"SW: {answer.sw.meaning}"),
    ]
    return sent, received


def title(ins: int) -> str:
    """Return the name of an instruction, the wallet's or the Key's, or its number when it is not one of ours."""
    if ins in set(Ins):
        return Ins(ins).title
    return KeyIns(ins).title if ins in set(KeyIns) else f"INS {ins:02X}"


def summary(sent_apdu: bytes, received_apdu: bytes) -> str:
    """Return one line: the command's name, the bytes both ways, the status word in words."""
    sw = Response.decode(received_apdu).sw
    return f"{title(sent_apdu[1])}: {len(sent_apdu)} > < {len(received_apdu)} bytes, {sw}"


def _le_length(apdu: bytes, command: Command) -> int:
    if command.ne is None:
        return 0
    return 1 if not command.needs_extended and (len(apdu) == 5 or apdu[4]) else 2


def _understood(describe: Callable[[Command, bytes], Iterator[Part]], command: Command, data: bytes) -> list[Part]:
    """Return the parts of `data`, or all of it as one part where it is not what the command usually carries."""
    if not data:
        return []
    try:
        parts = list(describe(command, data))
    except (DecodeError, ValueError):
        parts = []
    return parts if b"".join(part.data for part in parts) == data else [Part(data, "data")]


def _command_data(command: Command, data: bytes) -> Iterator[Part]:
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
    elif command.ins == Ins.CONFIRM:
        yield Part(data, "in the channel: nothing but the tag (16)")


def _answer_data(command: Command, data: bytes) -> Iterator[Part]:
    ins = command.ins
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
    elif ins == Ins.CONFIRM:
        yield Part(data, "in the channel: next open id (16) and the tag (16)")


def _objects(data: bytes, depth: int = 0) -> Iterator[Part]:
    for tag, value in tlv.parse_list(data):
        name = Tag(tag).name.lower().replace("_", " ") if tag in set(Tag) else f"tag {tag:X}"
        encoded = tlv.encode(tag, value)
        if tag in _TEMPLATES:
            yield Part(encoded[: len(encoded) - len(value)], f"{name}, {len(value)} bytes", depth)
            yield from _objects(value, depth + 1)
        else:
            yield Part(encoded, name, depth)


def lines_of(parts: list[Part]) -> Iterator[str]:
    """Yield parts as text: `# meaning`, then the bytes in hexadecimal, indented by depth."""
    for part in parts:
        if not part.data:
            continue
        margin = "  " * (part.depth + 1)
        yield f"{margin}# {part.meaning}"
        for start in range(0, len(part.data), _BYTES_A_LINE):
            yield margin + part.data[start : start + _BYTES_A_LINE].hex(" ").upper()
