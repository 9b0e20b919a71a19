# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The card leaves, or the trusted world dies, before or after each command: nobody is charged twice, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from pos.journal import Journal, Record, State
from pos.outcome import Outcome, OutcomeKind
from pos.terminal import Terminal
from protocol.commands import Ins
from protocol.money import Amount
from protocol.transport.base import CardLink
from protocol.transport.fault import Fault, inject
from tests.end_to_end.commands import wait_for_end
from tests.end_to_end.parties import HookedCard, ToldLaboratory, link_to, terminal_like
from wallet.tee.contract import TeeError

EURO = Amount.parse("1.00", "EUR")
EVERY_APDU = (1, 2, 3, 4, 5)
TORN, APPROVED = OutcomeKind.TORN, OutcomeKind.APPROVED


def tear(laboratory: ToldLaboratory, folder: Path, link: CardLink) -> tuple[Outcome, list[Record], int]:
    """Charge 1.00 EUR; return the outcome, the terminal's journal and how much was deducted in minor units."""
    before = balance(laboratory)
    with Terminal(terminal_like(laboratory.home.path), Journal(folder)) as terminal:
        outcome = terminal.charge(EURO, link)
        records = terminal._journal.records()
        after = balance(laboratory)
        assert terminal.charge(EURO, link_to(laboratory.phone.card)).kind is APPROVED  # the next tap works
    assert after - balance(laboratory) == 100
    return outcome, records, before - after


def balance(laboratory: ToldLaboratory) -> int:
    """Return the balance in minor units; the first call after the trusted world died only starts it again."""
    with contextlib.suppress(TeeError):
        laboratory.phone.view()
    return laboratory.balance.minor


def card_link(laboratory: ToldLaboratory) -> CardLink:
    return link_to(laboratory.phone.card)


def removed_before(laboratory: ToldLaboratory, apdu: int) -> CardLink:
    return inject(card_link(laboratory), Fault.parse(f"tear@frame:{2 * apdu - 1}"))


def answer_lost(laboratory: ToldLaboratory, apdu: int) -> CardLink:
    return inject(card_link(laboratory), Fault.parse(f"tear@frame:{2 * apdu}"))


@pytest.mark.attack("T1")
@pytest.mark.parametrize("apdu", EVERY_APDU)
def test_a_card_removed_before_an_apdu(laboratory: ToldLaboratory, tmp_path: Path, apdu: int) -> None:
    outcome, records, deducted = tear(laboratory, tmp_path, removed_before(laboratory, apdu))
    kind, charged, states, money = {
        4: (TORN, None, [State.OPEN], 0),
        5: (APPROVED, True, [State.APPROVED], 100),
    }.get(apdu, (TORN, False, [], 0))
    assert (outcome.kind, outcome.charged, deducted) == (kind, charged, money)
    assert [one.state for one in records] == states
    assert not any(one.confirmed for one in records)


@pytest.mark.attack("T1")
@pytest.mark.parametrize("apdu", EVERY_APDU)
def test_a_card_removed_before_its_answer_arrives(laboratory: ToldLaboratory, tmp_path: Path, apdu: int) -> None:
    outcome, records, deducted = tear(laboratory, tmp_path, answer_lost(laboratory, apdu))
    kind, charged, states, money = {
        4: (TORN, None, [State.OPEN], 100),
        5: (APPROVED, True, [State.APPROVED], 100),
    }.get(apdu, (TORN, False, [], 0))
    assert (outcome.kind, outcome.charged, deducted) == (kind, charged, money)
    assert [one.state for one in records] == states


def test_the_screen_says_whether_something_may_have_been_charged(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    outcome, _, _ = tear(laboratory, before, removed_before(laboratory, 2))
    assert "nothing was charged" in outcome.reason
    outcome, _, _ = tear(laboratory, after, answer_lost(laboratory, 4))
    assert "the result is not known" in outcome.reason


def test_a_torn_payment_can_be_told_from_its_reference(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    outcome, [record], _ = tear(laboratory, tmp_path, answer_lost(laboratory, 4))
    assert record.transaction_id.hex() == outcome.reference
    assert (record.amount, record.currency, record.card) == (100, 978, outcome.card)


def test_both_histories_know_of_a_receipt_that_was_lost(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    with Terminal(terminal_like(laboratory.home.path), Journal(tmp_path)) as terminal:
        terminal.charge(EURO, answer_lost(laboratory, 4))
    assert laboratory.history()[-1].what == "deducted, not confirmed"
    with Journal(tmp_path) as journal:
        assert [one.state for one in journal.records()] == [State.OPEN]


def test_a_torn_tap_spends_its_card(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    with Terminal(terminal_like(laboratory.home.path), Journal(tmp_path)) as terminal:
        torn = terminal.charge(EURO, answer_lost(laboratory, 4))
        again = terminal.charge(EURO, card_link(laboratory))
    assert torn.card != again.card
    assert torn.reference != again.reference


@pytest.mark.attack("T4")
@pytest.mark.parametrize("step", [Ins.SELECT, Ins.RELAY_CHECK, Ins.GET_VIRTUAL_CARD, Ins.DEBIT, Ins.CONFIRM])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_trusted_world_killed_at_any_step(laboratory: ToldLaboratory, tmp_path: Path, step: Ins, when: str) -> None:
    def kill(apdu: bytes) -> None:
        pid = laboratory.phone.tee.pid
        if apdu[1] == step and pid is not None:
            os.kill(pid, signal.SIGKILL)

    card = laboratory.phone.card
    hooked = HookedCard(card, hook=kill) if when == "before" else HookedCard(card, after=kill)
    outcome, records, deducted = tear(laboratory, tmp_path, link_to(hooked))
    assert outcome.approved == (deducted == 100)
    assert [one.state for one in records] == {True: [State.APPROVED], None: [State.OPEN], False: []}[outcome.charged]
    assert outcome.approved is (step is Ins.CONFIRM or (step, when) == (Ins.DEBIT, "after"))


def test_a_killed_trusted_world_is_gone_before_another_one_serves(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    balance(laboratory)
    first = laboratory.phone.tee.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for_end(first)
    with Terminal(terminal_like(laboratory.home.path), Journal(tmp_path)) as terminal:
        terminal.charge(EURO, card_link(laboratory))
        assert terminal.charge(EURO, card_link(laboratory)).kind is APPROVED
    assert laboratory.phone.tee.pid not in (None, first)
