# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Setting a wallet up, torn at every step and on either side of it: the wallet is never lost, and nothing counts twice."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from console.home import Home, make_private
from lab.fixtures import set_up_issuer
from protocol.errors import LinkUnavailableError, TapLabError
from protocol.money import Amount
from tests.attacks.stage import NearIssuer
from wallet.account import Account
from wallet.phone import DEVICE_FOLDER, STORAGE_FOLDER, PhoneOptions, start_of
from wallet.tee.client import TeeSession
from wallet.tee.contract import WalletView

TEN = Amount.parse("10.00", "EUR")
EXCHANGES = ("anchors", "application", "load")


class TornIssuer(NearIssuer):
    """An issuer whose link breaks once: before the request of one exchange, or after it was answered."""

    def __init__(self, folder: Path, torn_at: int, part: str) -> None:
        super().__init__(folder)
        self._left = torn_at
        self._part = part

    def exchange(self, request: bytes) -> bytes:
        self._left -= 1
        torn = self._left == -1
        if torn and self._part == "request":
            raise LinkUnavailableError("the issuer cannot be reached")
        answer = super().exchange(request)
        if torn:
            raise LinkUnavailableError("the issuer cannot be reached")
        return answer


@dataclass
class NewWallet:
    """A wallet that is being set up, by processes that may be killed."""

    home: Home
    issuer: NearIssuer
    steps: list[str] = field(default_factory=list)

    def set_up(self, *, kill: bool = False) -> WalletView:
        tee = TeeSession(start_of(self.home.wallet, PhoneOptions()))
        with closing(tee):
            try:
                account = Account(tee, self.issuer)
                account.apply(TEN.currency.number, 3)
                if account.view().balance == 0:
                    account.load(TEN)
                return account.view()
            except TapLabError:
                if kill and tee.pid is not None:
                    os.kill(tee.pid, signal.SIGKILL)
                raise


@pytest.mark.attack("T6")
@pytest.mark.parametrize("kill", [False, True], ids=["", "and the TEE is killed"])
@pytest.mark.parametrize("part", ["request", "answer"])
@pytest.mark.parametrize("torn_at", range(len(EXCHANGES)), ids=EXCHANGES)
def test_setting_up_that_was_torn_is_simply_done_again(tmp_path: Path, torn_at: int, part: str, *, kill: bool) -> None:
    home = Home(tmp_path)
    set_up_issuer(home)
    for folder in (home.wallet, home.wallet / DEVICE_FOLDER, home.wallet / STORAGE_FOLDER):
        make_private(folder)
    with closing(TornIssuer(home.issuer, torn_at, part)) as issuer:
        wallet = NewWallet(home, issuer)
        with pytest.raises(LinkUnavailableError):
            wallet.set_up(kill=kill)
        view = wallet.set_up()
        again = wallet.set_up()
    assert (view.balance, view.loads, view.locked) == (1000, 1, False)
    assert view.cards_left in (3, 6)  # three more when it was the load that was torn
    assert again.cards_left == view.cards_left + 3
