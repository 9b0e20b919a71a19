# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the documents say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from console.exit_codes import ExitCode
from issuer.cli import cli as issuer_cli
from lab.annotate import BEGIN, END
from pos.cli import cli as pos_cli
from protocol.apdu import Command, Response
from protocol.certificate import Authority, Usage, failed_checks
from protocol.commands import DEFAULT_NAME, Ins
from protocol.describe import parts_of
from protocol.fci import ApplicationFci
from protocol.key_commands import KeyIns
from protocol.messages import GetVirtualCard, Result, VirtualCard
from protocol.status import StatusWord
from protocol.transport.opening import SCHEMES
from wallet.cli import cli as wallet_cli
from wallet.trusted_key.cli import cli as key_cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ROWS = [f"A{n}" for n in range(1, 6)] + [f"S{n}" for n in range(1, 10)] + [f"K{n}" for n in range(1, 5)]


def _tap() -> list[tuple[bytes, bytes]]:
    """The APDUs of the annotated tap, put together again from its lines."""
    text = (DOCS / "protocol.md").read_text()
    shown = text.split(BEGIN)[1].split(END)[0]
    apdus = [
        bytes.fromhex("".join(line for line in part.splitlines()[1:] if "#" not in line))
        for part in re.split(r"^(?=[<>] )", shown, flags=re.MULTILINE)
        if part.strip()
    ]
    return list(zip(apdus[::2], apdus[1::2], strict=True))


def test_the_annotated_tap_is_a_tap() -> None:
    said = [(Ins(Command.decode(sent).ins), Response.decode(received).sw) for sent, received in _tap()]
    steps = [Ins.SELECT, Ins.RELAY_CHECK, Ins.GET_VIRTUAL_CARD, Ins.DEBIT, Ins.CONFIRM]
    assert said == [(ins, StatusWord.OK) for ins in steps]


def test_the_annotated_tap_is_what_the_code_reads() -> None:
    tap = [(Command.decode(sent), Response.decode(received)) for sent, received in _tap()]
    assert ApplicationFci.decode(tap[0][1].data) == ApplicationFci(DEFAULT_NAME, (1,), (1,))
    hello, card = GetVirtualCard.decode(tap[2][0].data), VirtualCard.decode(tap[2][1].data)
    assert (hello.certificate.usage, card.certificate.usage) == (Usage.TERMINAL, Usage.CREDENTIAL)
    foreign = Authority(bytes(4), hello.certificate.public_key)
    assert failed_checks(hello.certificate, Usage.TERMINAL, foreign, hello.certificate.valid_from)


@pytest.mark.parametrize("index", range(5))
def test_the_annotations_cover_every_byte(index: int) -> None:
    sent, received = _tap()[index]
    described = [b"".join(part.data for part in parts) for parts in parts_of(sent, received)]
    assert described == [sent, received]


def test_the_size_of_the_tap_is_the_one_in_the_table() -> None:
    total = sum(len(sent) + len(received) for sent, received in _tap())
    assert f"| name selected directly | 5 | {total} |" in (DOCS / "protocol.md").read_text()


def test_every_exit_code_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+) \|$", (DOCS / "commands.md").read_text(), re.MULTILINE)
    assert rows == [(str(code.value), code.name, code.meaning) for code in ExitCode]


@pytest.mark.parametrize(
    ("program", "commands"),
    [
        ("tap-issuer", issuer_cli.commands),
        ("tap-wallet", wallet_cli.commands),
        ("tap-pos", pos_cli.commands),
        ("tap-key", key_cli.commands),
    ],
)
def test_every_command_is_documented(program: str, commands: dict[str, object]) -> None:
    text = (DOCS / "commands.md").read_text()
    lines = "\n".join(line for line in text.splitlines() if f"`{program}" in line)
    missing = [name for name in commands if f"{name}" not in lines and name != "handle"]
    assert missing == []


def test_every_result_is_documented() -> None:
    text = " ".join((DOCS / "protocol.md").read_text().split())
    assert [result.name for result in Result if f"{result.value:02X} {result.words}" not in text] == []


def test_every_command_of_the_key_is_documented() -> None:
    rows = re.findall(r"^\| ([0-9A-F]{2}) \| ([A-Z ]+) \|", (DOCS / "trusted-key.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((f"{ins:02X}", ins.title) for ins in KeyIns)


def test_every_link_is_documented() -> None:
    text = (DOCS / "links.md").read_text()
    assert [scheme for scheme in SCHEMES if scheme != "memory" and f"`{scheme}:" not in text] == []


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_design_has_a_test(row: str) -> None:
    mark = f'requirement("{row}")'
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if mark in path.read_text()]
    assert [path for path in marked if path != Path(__file__)]


@pytest.mark.parametrize("name", ["README.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md"))])
def test_every_link_between_documents_leads_somewhere(name: str) -> None:
    document = ROOT / name
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_folder_of_the_code_is_in_the_house() -> None:
    text = (DOCS / "architecture.md").read_text()
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    assert [name for name in packages if f"{name}/" not in text] == []
