# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""One side is gone for good after a torn tap: what is left goes to the issuer, and the issuer settles it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from lab import money
from lab.fixtures import Laboratory, Setup, set_up_terminal
from lab.torture.arena import SALE, Tally
from pos.journal import State
from pos.terminal import Terminal, TerminalOptions
from protocol.settlement import SettledAs, Standing, Verdict
from protocol.transport.issuer import IssuerLink
from wallet.account import Account
from wallet.phone import Phone

_WEEK = 7 * 24 * 3600
_LOST_ANSWER = "tear@frame:8"  # DEBIT's: the wallet has deducted, the terminal does not know


class _Torn:
    """A laboratory in which the answer to DEBIT was lost."""

    def __init__(self, folder: Path) -> None:
        self.laboratory = Laboratory(Setup(balance="20.00"), home=folder, terminal_options=TerminalOptions(timeout=1.0))
        self.laboratory.charge(str(SALE.decimal), fault=_LOST_ANSWER)

    def issuer(self, *, later: bool = False) -> IssuerLink:
        at = time.time() + _WEEK + 3600 if later else None
        return IssuerLink(self.laboratory.home.issuer_url, at)

    def sync(self, *, later: bool = False) -> tuple[SettledAs, ...]:
        with self.issuer(later=later) as link:
            return tuple(one.outcome for one in Account(self.laboratory.phone.tee, link).sync().decided)

    def void(self) -> dict[Verdict, int]:
        with self.issuer() as link:
            return dict(self.laboratory.terminal.settle(link, void_after=0.0).verdicts)

    @property
    def missing(self) -> int:
        with self.issuer() as link:
            return money.count(self.laboratory.home, self.laboratory.phone.tee, link).missing

    def close(self) -> None:
        self.laboratory.close()


def terminal_gone(folder: Path, tally: Tally) -> None:
    """The terminal burns: nobody claims, so the wallet has its money back after the claim window."""
    torn = _Torn(folder)
    torn.laboratory.terminal.close()
    shutil.rmtree(torn.laboratory.home.pos)
    set_up_terminal(torn.laboratory.home, Setup(terminal_id="TERM0002"))
    torn.laboratory.terminal = Terminal.open(torn.laboratory.home.path, TerminalOptions(timeout=1.0))
    first, second = torn.sync(), torn.sync(later=True)
    _judge(tally, "terminal gone", torn, (first, second) == ((), (SettledAs.REFUNDED,)), 2000)


def wallet_gone(folder: Path, tally: Tally) -> None:
    """The phone is lost: the terminal gives the payment up, and the books still hold all that was in it."""
    torn = _Torn(folder)
    verdicts = torn.void()
    open_left = [one for one in torn.laboratory.terminal.journal.records() if one.state is State.OPEN]
    settled = verdicts == {Verdict.VOIDED: 1} and all(one.verdict is Verdict.VOIDED for one in open_left)
    _judge(tally, "wallet gone", torn, settled, None)


def voided(folder: Path, tally: Tally) -> None:
    """The shopper never comes back here, but both sides still reach the issuer: VOID, and the money is back at once."""
    torn = _Torn(folder)
    settled = torn.void() == {Verdict.VOIDED: 1} and torn.sync() == (SettledAs.REFUNDED,)
    _judge(tally, "voided", torn, settled, 2000)


def put_back(folder: Path, tally: Tally) -> None:
    """The wallet is restored from an older copy after it paid: it is locked, and gets what nobody claims."""
    torn = _Torn(folder)
    laboratory = torn.laboratory
    log = laboratory.home.wallet / "tee" / "state.log"
    laboratory.charge("0.01")  # settles the torn one by tap; its receipt is the terminal's
    copy = log.read_bytes()
    laboratory.charge(str(SALE.decimal))
    laboratory.phone.close()
    log.write_bytes(copy)
    laboratory.phone = Phone(laboratory.home.wallet, laboratory.home.issuer_url)
    with torn.issuer() as link:
        waiting = Account(laboratory.phone.tee, link).sync().standing is Standing.WAITING
        laboratory.terminal.settle(link)
    torn.sync(later=True)
    _judge(tally, "put back", torn, waiting, 2000 - 100 - 1 - 100)


def _judge(tally: Tally, name: str, torn: _Torn, settled: bool, balance: int | None) -> None:
    tally.cases += 1
    tally.torn += 1
    if not settled or balance not in (None, torn.laboratory.balance.minor):
        tally.find("unsettled", name)
    else:
        tally.settled_by_issuer += 1
    if torn.missing:
        tally.find("lost" if torn.missing > 0 else "made", name)
    torn.close()


WAYS = (terminal_gone, wallet_gone, voided, put_back)


def lose_sides(folder: Path, tally: Tally, rounds: int) -> None:
    """Lose each side in turn, `rounds` times."""
    for number in range(rounds):
        for way in WAYS:
            way(folder / f"{way.__name__}-{number}", tally)
