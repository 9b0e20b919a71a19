# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""All parties in one process, so that a check can be taken out of any of them; and attacks with the check that stops them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from issuer.register import Register
from issuer.service import Issuer
from pos import identity as identities
from pos.identity import Identity
from pos.journal import Journal
from pos.outcome import Outcome
from pos.terminal import Terminal, TerminalOptions
from protocol.commands import DEFAULT_NAME
from protocol.issuing import encode_message, expect
from protocol.money import Amount
from protocol.settlement import ReportAnswer, TerminalReport, Verdict
from protocol.transport.base import CardHandler, CardLink
from protocol.transport.issuer import IssuerLink
from tests.end_to_end.parties import HostileTerminal, link_to, terminal_like
from tests.wallet.near_wallet import NearSession, NearTrustedWorld
from wallet.account import Account
from wallet.card import Card
from wallet.events import Event
from wallet.payment import PaymentClient

Patch = pytest.MonkeyPatch
EURO = Amount.parse("10.00", "EUR")


class NearIssuer(IssuerLink):
    """The issuer, in this process; its clock goes `ahead` by so many seconds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"embedded:{folder}")
        self.ahead = 0.0
        self.issuer = Issuer(folder, lambda: time.time() + self.ahead)

    def exchange(self, request: bytes) -> bytes:
        return self.issuer.handle(request)

    def close(self) -> None:
        self.issuer.close()


class Stage:
    """All parties in one process: a wallet of 100.00 EUR with its trusted application, terminals, the issuer."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.home = home
        self.folder = folder
        self.world = NearTrustedWorld(home / "wallet")
        self.tee = NearSession(self.world)
        self.events: SimpleQueue[Event | None] = SimpleQueue()
        self.card = Card([PaymentClient(DEFAULT_NAME, self.tee, self.events)])
        self.issuer = NearIssuer(home / "issuer")
        self._terminals: list[Terminal] = []

    @property
    def balance(self) -> int:
        return self.world.view().balance

    def charge(self, card: CardHandler, *, amount: Amount = EURO, **options: Any) -> Outcome:
        return self.terminal(**options).charge(amount, link_to(card))

    def terminal(
        self, identity: Identity | None = None, *, clock: Callable[[], float] = time.time, **options: Any
    ) -> Terminal:
        """Return a new terminal, certified by the acquirer; as the issuer's books know it only if `identity` is so."""
        journal = self.folder / f"journal {len(self._terminals)}"
        journal.mkdir()
        known = identity or terminal_like(self.home)
        self._terminals.append(Terminal(known, Journal(journal), TerminalOptions(timeout=1.0, **options), clock))
        return self._terminals[-1]

    def hostile(
        self, identity: Identity | None = None, *, link: CardLink | None = None, **changes: Any
    ) -> HostileTerminal:
        return HostileTerminal(link or link_to(self.card), identity or terminal_like(self.home, **changes))

    @property
    def certified(self) -> Identity:
        """The terminal that is in the issuer's books."""
        return identities.load(self.home / "pos")

    def say(self, report: TerminalReport) -> tuple[Verdict, ...]:
        return expect(self.issuer.exchange(encode_message(report)), ReportAnswer).verdicts

    @property
    def paid(self) -> int:
        """What merchants were paid, by the issuer's books."""
        register = Register(self.home / "issuer")
        paid = sum(row.paid.minor for row in register.terminals())
        register.close()
        return paid

    def sync(self) -> int:
        Account(self.tee, self.issuer).settle()
        return self.balance

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close()
        self.world.close()
        self.issuer.close()


@dataclass(frozen=True)
class Mutation:
    """An attack that returns whether the attacker got through, and what takes the one check out that stops it."""

    attack: Callable[[Stage], bool]
    take_out: Callable[[Patch], None]


class Mutations(dict[str, Mutation]):
    """Attacks by name: the id in docs/threat-model.md, with a word behind it where one id has several."""

    def attack(
        self, name: str, take_out: Callable[[Patch], None]
    ) -> Callable[[Callable[[Stage], bool]], Callable[[Stage], bool]]:
        """Register an attack, with what takes its check out."""

        def register(function: Callable[[Stage], bool]) -> Callable[[Stage], bool]:
            assert name not in self, f"{name} is there twice"
            self[name] = Mutation(function, take_out)
            return function

        return register

    def parameters(self) -> list[Any]:
        """Return a parameter for each attack, marked with its id."""
        return [pytest.param(one, marks=pytest.mark.attack(name.split()[0]), id=name) for name, one in self.items()]
