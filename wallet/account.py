# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The wallet and its issuer: apply for virtual cards, load money, refill, take over lists (S1). Client world.

Messages come out of the trusted world signed and go into it as they came; nothing here could forge one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from protocol.errors import UsageError
from protocol.issuing import (
    Anchors,
    AnchorsRequest,
    BlockList,
    BlockListRequest,
    Issuance,
    Voucher,
    encode_message,
    expect,
)
from protocol.money import Amount
from protocol.transport.issuer import IssuerLink
from protocol.wire import Wire
from wallet.tee.client import TeeSession
from wallet.tee.contract import ApplyRequest, CommandId, Installation, LoadOrder, WalletView

AnyWire = TypeVar("AnyWire", bound=Wire)

POOL_SIZE = 20
REFILL_BELOW = 8


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load brought: the amount that was added now, and the purse afterwards."""

    amount: Amount
    view: WalletView


class Account:
    """The trusted world on one side, the issuer on the other."""

    def __init__(self, tee: TeeSession, issuer: IssuerLink) -> None:
        """Carry messages between `tee` and `issuer`."""
        self._tee = tee
        self._issuer = issuer

    def view(self) -> WalletView:
        """Return what may be shown of the wallet."""
        return self._tee.invoke(CommandId.SHOW, WalletView)

    def pin_anchors(self) -> None:
        """Ask the issuer for its trust anchors and let the trusted world pin them."""
        self._tee.invoke_command(CommandId.PIN_ANCHORS, self._ask(AnchorsRequest(), Anchors))

    def apply(self, currency: int, count: int = POOL_SIZE) -> WalletView:
        """Apply for `count` virtual cards and store them."""
        self.pin_anchors()
        return self._apply(currency, count)

    def _apply(self, currency: int, count: int) -> WalletView:
        application = self._tee.invoke_command(CommandId.APPLY, ApplyRequest(currency, count))
        answer = self._issuer.exchange(application)
        expect(answer, Issuance)
        return self._tee.invoke(CommandId.INSTALL, WalletView, Installation(application, answer))

    def refill(self) -> WalletView:
        """Apply for as many cards as are missing, if the pool runs low, and take over the newest list."""
        view = self.view()
        if view.currency and view.cards_left < REFILL_BELOW:
            view = self._apply(view.currency, POOL_SIZE - view.cards_left)
        return view

    def load(self, amount: Amount) -> Loaded:
        """Add money. A load that was paid for but never arrived comes first, and is all that this call brings then."""
        before = self.view()
        if not before.currency:
            raise UsageError("this wallet has no virtual card yet; run tap-wallet apply first")
        request = self._tee.invoke_command(CommandId.REQUEST_LOAD, LoadOrder(amount.minor, amount.currency.number))
        voucher = expect(self._issuer.exchange(request), Voucher)
        after = self._tee.invoke(CommandId.LOAD, WalletView, voucher)
        return Loaded(Amount(voucher.amount, amount.currency), after)

    def sync(self) -> None:
        """Take over the newest list of what is blocked."""
        self._tee.invoke_command(CommandId.OBEY_LIST, self._ask(BlockListRequest(), BlockList))

    def _ask(self, request: Wire, kind: type[AnyWire]) -> AnyWire:
        return expect(self._issuer.exchange(encode_message(request)), kind)
