# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The library: transactions as a script of one's own writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fixtures import Laboratory, Setup
from pos.outcome import Outcome, OutcomeKind, Step
from pos.terminal import Terminal, TerminalOptions
from protocol.errors import InUseError, LinkUnavailableError, UsageError
from protocol.money import Amount
from tests.end_to_end.commands import serving, tap
from tests.end_to_end.parties import EditingCard, link_to

PRICE = Amount.parse("12.50", "EUR")


@pytest.fixture
def link(home: Path, tmp_path: Path) -> Iterator[str]:
    """A wallet process that serves this link."""
    url = f"socket:{tmp_path / 'link'}"
    with serving(home, url):
        yield url


def test_a_transaction_yields_its_steps_in_order_and_returns_the_outcome(home: Path, link: str) -> None:
    with Terminal.open(home) as terminal:
        steps = terminal.transaction(PRICE, link)
        taken = []
        while True:
            try:
                taken.append(next(steps))
            except StopIteration as finished:
                outcome: Outcome = finished.value
                break
    assert [one.step for one in taken] == [Step.NAME_SENT, Step.CARD_ASKED, Step.CARD_CHECKED, Step.PAID]
    assert [one.step.value for one in taken] == ["S2", "S4", "S8", "S9"]
    assert outcome.approved
    assert outcome.steps == tuple(taken)
    assert [one.at for one in taken] == sorted(one.at for one in taken)


def test_one_terminal_charges_again_and_again(home: Path, link: str) -> None:
    with Terminal.open(home) as terminal:
        kinds = [terminal.charge(Amount.parse(text, "EUR"), link).kind for text in ("40.00", "40.00", "40.00", "5.00")]
    assert kinds == [OutcomeKind.APPROVED, OutcomeKind.APPROVED, OutcomeKind.DECLINED, OutcomeKind.APPROVED]


def test_two_terminals_at_one_home_are_refused(home: Path) -> None:
    with Terminal.open(home), pytest.raises(InUseError, match="another terminal process"):
        Terminal.open(home)


def test_a_home_without_a_terminal_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tap-pos init"):
        Terminal.open(tmp_path)


def test_a_link_that_cannot_be_opened_is_an_exception(home: Path, tmp_path: Path) -> None:
    with Terminal.open(home) as terminal:
        with pytest.raises(LinkUnavailableError):
            terminal.charge(PRICE, f"socket:{tmp_path}/no/such/folder?listen")
        with pytest.raises(UsageError):
            terminal.charge(PRICE, "no link")


def test_a_terminal_knows_who_it_is(home: Path) -> None:
    with Terminal.open(home, TerminalOptions(timeout=0.0)) as terminal:
        assert (terminal.merchant, terminal.currency.code) == ("Corner Bakery", "EUR")


def test_what_a_script_charged_is_in_the_commands_history(home: Path, link: str) -> None:
    with Terminal.open(home) as terminal:
        outcome = terminal.charge(PRICE, link)
    [line] = tap("pos", "history", "--json", home=home).json
    assert line["reference"] == outcome.reference


def test_a_laboratory_goes_with_everything_it_made() -> None:
    with Laboratory(Setup(balance="20.00", cards=2)) as laboratory:
        folder = laboratory.home.path
        assert laboratory.charge("12.50").approved
        assert str(laboratory.balance) == "7.50 EUR"
        tee = laboratory.phone.tee.pid
    assert not folder.exists()
    assert not Path(f"/proc/{tee}").exists()


def test_a_laboratory_can_be_kept(tmp_path: Path) -> None:
    with Laboratory(balance="20.00", home=tmp_path / "home") as laboratory:
        laboratory.charge("1.00")
    with Laboratory(home=tmp_path / "home") as laboratory:
        assert str(laboratory.balance) == "19.00 EUR"


def test_a_script_may_put_its_own_card_between(laboratory: Laboratory) -> None:
    seen: list[int] = []

    def watch(data: bytes) -> bytes:
        seen.append(len(data))
        return data

    card = EditingCard(laboratory.phone.card, 0x50, watch)
    assert laboratory.terminal.charge(Amount.parse("0.01", "EUR"), link_to(card)).approved
    assert len(seen) == 1
