# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What people see, on a real terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.end_to_end.commands import PATIENCE, command_line, serving, tap

MASKED = r"999910••••••\d{4}"


def spawn(program: str, *arguments: str, home: Path) -> Any:
    """Start a command on a pseudo-terminal of 24 lines of 100 columns."""
    executable, *rest = command_line(program, *arguments, home=home)
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    environment.pop("NO_COLOR", None)
    return pexpect.spawn(executable, rest, env=environment, encoding="utf-8", timeout=PATIENCE, dimensions=(24, 100))


def plain(text: str) -> str:
    """Return what a terminal would show, without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def end(child: Any) -> tuple[str, int]:
    """Wait for the end; return what was still shown, and the exit code."""
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus is not None
    return plain(child.before), child.exitstatus


@pytest.fixture
def wallet(home: Path) -> Any:
    child = spawn("wallet", "serve", home=home)
    yield child
    child.close(force=True)


def test_the_wallet_shows_its_card_and_what_just_happened(home: Path, wallet: Any) -> None:
    wallet.expect("TapLab")
    wallet.expect(MASKED)
    wallet.expect(r"100\.00 EUR")
    wallet.expect("hold the phone to a terminal")
    assert tap("pos", "charge", "12.50", home=home).code == 0
    wallet.expect(r"87\.50 EUR")
    wallet.expect(r"paid: 12\.50 EUR to Corner Bakery")


def test_the_payment_stays_on_the_wallets_screen(home: Path, wallet: Any) -> None:
    wallet.expect("hold the phone to a terminal")
    assert tap("pos", "charge", "12.50", home=home).code == 0
    wallet.expect("paid: ")
    wallet.sendintr()
    shown, code = end(wallet)
    last = ("paid: " + shown).split("╭")[-1]
    assert code == 130
    assert "12.50 EUR to Corner Bakery" in last


def test_the_wallet_shows_why_it_did_not_pay(home: Path, wallet: Any) -> None:
    wallet.expect("hold the phone to a terminal")
    assert tap("pos", "charge", "500.00", home=home).code == 10
    wallet.expect(r"not paid \(insufficient funds\): 500\.00 EUR")


def test_ctrl_c_gives_the_terminal_back(wallet: Any) -> None:
    wallet.expect("hold the phone to a terminal")
    wallet.sendintr()
    wallet.expect_exact("\x1b[?25h")  # the cursor is visible again
    shown, code = end(wallet)
    assert code == 130
    assert "interrupted" in shown
    assert "Traceback" not in shown


def test_the_terminal_shows_amount_progress_and_receipt(home: Path) -> None:
    with serving(home):
        shown, code = end(spawn("pos", "charge", "12.50", home=home))
    lines = [line.strip() for line in shown.splitlines()]
    assert code == 0
    assert lines[0] == "Corner Bakery   12.50 EUR"
    assert lines[1] == "Present card"
    assert "● ● ● ●" in shown
    assert any(line.endswith("APPROVED") for line in lines)
    for row in (r"paid to +Corner Bakery", r"amount +12\.50 EUR", rf"card +{MASKED}", r"receipt +signature verified"):
        assert re.search(row, shown)


def test_the_terminal_shows_why_nothing_was_charged(home: Path) -> None:
    with serving(home):
        shown, code = end(spawn("pos", "charge", "500.00", home=home))
    assert code == 10
    assert "DECLINED: insufficient funds" in shown
    assert "paid to" not in shown


def test_the_terminal_waits_for_a_card_and_can_be_interrupted(home: Path) -> None:
    child = spawn("pos", "charge", "12.50", home=home)
    child.expect("Present card")
    child.sendintr()
    shown, code = end(child)
    assert code == 130
    assert "interrupted" in shown
    assert "Traceback" not in shown
