# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Terminals, a wallet and an issuer, with torn taps, restores, time and dishonest players in any order: the money adds up."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from issuer.service import Issuer
from lab import money
from lab.fixtures import Laboratory, Setup, set_up_terminal
from pos import settlement as pos_settlement
from pos.identity import Identity
from pos.journal import Journal, Record, State
from pos.terminal import Terminal, TerminalOptions
from protocol.errors import TapLabError
from protocol.issuing import decode_message, encode_message, expect
from protocol.money import Amount
from protocol.settlement import Claim, ReportAnswer, Settlement, TerminalReport, Verdict, Void
from protocol.transport.fault import Fault
from protocol.transport.field import FieldLink
from protocol.transport.issuer import IssuerLink
from wallet.account import Account
from wallet.phone import Phone
from wallet.tee.contract import CommandId, TeeError

DAY = 24 * 3600
GROUP_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # n of P-256, SEC 2 §2.4.2
TERMINALS = st.sampled_from(["TERM0001", "TERM0002"])
SMALL = st.integers(1, 3000)


class NearIssuer(IssuerLink):
    """The issuer in this process, at a time of the test's choosing; keeps what it answered."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        super().__init__(f"embedded:{folder}")
        self.issuer = Issuer(folder, clock)
        self.settlements: list[Settlement] = []

    def exchange(self, request: bytes) -> bytes:
        answer = self.issuer.handle(request)
        decoded = decode_message(answer)
        if isinstance(decoded, Settlement):
            self.settlements.append(decoded)
        return answer

    def close(self) -> None:
        self.issuer.close()


class MoneyMachine(RuleBasedStateMachine):
    """One wallet, two terminals, one issuer. After every step each side is asked where the money is."""

    template: ClassVar[Path]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="taplab-machine-"))
        home = shutil.copytree(self.template, self.folder / "home")
        self.laboratory = Laboratory(home=home, terminal_options=TerminalOptions(timeout=1.0))
        self.now = time.time()
        self.issuer = NearIssuer(self.laboratory.home.issuer, lambda: self.now)
        self.terminals = {name: self._terminal(name) for name in ("TERM0001", "TERM0002")}
        self.copy = self._log.read_bytes()
        self.claimed: list[Claim] = []
        self.loads = 10_000

    def _terminal(self, name: str) -> tuple[Identity, Journal]:
        self.laboratory.terminal.close()
        folder = self.folder / "home" / "pos"
        if name != "TERM0001":
            own = self.folder / name
            (own / "issuer").parent.mkdir()
            own_home = replace(self.laboratory.home, path=own)
            shutil.copytree(self.laboratory.home.issuer, own_home.issuer)
            set_up_terminal(own_home, Setup(terminal_id=name))
            self._certify_here(own_home.issuer)
            folder = own_home.pos
        terminal = Terminal.open(folder.parent)
        return terminal._identity, terminal.journal

    def _certify_here(self, other: Path) -> None:
        """The second terminal's issuer has the same keys: take its books, which have both terminals in them."""
        self.issuer.close()
        shutil.copytree(other, self.laboratory.home.issuer, dirs_exist_ok=True)
        self.issuer = NearIssuer(self.laboratory.home.issuer, lambda: self.now)

    @property
    def _log(self) -> Path:
        return self.laboratory.home.wallet / "tee" / "state.log"

    @property
    def account(self) -> Account:
        return Account(self.laboratory.phone.tee, self.issuer)

    def _charge(self, name: str, cents: int, fault: str = "") -> None:
        identity, journal = self.terminals[name]
        link = FieldLink(self.laboratory.phone.card)
        options = TerminalOptions(timeout=1.0, fault=Fault.parse(fault) if fault else None)
        Terminal(identity, journal, options, lambda: self.now).charge(Amount.parse(f"{cents / 100:.2f}", "EUR"), link)

    # --- what honest people do

    @rule(name=TERMINALS, cents=SMALL)
    def pay(self, name: str, cents: int) -> None:
        self._charge(name, cents)

    @rule(name=TERMINALS, cents=SMALL, frame=st.integers(3, 17))
    def torn(self, name: str, cents: int, frame: int) -> None:
        self._charge(name, cents, f"tear@frame:{frame}")

    @rule()
    def sync(self) -> None:
        self.account.sync()
        if not self.laboratory.phone.view().locked:
            self.account.refill()

    @rule(name=TERMINALS)
    def claim(self, name: str) -> None:
        self._settle(name, void_after=30 * DAY)

    @rule(name=TERMINALS)
    def give_up(self, name: str) -> None:
        self._settle(name, void_after=0)

    def _settle(self, name: str, void_after: float) -> None:
        identity, journal = self.terminals[name]
        pos_settlement.settle(identity, journal, self.issuer, void_after, self.now)

    @rule(cents=SMALL)
    def load(self, cents: int) -> None:
        try:
            loaded = self.account.load(Amount.parse(f"{cents / 100:.2f}", "EUR"))
        except TapLabError:
            assert self.laboratory.phone.view().locked
        else:
            assert loaded.amount.minor > 0

    @rule(days=st.integers(1, 4))
    @precondition(lambda self: self.now < time.time() + 20 * DAY)
    def days_pass(self, days: int) -> None:
        self.now += days * DAY
        self.issuer.issuer.settle()

    # --- what happens to phones

    @rule()
    def keep_a_copy(self) -> None:
        self.copy = self._log.read_bytes()

    @rule()
    def put_the_copy_back(self) -> None:
        self.laboratory.phone.close()
        self._log.write_bytes(self.copy)
        self.laboratory.phone = Phone(self.laboratory.home.wallet, self.laboratory.home.issuer_url)

    # --- what dishonest people do

    def _approved(self, name: str) -> list[Record]:
        return [one for one in self.terminals[name][1].records() if one.state is State.APPROVED]

    def _say(self, claims: list[Claim], voids: list[Void]) -> tuple[Verdict, ...]:
        report = TerminalReport(tuple(claims), tuple(voids))
        return expect(self.issuer.exchange(encode_message(report)), ReportAnswer).verdicts

    @rule(name=TERMINALS)
    def claim_again_in_the_other_form_of_the_signature(self, name: str) -> None:
        identity, _ = self.terminals[name]
        for record in self._approved(name):
            s = GROUP_ORDER - int.from_bytes(record.signature[32:], "big")
            other = replace(record, signature=record.signature[:32] + s.to_bytes(32, "big"))
            before = self._paid()
            (verdict,) = self._say([pos_settlement._claim(identity, other)], [])
            assert verdict in (Verdict.PAID, Verdict.VOIDED, Verdict.TOO_LATE)
            assert self._paid() - before in (0, record.amount)
            again = self._paid()
            self._say([pos_settlement._claim(identity, record)], [])
            assert self._paid() == again

    @rule(name=TERMINALS)
    def claim_what_is_another_terminals(self, name: str) -> None:
        thief = self.terminals["TERM0002" if name == "TERM0001" else "TERM0001"][0]
        before = self._paid()
        for record in self._approved(name):
            assert self._say([pos_settlement._claim(thief, record)], []) == (Verdict.NOT_VALID,)
            assert self._say([], [pos_settlement._void(thief, record)]) == (Verdict.NOT_VALID,)
        assert self._paid() == before

    @rule(name=TERMINALS)
    def say_that_a_paid_one_failed(self, name: str) -> None:
        identity, journal = self.terminals[name]
        for record in self._approved(name)[:1]:
            (verdict,) = self._say([], [pos_settlement._void(identity, record)])
            assert verdict in (Verdict.VOIDED, Verdict.CHARGED_BACK)
            journal.judge({record.transaction_id: Verdict.VOIDED})

    @rule()
    @precondition(lambda self: bool(self.issuer.settlements))
    def give_an_old_answer_to_the_wallet(self) -> None:
        before = self.laboratory.phone.view()
        for old in self.issuer.settlements[-2:]:
            with pytest.raises(TeeError):
                self.laboratory.phone.tee.invoke_command(CommandId.SETTLE, old)
        assert self.laboratory.phone.view() == before

    def _paid(self) -> int:
        return self._count().paid

    def _count(self) -> money.Money:
        return money.count(self.laboratory.home, self.laboratory.phone.tee, self.issuer)

    @invariant()
    def money_adds_up(self) -> None:
        counted = self._count()
        assert counted.missing == 0, counted
        assert counted.in_wallets >= 0
        assert counted.lost == 0  # nobody here has a wallet's keys

    def teardown(self) -> None:
        if hasattr(self, "terminals"):
            for _, journal in self.terminals.values():
                journal.close()
            self.issuer.close()
            self.laboratory._port.close()
            self.laboratory.phone.close()
            shutil.rmtree(self.folder)


def test_the_money_adds_up_whatever_happens(made_home: Path) -> None:
    MoneyMachine.template = made_home
    machine: Any = MoneyMachine
    machine.TestCase.settings = settings(
        max_examples=12, stateful_step_count=25, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck), database=None, phases=[Phase.generate],
    )  # fmt: skip
    machine.TestCase("runTest").runTest()
