# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Torture itself: a sample of it, the same cases for the same seed, and that it finds what is broken on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import money
from lab.key_process import KeyProcess
from lab.torture import key, tears
from lab.torture.arena import Arena, Tally, charge
from lab.torture.tears import Manner
from pos.journal import Journal
from protocol.transport.fault import Fault, inject
from wallet.account import Account

FOUND = ("lost", "made", "double_charged", "bricked", "unsettled")
DEBIT_ANSWER = "tear@frame:14"  # on the air; the card's answer before it came in two blocks
ONE_MANNER = (Manner("by name"),)


@pytest.mark.attack("T1")
@pytest.mark.attack("T4")
@pytest.mark.attack("T5")
def test_quick_torture_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab.torture", "--quick", "--json"], capture_output=True, text=True, timeout=400
    )
    report: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode, report["findings"], done.stderr) == (0, [], ""), report
    assert {name: report[name] for name in FOUND} == dict.fromkeys(FOUND, 0)
    assert report["left_out"] is None
    assert report["cases"] >= 250
    assert report["torn"] >= 200
    assert report["killed"] == 18 + 2  # parties of a tap, and with a Key
    assert report["settled_by_tap"] > 0
    assert report["settled_by_issuer"] == 4
    endurance = report["endurance"]
    assert endurance["descriptors"]["first"] == endurance["descriptors"]["last"]


def _tear(folder: Path, seed: int) -> Tally:
    with Arena(folder, seed) as arena:
        tears.tear(arena, stride=150, manners=ONE_MANNER)
        return arena.tally


def test_a_seed_repeats_its_cases(tmp_path: Path) -> None:
    first, second = _tear(tmp_path / "one", 5), _tear(tmp_path / "two", 5)
    assert first == second
    assert first.is_clean


def test_a_terminal_that_forgets_what_it_was_about_to_charge_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Arena(tmp_path / "home", 1) as arena:
        monkeypatch.setattr(Journal, "open", lambda *_: None)
        arena.case("answer lost", lambda terminal: charge(terminal, inject(arena.link(), Fault.parse("tear@byte:800"))))
        assert arena.tally.lost + arena.tally.made > 0


def test_a_terminal_that_does_not_settle_what_is_open_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pos.terminal.settle_open", lambda *_: [])
    with Arena(tmp_path / "home", 1) as arena:
        link = inject(arena.link(), Fault.parse(DEBIT_ANSWER))
        arena.case("answer lost", lambda terminal: charge(terminal, link))
        assert (arena.tally.unsettled, arena.tally.lost) == (1, 1)


def test_a_terminal_that_charges_again_without_asking_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pos.terminal.Terminal._was_paid", lambda *_: False)
    with Arena(tmp_path / "home", 1) as arena:
        arena.terminal(again=5.0)
        link = inject(arena.link(), Fault.parse(DEBIT_ANSWER))
        arena.case("answer lost", lambda terminal: charge(terminal, link))
        assert arena.tally.double_charged == 1


def test_a_key_that_does_not_come_back_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyProcess, "restart", lambda _: None)
    tally = key.trouble(tmp_path / "home", 1, 2, lambda: None)
    assert (tally.killed, tally.bricked, tally.lost, tally.made) == (1, 1, 0, 0)


def test_money_is_found_wherever_it_is(tmp_path: Path) -> None:
    with Arena(tmp_path / "home", 1) as arena:
        laboratory = arena.laboratory
        whole = money.count(laboratory.home, laboratory.phone.tee, arena._issuer)
        assert (whole.funded, whole.in_wallets, whole.missing) == (10_000_000, 10_000_000, 0)
        laboratory.charge("10.00")
        paid = money.count(laboratory.home, laboratory.phone.tee, arena._issuer)
        assert (paid.in_wallets, paid.not_listed, paid.open, paid.missing) == (9_999_000, 1000, 0, 0)
        arena.close_books("one payment")
        cleared = money.count(laboratory.home, laboratory.phone.tee, arena._issuer)
        assert (cleared.not_listed, cleared.open, cleared.paid, cleared.missing) == (0, 0, 1000, 0)
        assert Account(laboratory.phone.tee, arena._issuer).view().balance == 9_999_000
