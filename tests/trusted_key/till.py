# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A shop whose customer has a Trusted Key: all parties, the Key on a link of its own, and the customer's hands."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from console.home import Home
from lab.fixtures import Laboratory
from pos.outcome import Outcome
from protocol.closing import Closing
from protocol.transport.base import CardHandler
from protocol.transport.issuer import IssuerLink
from protocol.transport.memory import MemoryPort
from wallet.account import Account
from wallet.phone import DIALOGS_SECONDS, Phone, PhoneOptions
from wallet.tee.contract import Agreed, CommandId, NewLimits, WalletView
from wallet.trusted_key.key import TrustedKey
from wallet.trusted_key.panel import Clock

PATIENCE = 10.0


class Till(Closing):
    """The laboratory, the Key at `memory:…`, and what the customer does."""

    def __init__(
        self, home: Home, folder: Path, *answers: str, clock: Clock = time.monotonic, key: TrustedKey | None = None
    ) -> None:
        """Open the shop; `answers` are those on the trusted UI, line by line.

        `clock` is that of the Key that is made, unless `key` is there already.
        """
        script = folder / "script"
        script.write_text("\n".join(answers))
        self.shown_file = folder / "script.shown"
        self._own = TrustedKey(folder / "key", clock=clock) if key is None else None
        self.key = key or self._own or TrustedKey(folder / "key")
        self._name = f"{folder}/key"
        self._port = MemoryPort(self._name)
        self.lay(self.key.card)
        self._options = PhoneOptions(trusted_ui=f"scripted:{script}", key_link=f"memory:{self._name}")
        self.laboratory = Laboratory(home=home.path, options=self._options)
        self._answers = self._answered()

    def lay(self, card: CardHandler | None) -> None:
        """Put a card where the Key is looked for, or take it away."""
        self._port.close()
        if card is not None:
            self._port = MemoryPort(self._name)
            self._port.present(card)

    def opened(self) -> Phone:
        """Return the wallet, opened anew; for who has closed it."""
        home = self.laboratory.home
        return Phone(home.wallet, home.issuer_url, self._options)

    @property
    def view(self) -> WalletView:
        return self.laboratory.phone.view()

    @property
    def shown(self) -> list[str]:
        """What the trusted UI showed."""
        return self.shown_file.read_text().splitlines()

    def charge(self, amount: str) -> Outcome:
        return self.laboratory.charge(amount)

    def wait_for_question(self, text: str) -> None:
        """Wait until the Key asks this."""
        self._wait(lambda: text in " ".join(" ".join(self.key.screen.lines).split()), f"the Key did not ask {text!r}")

    def wait_for_idle(self) -> None:
        """Wait until the wallet's housekeeping has nothing more to say to the Key."""
        assert self.laboratory.phone.rest(PATIENCE)

    @staticmethod
    def _wait(reached: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < until, what
            time.sleep(0.005)

    @contextlib.contextmanager
    def pressing(self, button: str, text: str) -> Iterator[None]:
        """Let the customer press `button` once the Key asks `text`, while something else is done."""

        def press() -> None:
            self.wait_for_question(text)
            self.key.press(button)

        hand = threading.Thread(target=press, daemon=True)
        hand.start()
        yield
        hand.join(PATIENCE)
        assert not hand.is_alive()

    def pair(self, button: str = "ok") -> bool:
        """Pair wallet and Key, as `tap-wallet pair` does; without a button nobody is at the Key."""
        phone = self.laboratory.phone
        hand = self.pressing(button, "Pair with a phone that shows") if button else contextlib.nullcontext()
        with hand:
            done = Agreed.decode(phone.key.converse(phone.tee, CommandId.PAIR_KEY, timeout=DIALOGS_SECONDS)).done
        if done and self.view.currency and not self.view.key_cards_left:
            with IssuerLink(self.laboratory.home.issuer_url) as issuer:
                Account(phone.tee, issuer, phone.key).apply(self.view.currency, 4, with_key=True)
        return done

    def need_key_above(self, minor: int) -> None:
        """Let payments above so many cents need the Key."""
        wanted = NewLimits(50_00, 0, 0, minor)
        assert Agreed.decode(self.laboratory.phone.tee.invoke_command(CommandId.CHANGE_LIMITS, wanted)).done

    def agree(self, text: str = "Pay 250.00 EUR to Corner Bakery?", button: str = "ok") -> None:
        """Press the button on the Key when it asks, and wait until the wallet knows."""
        self.wait_for_question(text)
        self.key.press(button)
        self.wait_for_answer()

    def wait_for_answer(self) -> None:
        """Wait until the consent that was asked for last is decided."""
        self._answers += 1
        self._wait(lambda: self._answered() >= self._answers, "nobody said what the user answered")

    def _answered(self) -> int:
        return sum(one.what.startswith("user ") for one in self.laboratory.phone.history.entries())

    def close(self) -> None:
        self.laboratory.close()
        self._port.close()
        if self._own is not None:
            self._own.close()
