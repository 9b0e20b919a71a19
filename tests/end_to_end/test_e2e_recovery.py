# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What a torn tap left open is settled at the next tap of that wallet, and nobody pays twice for one sale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.fixtures import Laboratory, Setup
from pos.identity import Identity
from pos.journal import Journal, State
from pos.outcome import Outcome, OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol.commands import Ins
from protocol.errors import CardRemovedError
from protocol.money import Amount
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink
from protocol.transport.memory import MemoryLink
from tests.end_to_end.parties import terminal_like

EURO = Amount.parse("1.00", "EUR")


@dataclass(slots=True)
class TornLink(CardLink):
    """Loses commands or answers: `losses` names the instruction and which of the two, each once, in order."""

    link: CardLink
    losses: list[tuple[Ins, str]]
    sent: list[int] = field(default_factory=list)

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        return self.link.activate(timeout)

    def transceive(self, apdu: bytes) -> bytes:
        self.sent.append(apdu[1])
        lost = self.losses[0] if self.losses and self.losses[0][0] == apdu[1] else None
        if lost is not None:
            self.losses.pop(0)
        if lost is None or lost[1] == "answer":
            answer = self.link.transceive(apdu)
        if lost is not None:
            self.link.deactivate()
            raise CardRemovedError("the card has left the field")
        return answer

    def deactivate(self) -> None:
        self.link.deactivate()

    def close(self) -> None:
        self.link.close()


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    with Laboratory(Setup(balance="200.00", cards=64)) as made:
        yield made


@dataclass(slots=True)
class Shop:
    """A terminal of its own certificate's journal, and the wallet it charges."""

    laboratory: Laboratory
    folder: Path
    identity: Identity

    def charge(self, losses: list[tuple[Ins, str]], again: float = 0.0) -> tuple[Outcome, list[int], int]:
        """Return the outcome, the instructions that were sent, and what the wallet lost in cents."""
        before = self.laboratory.balance.minor
        link = TornLink(MemoryLink(str(self.laboratory.home.path)), losses)
        options = TerminalOptions(timeout=1.0, again=again)
        with Terminal(self.identity, Journal(self.folder), options) as terminal:
            outcome = terminal.charge(EURO, link)
        return outcome, link.sent, before - self.laboratory.balance.minor

    @property
    def states(self) -> list[State]:
        with Journal(self.folder) as journal:
            return [record.state for record in journal.records()]


@pytest.fixture
def shop(laboratory: Laboratory, tmp_path: Path) -> Shop:
    return Shop(laboratory, tmp_path, terminal_like(laboratory.home.path))


@pytest.mark.attack("T2")
def test_a_receipt_that_was_lost_is_fetched_by_the_same_charge(shop: Shop) -> None:
    outcome, sent, paid = shop.charge([(Ins.DEBIT, "answer")], again=5.0)
    assert (outcome.kind, outcome.receipt_verified, paid) == (OutcomeKind.APPROVED, True, 100)
    assert (sent.count(Ins.DEBIT), sent.count(Ins.CANCEL)) == (1, 1)
    assert shop.states == [State.APPROVED]


def test_a_debit_that_never_arrived_is_cancelled_and_paid_in_the_same_charge(shop: Shop) -> None:
    outcome, sent, paid = shop.charge([(Ins.DEBIT, "command")], again=5.0)
    assert (outcome.kind, paid) == (OutcomeKind.APPROVED, 100)
    assert sent.count(Ins.DEBIT) == 2
    assert shop.states == [State.CANCELLED, State.APPROVED]


@pytest.mark.attack("T2")
@pytest.mark.parametrize("lost", [Ins.CANCEL, Ins.CONFIRM])
@pytest.mark.parametrize("part", ["command", "answer"])
@pytest.mark.parametrize("first", ["command", "answer"])
def test_each_step_of_the_recovery_may_be_lost_too(shop: Shop, first: str, lost: Ins, part: str) -> None:
    outcome, _, paid = shop.charge([(Ins.DEBIT, first), (lost, part)], again=5.0)
    assert (outcome.kind, paid) == (OutcomeKind.APPROVED, 100)
    assert shop.states.count(State.APPROVED) == 1
    assert State.OPEN not in shop.states


def test_the_next_charge_settles_an_earlier_one_and_says_so(shop: Shop) -> None:
    torn, _, paid = shop.charge([(Ins.DEBIT, "answer")])
    assert (torn.kind, torn.charged, paid) == (OutcomeKind.TORN, None, 100)
    outcome, _, _ = shop.charge([])
    assert outcome.approved
    assert outcome.settled == (torn.reference,)
    assert shop.states == [State.APPROVED, State.APPROVED]


@pytest.mark.attack("T3")
def test_another_card_does_not_inherit_a_charge(shop: Shop, tmp_path: Path) -> None:
    link = TornLink(MemoryLink(str(shop.laboratory.home.path)), [(Ins.DEBIT, "answer")])
    with Laboratory(home=tmp_path / "other") as other:
        before = other.balance

        class Swapped(TornLink):
            def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
                if Ins.DEBIT in self.sent:
                    self.link = MemoryLink(str(other.home.path))
                return self.link.activate(timeout)

        swapped = Swapped(link.link, link.losses)
        options = TerminalOptions(timeout=1.0, again=0.3)
        with Terminal(shop.identity, Journal(tmp_path), options) as terminal:
            outcome = terminal.charge(EURO, swapped)
        assert (outcome.kind, outcome.charged) == (OutcomeKind.TORN, None)
        assert swapped.sent.count(Ins.DEBIT) == 1
        assert other.balance == before


@pytest.mark.attack("M6")
def test_a_terminal_cannot_cancel_what_belongs_to_another(shop: Shop, laboratory: Laboratory, tmp_path: Path) -> None:
    torn, _, _ = shop.charge([(Ins.DEBIT, "answer")])
    elsewhere = Shop(laboratory, tmp_path / "elsewhere", terminal_like(laboratory.home.path))
    elsewhere.folder.mkdir()
    outcome, sent, _ = elsewhere.charge([])
    assert outcome.approved
    assert torn.reference not in outcome.settled
    assert sent.count(Ins.CANCEL) == 0


def test_the_wallets_history_tells_when_a_late_receipt_was_confirmed(shop: Shop) -> None:
    shop.charge([(Ins.DEBIT, "answer")])
    shop.charge([])
    for _ in range(100):
        whats = [entry.what for entry in shop.laboratory.phone.history.entries()[-2:]]
        if whats == ["paid", "paid"]:
            break
        shop.laboratory.phone.view()
    assert whats == ["paid", "paid"]
