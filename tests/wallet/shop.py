# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A laboratory whose user answers the trusted UI by a script."""

from __future__ import annotations

import time
from pathlib import Path

from console.home import Home
from lab.fixtures import Laboratory
from pos.outcome import Outcome
from protocol.closing import Closing
from wallet.phone import PhoneOptions


class Shop(Closing):
    """The laboratory, and what its user was shown."""

    def __init__(self, home: Home, folder: Path, answers: str, *, one_tap: bool = False) -> None:
        """Let the user of the wallet in `home` answer so, line by line; the script lies in `folder`."""
        script = folder / "script"
        script.write_text(answers)
        self._shown = folder / "script.shown"
        self._shown.unlink(missing_ok=True)
        options = PhoneOptions(trusted_ui=f"scripted:{script}", one_tap=one_tap)
        self.laboratory = Laboratory(home=home.path, options=options)

    @property
    def balance(self) -> int:
        """What the wallet holds, in cents."""
        return self.laboratory.balance.minor

    @property
    def shown(self) -> list[str]:
        """What the user was shown so far."""
        return self._shown.read_text().splitlines()

    def charge(self, amount: str) -> Outcome:
        """Charge the wallet."""
        return self.laboratory.charge(amount)

    def wait_for_answers(self, count: int) -> None:
        """Wait until so much was shown; asking happens after the tap."""
        until = time.monotonic() + 10
        while len(self.shown) < count and time.monotonic() < until:
            time.sleep(0.005)
        assert len(self.shown) == count
        self.laboratory.phone.view()  # answered after ASK_CONSENT, since the trusted world does one thing at a time

    def close(self) -> None:
        """End it."""
        self.laboratory.close()
