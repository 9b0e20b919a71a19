# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The transaction, with a real wallet at the other end: order, dates, amounts, and what a script can do with it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.fixtures import Laboratory
from pos.journal import Journal, State
from pos.outcome import Outcome, OutcomeKind, Progress, Step
from pos.terminal import NOT_KNOWN, Terminal, TerminalOptions
from pos.ui import Screen
from protocol import tally
from protocol.apdu import Command
from protocol.commands import Ins
from protocol.errors import UsageError
from protocol.money import Amount
from protocol.transport.fault import Fault, inject
from protocol.transport.memory import MemoryPort
from protocol.transport.trace import TracingLink
from tests.end_to_end.commands import serving, tap_here
from tests.end_to_end.parties import PlainCard, WatchedLink, link_to, terminal_like

CENT = Amount.parse("0.01", "EUR")
DAY = 86_400


def instructions(link: TracingLink) -> list[int]:
    return [Command.decode(one.command).ins for one in link.exchanges]


def test_a_tap_is_five_commands_in_their_order(laboratory: Laboratory) -> None:
    link = TracingLink(laboratory.link)
    assert laboratory.terminal.charge(CENT, link).approved
    assert instructions(link) == [Ins.SELECT, Ins.RELAY_CHECK, Ins.GET_VIRTUAL_CARD, Ins.DEBIT, Ins.CONFIRM]


def test_the_terminal_does_no_more_cryptography_than_the_protocol_says(laboratory: Laboratory) -> None:
    before = tally.snapshot()
    assert laboratory.charge("0.01").approved
    done = tally.since(before)
    assert {operation.value: done[operation] for operation in tally.Operation if operation != "sync"} == {
        "sign": 1,
        "verify": 3,
        "seal": 0,
        "open": 1,
    }


def test_the_whole_tap_stays_within_its_budget(laboratory: Laboratory) -> None:
    air = laboratory.charge("0.01").air
    assert air.bytes_command + air.bytes_response <= 850
    assert air.milliseconds() <= 87
    assert air.milliseconds_to_receipt <= 82


@pytest.mark.parametrize("amount", [Amount.parse("0.00", "EUR"), Amount.parse("1.00", "USD"), Amount.parse("1", "JPY")])
def test_zero_or_another_currency_is_no_charge(laboratory: Laboratory, amount: Amount) -> None:
    with pytest.raises(UsageError, match="more than 0 and in EUR"):
        laboratory.terminal.charge(amount, laboratory.link)


@pytest.mark.parametrize(("days", "reason"), [(90, "certificate expired"), (-90, "certificate not yet valid")])
def test_the_terminal_judges_the_card_by_its_own_date(
    laboratory: Laboratory, tmp_path: Path, days: int, reason: str
) -> None:
    before = laboratory.balance
    identity = terminal_like(laboratory.home.path)
    with Terminal(identity, Journal(tmp_path), clock=lambda: time.time() + days * DAY) as terminal:
        outcome = terminal.charge(CENT, link_to(laboratory.phone.card))
    assert (outcome.kind, outcome.reason, laboratory.balance) == (OutcomeKind.NOT_VERIFIED, reason, before)


def test_no_card_in_time_is_an_outcome(laboratory: Laboratory, tmp_path: Path) -> None:
    options = TerminalOptions(timeout=0.0)
    with Terminal(terminal_like(laboratory.home.path), Journal(tmp_path), options) as terminal:
        outcome = terminal.charge(CENT, "memory:nobody")
    assert (outcome.kind, outcome.steps) == (OutcomeKind.NO_CARD, ())


def test_a_scripted_charge_yields_each_step_when_it_was_taken(laboratory: Laboratory) -> None:
    link = TracingLink(laboratory.link)
    taken = {one.step: instructions(link) for one in laboratory.terminal.transaction(CENT, link)}
    assert {step: len(sent) for step, sent in taken.items()} == {
        Step.NAME_SENT: 0,
        Step.CARD_ASKED: 2,
        Step.CARD_CHECKED: 3,
        Step.PAID: 4,
    }


def test_a_charge_that_a_script_gives_up_sends_nothing_more(laboratory: Laboratory) -> None:
    before = laboratory.balance
    link = TracingLink(laboratory.link)
    steps = laboratory.terminal.transaction(CENT, link)
    while next(steps).step is not Step.CARD_CHECKED:
        pass
    steps.close()
    assert Ins.DEBIT not in instructions(link)
    assert laboratory.balance == before
    assert laboratory.charge("0.01").approved


@pytest.mark.parametrize("atr", [b"", b"\x3b", b"\x3b\x8f\x80\x01"])
def test_a_card_with_a_malformed_answer_to_reset_is_not_trusted(laboratory: Laboratory, atr: bytes) -> None:
    port = MemoryPort("malformed")
    port.atr = atr
    port.present(PlainCard())
    outcome = laboratory.terminal.charge(CENT, "memory:malformed")
    port.close()
    assert (outcome.kind, outcome.charged) == (OutcomeKind.NOT_VERIFIED, False)


def test_every_charge_that_reached_debit_has_one_line_in_the_journal(laboratory: Laboratory, tmp_path: Path) -> None:
    identity = terminal_like(laboratory.home.path)
    link = link_to(laboratory.phone.card)
    with Terminal(identity, Journal(tmp_path)) as terminal:
        outcomes = [terminal.charge(Amount.parse(text, "EUR"), link) for text in ("0.01", "99.00", "999.00")]
    with Journal(tmp_path) as journal:
        records = journal.records()
    assert [one.kind for one in outcomes] == [OutcomeKind.APPROVED, OutcomeKind.SEE_PHONE, OutcomeKind.DECLINED]
    assert [one.transaction_id.hex() for one in records] == [one.reference for one in outcomes]
    assert [(one.state, one.reason) for one in records] == [
        (State.APPROVED, ""),
        (State.REFUSED, "see phone"),
        (State.REFUSED, "insufficient funds"),
    ]
    assert all(one.confirmed and len(one.signature) == 64 for one in records)


# --- Ctrl-C


def charge_interrupted_at(laboratory: Laboratory, ins: Ins, again: float = 0.0) -> Outcome | None:
    """Charge 0.01 EUR while somebody presses Ctrl-C as the command `ins` leaves the terminal; None when that ends it all."""

    def press(apdu: bytes) -> None:
        if apdu[1] == ins:
            raise KeyboardInterrupt

    with terminal_of(laboratory, again=again) as terminal:
        try:
            return terminal.charge(CENT, WatchedLink(laboratory.link, press))
        except KeyboardInterrupt:
            return None


@contextmanager
def terminal_of(laboratory: Laboratory, again: float) -> Iterator[Terminal]:
    """Another terminal for the laboratory's wallet."""
    options = TerminalOptions(timeout=1.0, again=again)
    with (
        tempfile.TemporaryDirectory() as folder,
        Terminal(terminal_like(laboratory.home.path), Journal(Path(folder)), options) as terminal,
    ):
        yield terminal


@pytest.mark.parametrize("ins", [Ins.SELECT, Ins.RELAY_CHECK, Ins.GET_VIRTUAL_CARD], ids=lambda ins: ins.name)
def test_ctrl_c_before_anything_is_charged_is_no_outcome(laboratory: Laboratory, ins: Ins) -> None:
    assert charge_interrupted_at(laboratory, ins, again=30.0) is None


def test_ctrl_c_while_the_debit_is_on_its_way_ends_with_a_result_not_known(laboratory: Laboratory) -> None:
    outcome = charge_interrupted_at(laboratory, Ins.DEBIT, again=30.0)
    assert outcome is not None
    assert (outcome.kind, outcome.charged, outcome.reason) == (OutcomeKind.TORN, None, NOT_KNOWN)
    assert Step.PRESENT_AGAIN not in [one.step for one in outcome.steps]


def test_ctrl_c_after_the_receipt_was_written_down_does_not_hide_that_it_was_paid(laboratory: Laboratory) -> None:
    before = laboratory.balance
    outcome = charge_interrupted_at(laboratory, Ins.CONFIRM)
    assert outcome is not None
    assert (outcome.kind, outcome.charged, outcome.receipt_verified) == (OutcomeKind.APPROVED, True, True)
    assert before.minor - laboratory.balance.minor == 1


@pytest.mark.parametrize(
    ("step", "fault", "kind"),
    [
        (Step.CARD_CHECKED, "delay@frame:1", None),
        (Step.PAID, "delay@frame:1", OutcomeKind.APPROVED),
        (Step.PRESENT_AGAIN, "tear@frame:8", OutcomeKind.TORN),
    ],
)
def test_ctrl_c_between_two_steps_ends_the_charge_with_what_is_known(
    laboratory: Laboratory, step: Step, fault: str, kind: OutcomeKind | None
) -> None:
    with terminal_of(laboratory, again=30.0) as terminal:
        steps = terminal.transaction(CENT, inject(laboratory.link, Fault.parse(fault)))
        while next(steps).step is not step:
            pass
        with pytest.raises((KeyboardInterrupt, StopIteration)) as ended:
            steps.throw(KeyboardInterrupt())
    assert kind is (ended.value.value.kind if isinstance(ended.value, StopIteration) else None)


@pytest.mark.parametrize("drawn", ["progress", "result"])
def test_ctrl_c_while_the_screen_is_drawn_does_not_hide_what_was_paid(
    home: Path, monkeypatch: pytest.MonkeyPatch, drawn: str
) -> None:
    def press(_: Screen, shown: Progress | Outcome) -> None:
        if not isinstance(shown, Progress) or shown.step is Step.PAID:
            raise KeyboardInterrupt

    monkeypatch.setattr(Screen, drawn, press)
    with serving(home):
        assert tap_here("pos", "charge", "1.00", home=home).code == 0
