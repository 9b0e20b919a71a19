# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Where taps are tortured: a laboratory, and the judge who counts the money after each case."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import money
from lab.fixtures import Laboratory, Setup
from pos.journal import Record, State
from pos.outcome import Outcome
from pos.terminal import Terminal, TerminalOptions
from protocol.closing import Closing
from protocol.errors import TapLabError
from protocol.money import Amount
from protocol.transport.base import CardLink
from protocol.transport.field import FieldLink
from protocol.transport.issuer import IssuerLink
from wallet.account import Account
from wallet.phone import Phone, PhoneOptions
from wallet.tee.contract import TeeError

SALE = Amount.parse("1.00", "EUR")
NEXT_SALE = Amount.parse("0.01", "EUR")
_CARDS_AT_ONCE = 64
_CARDS_IN_HAND = 16
_TRIES = 4
_NEWEST = 12
_READS = 65_535  # torn taps in a row are this laboratory's business, not an attack on the pool
SETUP = Setup(balance="100000.00", cards=_CARDS_AT_ONCE, reads=_READS)


@dataclass(slots=True)
class Tally:
    """What torture did and found. Everything from `lost` on must be 0 at the end; `findings` says how to see it again."""

    cases: int = 0
    torn: int = 0
    killed: int = 0
    settled_by_tap: int = 0
    settled_by_issuer: int = 0
    lost: int = 0
    made: int = 0
    double_charged: int = 0
    bricked: int = 0
    unsettled: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def add(self, other: Tally) -> None:
        """Take over what another place counted."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def find(self, what: str, case: str) -> None:
        """Count a finding of kind `what`."""
        setattr(self, what, getattr(self, what) + 1)
        self.findings.append(f"{what}: {case}")


class Arena(Closing):
    """One laboratory; the wallet lies in a field for good."""

    def __init__(self, folder: Path, seed: int, tick: Callable[[], None] = lambda: None, *, key_link: str = "") -> None:
        """Set everything up in `folder`; `tick` is called after each case. `key_link` is where the wallet's Key is."""
        self.random = random.Random(seed)
        self.tally = Tally()
        self.tick = tick
        self._options = PhoneOptions(key_link=key_link)
        self.laboratory = Laboratory(
            SETUP, home=folder, options=self._options, terminal_options=TerminalOptions(timeout=1.0)
        )
        self._issuer = IssuerLink(self.laboratory.home.issuer_url)

    @property
    def balance(self) -> int:
        """What the trusted world holds, in minor units; it is started again if it was killed."""
        try:
            return self.laboratory.balance.minor
        except TeeError:
            return self.laboratory.balance.minor

    def link(self, *, frame: int = 256, extended: bool = True) -> FieldLink:
        """Return a field with the wallet in it."""
        return FieldLink(self.laboratory.phone.card, frame=frame, extended=extended)

    def terminal(self, **options: Any) -> Terminal:
        """Return the terminal with other options."""
        self.laboratory.terminal.close()
        self.laboratory.terminal = Terminal.open(self.laboratory.home.path, TerminalOptions(timeout=1.0, **options))
        return self.laboratory.terminal

    def leave_wallet(self) -> None:
        """End this process's wallet, so that another process can be it."""
        self.laboratory.phone.close()

    def come_back(self) -> None:
        """Be the wallet again."""
        home = self.laboratory.home
        self.laboratory.phone = Phone(home.wallet, home.issuer_url, self._options)

    def restock(self) -> None:
        """Keep cards in hand, so that no refill falls into a case."""
        account = Account(self.laboratory.phone.tee, self._issuer)
        view = account.view()
        if view.cards_left < _CARDS_IN_HAND:
            account.settle()
            account.apply(view.currency, _CARDS_AT_ONCE - view.cards_left)

    def case(self, name: str, attempt: Callable[[Terminal], object], *, kind: str = "torn") -> None:
        """Let `attempt` try the sale, then let the next customers pay until one has, then count the money.

        `attempt` may replace the laboratory's terminal. `kind` is what to count it as, if anything.
        """
        self.restock()
        before, terminal = self.balance, self.laboratory.terminal
        known = {one.transaction_id for one in terminal.journal.records(_NEWEST)}
        attempt(terminal)
        if kind:
            setattr(self.tally, kind, getattr(self.tally, kind) + 1)
        self._judge(name, before, known)

    def _judge(self, name: str, before: int, known: set[bytes]) -> None:
        self.tally.cases += 1
        left_open = {one.transaction_id for one in self._since(known) if one.state is State.OPEN}
        if not self._next_customer():
            self.tally.find("bricked", name)
            return
        records = self._since(known)
        approved = [one for one in records if one.state is State.APPROVED]
        deducted = before - self.balance
        if deducted > sum(one.amount for one in approved):
            self.tally.find("lost", name)
        if deducted < sum(one.amount for one in approved):
            self.tally.find("made", name)
        if sum(one.amount == SALE.minor for one in approved) > 1:
            self.tally.find("double_charged", name)
        settled = {one.transaction_id for one in records if one.state is not State.OPEN}
        self.tally.settled_by_tap += len(left_open & settled)
        for _ in left_open - settled:
            self.tally.find("unsettled", name)
        self.tick()

    def _since(self, known: set[bytes]) -> list[Record]:
        newest = self.laboratory.terminal.journal.records(_NEWEST)
        return [one for one in newest if one.transaction_id not in known]

    def _next_customer(self) -> bool:
        """Let somebody pay a little, which settles what is open; it may take a second try after something died."""
        return any(self._pays() for _ in range(_TRIES))

    def _pays(self) -> bool:
        try:
            return self.laboratory.terminal.charge(NEXT_SALE, self.link()).approved
        except TapLabError:
            return False

    def close_books(self, name: str) -> None:
        """Let terminal and wallet settle with the issuer, then ask everybody where the money is."""
        self.laboratory.terminal.settle(self._issuer, void_after=0.0)
        Account(self.laboratory.phone.tee, self._issuer).settle()
        missing = money.count(self.laboratory.home, self.laboratory.phone.tee, self._issuer).missing
        if missing:
            self.tally.find("lost" if missing > 0 else "made", f"{name}: {missing} of all the money")

    def close(self) -> None:
        """End every process."""
        self._issuer.close()
        self.laboratory.close()


def charge(terminal: Terminal, link: str | CardLink) -> Outcome | None:
    """Charge the sale; None when the terminal itself cannot go on."""
    try:
        return terminal.charge(SALE, link)
    except TapLabError:
        return None
