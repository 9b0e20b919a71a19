# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Settlement: merchants are paid once, wallets get back what nobody claims, and the sum of money stays what it was."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from console.home import Home
from issuer.register import Register
from issuer.service import Issuer
from lab.fixtures import Laboratory
from pos import identity
from pos.journal import State
from pos.outcome import OutcomeKind
from pos.terminal import TerminalOptions
from protocol.commands import Ins
from protocol.money import Amount
from protocol.settlement import SettledAs, Standing, Verdict
from protocol.transport.issuer import IssuerLink
from tests.end_to_end.commands import tap
from tests.end_to_end.parties import HookedCard, HostileTerminal, link_to
from tests.wallet.near_wallet import NearTrustedWorld
from wallet.account import Account, Synced
from wallet.tee.state import CREDENTIAL, TRANSACTION

WEEK = 7 * 24 * 3600
AFTER_THE_WINDOW = time.time() + WEEK + 3600


class Clearing:
    """A laboratory and its issuer, with a torn debit on request and the sum of all money."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.laboratory = Laboratory(home=home, terminal_options=TerminalOptions(timeout=1.0, again=0.0))

    def pay(self, amount: str) -> None:
        assert self.laboratory.charge(amount).approved

    def tear_after_debit(self, amount: str) -> None:
        """The wallet deducts and its answer is lost: the terminal does not know."""
        outcome = self.laboratory.charge(amount, fault="tear@frame:8")
        assert (outcome.kind, outcome.charged) == (OutcomeKind.TORN, None)

    def sync(self, at: float | None = None) -> Synced:
        with IssuerLink(self.laboratory.home.issuer_url, at) as issuer:
            return Account(self.laboratory.phone.tee, issuer).sync()

    def settle(self, void_after: float = WEEK, at: float | None = None) -> dict[Verdict, int]:
        with IssuerLink(self.laboratory.home.issuer_url, at) as issuer:
            return dict(self.laboratory.terminal.settle(issuer, void_after).verdicts)

    def expire(self, at: float = AFTER_THE_WINDOW) -> int:
        issuer = Issuer(self.home / "issuer", lambda: at)
        refunded = issuer.settle()
        issuer.close()
        return refunded

    @property
    def balance(self) -> int:
        return self.laboratory.balance.minor

    @property
    def books(self) -> tuple[int, int, int, int]:
        """By the issuer: in the wallet, deducted and not settled, with merchants, lost."""
        register = Register(self.home / "issuer")
        (row,) = register.wallets()
        register.close()
        assert row.loaded.minor == row.holds.minor + row.open.minor + row.paid.minor - row.lost.minor
        return row.holds.minor, row.open.minor, row.paid.minor, row.lost.minor


@pytest.fixture
def clearing(home: Path) -> Iterator[Clearing]:
    made = Clearing(home)
    yield made
    made.laboratory.close()


def test_a_merchant_is_paid_once_for_each_receipt(clearing: Clearing) -> None:
    clearing.pay("12.50")
    clearing.pay("2.50")
    assert clearing.settle() == {Verdict.PAID: 2}
    assert clearing.settle() == {}
    assert clearing.books == (8500, 0, 1500, 0)
    clearing.sync()
    assert clearing.books == (8500, 0, 1500, 0)
    assert clearing.balance == 8500


def test_a_list_before_the_claim_changes_nothing_about_who_is_paid(clearing: Clearing) -> None:
    clearing.pay("12.50")
    clearing.sync()
    assert clearing.books == (8750, 1250, 0, 0)
    assert clearing.settle() == {Verdict.PAID: 1}
    assert clearing.books == (8750, 0, 1250, 0)


def test_a_debit_that_stays_unknown_is_voided_and_the_wallet_gets_it_back(clearing: Clearing) -> None:
    clearing.tear_after_debit("12.50")
    assert clearing.balance == 8750
    assert clearing.settle() == {}  # not old enough
    assert clearing.settle(void_after=0) == {Verdict.VOIDED: 1}
    synced = clearing.sync()
    assert [one.outcome for one in synced.decided] == [SettledAs.REFUNDED]
    assert (clearing.balance, clearing.books) == (10000, (10000, 0, 0, 0))
    clearing.sync()
    assert clearing.balance == 10000


def test_a_void_that_comes_after_the_list_credits_at_the_next_sync(clearing: Clearing) -> None:
    clearing.tear_after_debit("12.50")
    assert clearing.sync().decided == ()
    assert clearing.books == (8750, 1250, 0, 0)
    clearing.settle(void_after=0)
    assert [one.outcome for one in clearing.sync().decided] == [SettledAs.REFUNDED]
    assert clearing.balance == 10000


def test_what_nobody_claims_comes_back_after_seven_days(clearing: Clearing) -> None:
    clearing.tear_after_debit("12.50")
    clearing.sync()
    assert clearing.expire(time.time() + WEEK - 60) == 0
    assert clearing.expire() == 1
    clearing.sync(AFTER_THE_WINDOW)
    assert (clearing.balance, clearing.books) == (10000, (10000, 0, 0, 0))


def test_a_claim_after_the_window_is_refused(clearing: Clearing) -> None:
    clearing.pay("12.50")
    clearing.sync()
    assert clearing.expire() == 1
    assert clearing.settle(at=AFTER_THE_WINDOW) == {Verdict.TOO_LATE: 1}
    clearing.sync(AFTER_THE_WINDOW)
    assert clearing.books == (10000, 0, 0, 0)


def test_a_claim_of_what_was_never_listed_is_always_in_time(clearing: Clearing) -> None:
    clearing.pay("12.50")
    assert clearing.settle(at=AFTER_THE_WINDOW) == {Verdict.PAID: 1}


def test_the_next_tap_settles_before_the_issuer_has_to(clearing: Clearing) -> None:
    clearing.tear_after_debit("12.50")
    clearing.pay("1.00")
    states = [record.state for record in clearing.laboratory.terminal.journal.records()]
    assert states == [State.APPROVED, State.APPROVED]
    assert clearing.settle(void_after=0) == {Verdict.PAID: 2}
    clearing.sync()
    assert clearing.books == (8650, 0, 1350, 0)


def test_a_settlement_in_the_middle_of_a_tap_leaves_the_tap_alone(clearing: Clearing) -> None:
    """As the wallet's own housekeeping does when somebody taps again at once."""
    clearing.pay("1.00")

    def settle_before_debit(apdu: bytes) -> None:
        if apdu[1] == Ins.DEBIT:
            clearing.sync()

    link = link_to(HookedCard(clearing.laboratory.phone.card, settle_before_debit))
    outcome = clearing.laboratory.terminal.charge(Amount.parse("10.00", "EUR"), link)
    assert (outcome.kind, outcome.charged) == (OutcomeKind.APPROVED, True)
    clearing.sync()
    assert clearing.settle() == {Verdict.PAID: 2}
    assert clearing.books == (8900, 0, 1100, 0)


def test_cards_that_have_expired_go_with_what_was_begun_with_them(clearing: Clearing) -> None:
    """A purse that is moved must not carry for ever what nobody comes back for."""
    link = link_to(clearing.laboratory.phone.card)
    HostileTerminal(link, identity.load(Home(clearing.home).pos)).read_card()
    link.deactivate()
    clearing.sync()
    before = _kept(clearing)
    assert before > 20  # cards, and what was begun with one
    clearing.sync(at=time.time() + 3 * 365 * 24 * 3600)  # its time is the wallet's from now on
    clearing.sync(at=time.time() + 3 * 365 * 24 * 3600)
    assert _kept(clearing) == 0


def _kept(clearing: Clearing) -> int:
    """Return how many cards and transactions the trusted world keeps."""
    near = NearTrustedWorld(clearing.home / "wallet")
    try:
        return near.kept(CREDENTIAL) + near.kept(TRANSACTION)
    finally:
        near.close()


def test_what_was_given_up_is_never_claimed_when_its_receipt_comes_after_all(clearing: Clearing) -> None:
    clearing.tear_after_debit("12.50")
    clearing.settle(void_after=0)
    outcome = clearing.laboratory.charge("1.00")
    assert outcome.approved
    assert outcome.settled == ()
    assert clearing.settle(void_after=0) == {Verdict.PAID: 1}
    clearing.sync()
    assert (clearing.balance, clearing.books) == (9900, (9900, 0, 100, 0))


def test_a_wallet_that_was_put_back_gets_what_terminals_do_not_claim(clearing: Clearing, tmp_path: Path) -> None:
    storage = clearing.home / "wallet" / "tee"
    clearing.pay("10.00")
    clearing.sync()
    copy = shutil.copy(storage / "state.log", tmp_path / "old")
    clearing.pay("20.00")
    clearing.pay("30.00")
    clearing.laboratory.phone.close()
    shutil.copy(copy, storage / "state.log")
    clearing.laboratory = _again(clearing)
    assert clearing.laboratory.phone.view().locked
    waiting = clearing.sync()
    assert (waiting.standing, waiting.view.locked) == (Standing.WAITING, True)
    assert clearing.settle() == {Verdict.PAID: 3}
    assert clearing.sync(waiting.until - 1).standing is Standing.WAITING
    synced = clearing.sync(AFTER_THE_WINDOW)
    assert (synced.standing, synced.view.locked, synced.view.cards_left) == (Standing.GOOD, False, 0)
    assert (clearing.balance, clearing.books) == (4000, (4000, 0, 6000, 0))
    with IssuerLink(clearing.laboratory.home.issuer_url, AFTER_THE_WINDOW) as issuer:
        assert Account(clearing.laboratory.phone.tee, issuer).refill().view.cards_left == 20


@pytest.mark.parametrize("verdict", [Verdict.VOIDED, Verdict.CHARGED_BACK])
def test_what_was_given_up_is_not_taken_when_its_receipt_comes_after_all(home: Path, verdict: Verdict) -> None:
    clearing = Clearing(home)
    clearing.tear_after_debit("12.50")
    [torn] = clearing.laboratory.terminal.journal.records()
    clearing.settle(void_after=0)
    clearing.laboratory.terminal.journal.judge({torn.transaction_id: verdict})
    clearing.pay("1.00")
    assert [one.state for one in clearing.laboratory.terminal.journal.records()] == [State.APPROVED] * 2
    clearing.laboratory.close()
    shown = tap("pos", "show", "--json", home=home).json
    assert (shown["taken"], shown["transactions"], shown["result_not_known"]) == ("1.00", 1, 0)
    assert "1.00 EUR in 1 transactions, and 0 more" in tap("pos", "show", home=home).out.replace("\u00a0", " ")


def _again(clearing: Clearing) -> Laboratory:
    clearing.laboratory.terminal.close()
    return Laboratory(home=clearing.home, terminal_options=TerminalOptions(timeout=1.0, again=0.0))


def test_the_commands_settle_and_both_histories_tell(home: Path) -> None:
    with Laboratory(home=home, terminal_options=TerminalOptions(timeout=1.0, again=0.0)) as laboratory:
        assert laboratory.charge("12.50", fault="tear@frame:8").kind is OutcomeKind.TORN
    (entry,) = [one for one in tap("wallet", "history", "--json", home=home).json if one["amount"]]
    assert entry["what"] == "deducted, not confirmed"
    (record,) = tap("pos", "history", "--json", home=home).json
    assert (record["state"], record["verdict"]) == ("open", None)
    assert "result not known" in tap("pos", "history", home=home).out
    assert tap("pos", "settle", "--json", home=home).json["result_not_known"] == 1
    settled = tap("pos", "settle", "--void-after", "0", "--json", home=home).json
    assert (settled["voided"], settled["result_not_known"], settled["paid_amount"]) == (1, 0, "0.00")
    synced = tap("wallet", "sync", "--json", home=home).json
    assert (synced["standing"], synced["refunded"], synced["balance"]) == ("good", 1, "100.00")
    assert "refunded by the issuer" in tap("wallet", "history", home=home).out
    assert "given up" in tap("pos", "history", home=home).out
    (wallet,) = tap("issuer", "show", "--json", home=home).json["wallets"]
    assert (wallet["loaded"], wallet["holds"], wallet["open"], wallet["paid"]) == ("100.00", "100.00", "0.00", "0.00")
    later = tap("issuer", "settle", "--at", "2027-06-01", "--json", home=home)
    assert (later.code, later.json) == (0, {"refunded": 0})
