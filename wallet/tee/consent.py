# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the user has agreed to: bound to terminal, amount and currency, good once, for a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from protocol.certificate import TerminalCertificate
from protocol.messages import Debit, certificate_hash
from protocol.money import Amount, Currency
from wallet.tee.key_agent import KeyAgent, Talk
from wallet.tee.trusted_ui import PaymentPrompt, Shown

VALID_SECONDS = 60.0

_Bound = tuple[bytes, int, int]


class Asked(Protocol):
    """Who can be asked on the trusted UI."""

    def ask(self, prompt: Shown) -> bool:
        """Show a question and return whether the user agreed."""


class Consents:
    """At most one payment that waits for the user, and at most one that the user agreed to."""

    def __init__(
        self,
        user: Asked,
        clock: Callable[[], float] = time.monotonic,
        key: KeyAgent | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """Ask `user`, or at the Key by `key`; `clock` counts seconds.

        `at_once` asks within the tap, while the terminal waits.
        """
        self._user = user
        self._key = key
        self.at_once = at_once
        self._clock = clock
        self._asking: _Asking | None = None
        self._granted: _Granted | None = None

    def want(self, terminal: TerminalCertificate, debit: Debit, *, by_key: bool = False) -> None:
        """Remember what to ask the user, on the trusted UI or `by_key`; a newer payment takes the place of an older one."""
        self._asking = _Asking(terminal, debit, by_key)

    def ask(self) -> Talk[bool]:
        """Ask the user about what waits, if anything does, and return whether it was granted.

        What was agreed to while it waited is not asked for twice: the shopper has tapped again before answering.
        """
        asking, self._asking = self._asking, None
        if asking is None:
            return False
        if self.covers(asking.terminal, asking.debit) and self._is_by_key() >= asking.by_key:
            return True
        if asking.by_key:
            agreed = self._key is not None and (yield from self._key.ask_for(asking.terminal, asking.debit))
        else:
            agreed = self._user.ask(asking.prompt)
        until = self._clock() + VALID_SECONDS
        self._granted = _Granted(asking.bound, until, asking.by_key) if agreed else None
        return agreed

    def ask_at_once(self, terminal: TerminalCertificate, debit: Debit) -> bool:
        """Ask on the trusted UI while the terminal waits, if this wallet does so, and return whether it was granted."""
        if not self.at_once:
            return False
        asking = _Asking(terminal, debit, by_key=False)
        agreed = self._user.ask(asking.prompt)
        self._granted = _Granted(asking.bound, self._clock() + VALID_SECONDS, by_key=False) if agreed else None
        return agreed

    def covers(self, terminal: TerminalCertificate, debit: Debit) -> bool:
        """Tell whether the user agreed to exactly this payment and the minute is not over."""
        granted = self._granted
        return granted is not None and granted.bound == _bound(terminal, debit) and self._clock() <= granted.until

    def withdraw(self) -> None:
        """Forget what the user agreed to: it could not be used, and is to be asked for anew."""
        self._granted = None

    def _is_by_key(self) -> bool:
        return self._granted is not None and self._granted.by_key

    def waits_for_key(self, terminal: TerminalCertificate) -> bool:
        """Tell whether the user agreed on the Key to pay this terminal: the next card shown to it is one that the Key backs."""
        granted = self._granted
        if granted is None or not granted.by_key or self._clock() > granted.until:
            return False
        return granted.bound[0] == certificate_hash(terminal)

    def use(self, terminal: TerminalCertificate, debit: Debit) -> None:
        """Spend the consent, if it covers this payment."""
        if self._granted is not None and self._granted.bound == _bound(terminal, debit):
            self._granted = None


@dataclass(frozen=True, slots=True)
class _Asking:
    """A payment that the user is to be asked about, and where."""

    terminal: TerminalCertificate
    debit: Debit
    by_key: bool

    @property
    def bound(self) -> _Bound:
        return _bound(self.terminal, self.debit)

    @property
    def prompt(self) -> PaymentPrompt:
        amount = Amount(self.debit.amount, Currency.of(self.debit.currency))
        return PaymentPrompt(self.terminal.merchant.name, self.terminal.terminal_id, amount)


@dataclass(frozen=True, slots=True)
class _Granted:
    """What the user agreed to, until when (seconds of the clock), and where."""

    bound: _Bound
    until: float
    by_key: bool


def _bound(terminal: TerminalCertificate, debit: Debit) -> _Bound:
    return certificate_hash(terminal), debit.amount, debit.currency
