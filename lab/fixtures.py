# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A whole laboratory in one folder, for tests, examples and measurements of your own.

    with Laboratory(balance="100.00") as laboratory:
        outcome = laboratory.charge("12.50")

The wallet's TEE and the issuer are real processes; wallet and terminal share this one, over a `memory:` link.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from console.home import Home, make_private
from issuer import keys
from issuer.database import Database
from pos import identity
from pos.journal import Journal
from pos.outcome import Outcome
from pos.terminal import Terminal, TerminalOptions
from protocol.certificate import Merchant
from protocol.closing import Closing
from protocol.money import Amount, Currency
from protocol.transport.base import CardLink
from protocol.transport.fault import Fault, inject
from protocol.transport.issuer import IssuerLink
from protocol.transport.memory import MemoryLink, MemoryPort
from wallet.account import POOL_SIZE, Account
from wallet.phone import DEVICE_FOLDER, STORAGE_FOLDER, Phone, PhoneOptions, start_of
from wallet.tee.client import TeeSession

MERCHANT_NAME = "Corner Bakery"
CATEGORY_BAKERY = 5462
TERMINAL_ID = "TERM0001"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setup:
    """What a laboratory starts with."""

    balance: str = "100.00"
    currency: str = "EUR"
    cards: int = POOL_SIZE
    terminal_id: str = TERMINAL_ID
    merchant: str = MERCHANT_NAME
    reads: int = 3


def set_up_issuer(home: Home) -> None:
    """Make the issuer of `home`."""
    folder = make_private(home.issuer)
    keys.create(folder)
    Database(folder, create=True).close()


def set_up_wallet(home: Home, setup: Setup, report: Report = lambda _: None) -> None:
    """Make the wallet of `home`, apply for cards and load money (S1)."""
    for folder in (home.wallet, home.wallet / DEVICE_FOLDER, home.wallet / STORAGE_FOLDER):
        make_private(folder)
    amount = Amount.parse(setup.balance, setup.currency)
    tee = TeeSession(replace(start_of(home.wallet, PhoneOptions()), reads=setup.reads))
    with IssuerLink(home.issuer_url) as issuer:
        account = Account(tee, issuer)
        account.apply(amount.currency.number, setup.cards)
        report(f"user applies: {setup.cards} virtual card numbers are written to the wallet")
        if amount.minor:
            loaded = account.load(amount)
            report(f"user loads {loaded.amount} by a voucher that the issuer signed")
    tee.close()


def set_up_terminal(home: Home, setup: Setup) -> None:
    """Make the terminal of `home`."""
    merchant = Merchant(setup.merchant, CATEGORY_BAKERY, Currency.of(setup.currency).number)
    with Journal(make_private(home.pos)), IssuerLink(home.issuer_url) as issuer:
        identity.create(home.pos, setup.terminal_id, merchant, issuer)


def set_up(home: Home, setup: Setup, report: Report = lambda _: None) -> None:
    """Make issuer, wallet and terminal of `home`; wallet and terminal at the same time."""
    set_up_issuer(home)
    terminal = threading.Thread(target=set_up_terminal, args=(home, setup))
    terminal.start()
    set_up_wallet(home, setup, report)
    terminal.join()


class Laboratory(Closing):
    """Issuer, wallet and terminal, ready to pay each other. Give `home` to keep it; without, it goes on `close`."""

    def __init__(
        self,
        setup: Setup | None = None,
        *,
        balance: str | None = None,
        home: Path | None = None,
        options: PhoneOptions | None = None,
        terminal_options: TerminalOptions | None = None,
    ) -> None:
        """Set everything up; `balance` is a shorthand for a Setup with that balance."""
        setup = setup or (Setup(balance) if balance else Setup())
        self._temporary = None if home else Path(tempfile.mkdtemp(prefix="taplab-"))
        self.home = Home(home or self._temporary or Path())
        self.setup = setup
        if not self.home.issuer.exists():
            set_up(self.home, setup)
        self.phone = Phone(self.home.wallet, self.home.issuer_url, options)
        self.terminal = Terminal.open(self.home.path, terminal_options or TerminalOptions(timeout=1.0))
        self._port = MemoryPort(str(self.home.path))
        self._port.present(self.phone.card)
        self.link: CardLink = MemoryLink(str(self.home.path))

    def charge(self, amount: str, *, fault: str = "") -> Outcome:
        """Charge the wallet; `fault` strikes once, as `tear@frame:7` (protocol/transport/fault.py has all of them)."""
        link = inject(self.link, Fault.parse(fault)) if fault else self.link
        return self.terminal.charge(Amount.parse(amount, self.setup.currency), link)

    @property
    def balance(self) -> Amount:
        """What the wallet's trusted world says it holds."""
        return Amount(self.phone.view().balance, Currency.of(self.setup.currency))

    def close(self) -> None:
        """End every process and, unless a home was given, remove every file."""
        self._port.close()
        self.terminal.close()
        self.phone.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary)
