# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the user has agreed to: bound to terminal, amount and currency, good once, for a minute."""

from __future__ import annotations

import time
from collections.abc import Callable

from protocol.certificate import TerminalCertificate
from protocol.messages import Debit, certificate_hash
from protocol.money import Amount, Currency
from wallet.tee.pin import Pins
from wallet.tee.trusted_ui import PaymentPrompt, TrustedUi

VALID_SECONDS = 60.0

_Bound = tuple[bytes, int, int]


class Consents:
    """At most one payment that waits for the user, and at most one that the user agreed to."""

    def __init__(
        self,
        ui: TrustedUi,
        clock: Callable[[], float] = time.monotonic,
        pins: Pins | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """Ask on `ui`, for the PIN where `pins` has one; `clock` counts seconds.

        `at_once` asks within the tap, while the terminal waits.
        """
        self._ui = ui
        self._pins = pins
        self.at_once = at_once
        self._clock = clock
        self._asking: tuple[_Bound, PaymentPrompt] | None = None
        self._granted: tuple[_Bound, float] | None = None

    def want(self, terminal: TerminalCertificate, debit: Debit) -> None:
        """Remember what to ask the user; a newer payment takes the place of an older one."""
        amount = Amount(debit.amount, Currency.of(debit.currency))
        prompt = PaymentPrompt(terminal.merchant.name, terminal.terminal_id, amount)
        self._asking = (_bound(terminal, debit), prompt)

    def ask(self) -> bool:
        """Ask the user about what waits, if anything does, and return whether it was granted."""
        asking, self._asking = self._asking, None
        if asking is None:
            return False
        bound, prompt = asking
        agreed = self._pins.enter(prompt) if self._pins and self._pins.is_set else self._ui.confirm(prompt)
        self._granted = (bound, self._clock() + VALID_SECONDS) if agreed else None
        return agreed

    def ask_at_once(self, terminal: TerminalCertificate, debit: Debit) -> bool:
        """Ask the user while the terminal waits, if this wallet does so, and return whether it was granted."""
        if not self.at_once:
            return False
        self.want(terminal, debit)
        return self.ask()

    def covers(self, terminal: TerminalCertificate, debit: Debit) -> bool:
        """Tell whether the user agreed to exactly this payment and the minute is not over."""
        if self._granted is None:
            return False
        bound, until = self._granted
        return bound == _bound(terminal, debit) and self._clock() <= until

    def use(self, terminal: TerminalCertificate, debit: Debit) -> None:
        """Spend the consent, if it covers this payment."""
        if self._granted is not None and self._granted[0] == _bound(terminal, debit):
            self._granted = None


def _bound(terminal: TerminalCertificate, debit: Debit) -> _Bound:
    return certificate_hash(terminal), debit.amount, debit.currency
