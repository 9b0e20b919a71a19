# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The wallet and its issuer: apply for virtual cards, load money, refill, take over lists (S1). Client world.

Messages come out of the trusted world signed and go into it as they came; nothing here could forge one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from protocol.errors import UsageError
from protocol.issuing import (
    Anchors,
    AnchorsRequest,
    BlockList,
    BlockListRequest,
    Issuance,
    Unblocking,
    encode_message,
    expect,
)
from protocol.money import Amount
from protocol.settlement import IssuerNonce, NonceRequest, Settlement, Standing
from protocol.transport.issuer import IssuerLink
from protocol.vouchers import Voucher
from protocol.wire import Wire
from wallet.key_line import KeyLine
from wallet.tee.client import TeeSession
from wallet.tee.contract import (
    ApplyRequest,
    CommandId,
    DecidedDebit,
    Installation,
    LoadOrder,
    SettledView,
    StatementOrder,
    TeeError,
    WalletView,
)

AnyWire = TypeVar("AnyWire", bound=Wire)

POOL_SIZE = 20
REFILL_BELOW = 8
KEY_POOL_SIZE = 4
KEY_REFILL_BELOW = 2


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load brought: the amount that was added now, and the purse afterwards."""

    amount: Amount
    view: WalletView


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync brought: the purse afterwards, how the wallet stands, which debits were decided.

    `until` is when a wallet that was put back gets its money (seconds since 1970), 0 otherwise.
    """

    view: WalletView
    standing: Standing
    until: int
    decided: tuple[DecidedDebit, ...]


def require_card(view: WalletView) -> None:
    """Raise UsageError with what to do next, if the wallet that `view` is of has no purse."""
    require_not_moved(view)
    if view.locked and not view.device:
        raise UsageError(
            "the storage of this wallet is gone; restore its folder from a copy, or begin a wallet anew with another --home"
        )
    if not view.currency:
        raise UsageError("this wallet has no virtual card yet; run tap-wallet apply first")


def require_not_moved(view: WalletView) -> None:
    """Raise UsageError with what to do next, if the purse of the wallet was moved to the Key."""
    if view.moved:
        raise UsageError("the purse of this wallet is at the Key; tap-wallet move in brings it back")


class Account:
    """The trusted world on one side, the issuer on the other."""

    def __init__(self, tee: TeeSession, issuer: IssuerLink, key: KeyLine | None = None) -> None:
        """Carry messages between `tee` and `issuer`; cards that the Trusted Key backs need the way to it by `key`."""
        self._tee = tee
        self._issuer = issuer
        self._key = key or KeyLine()

    def view(self) -> WalletView:
        """Return what may be shown of the wallet."""
        return self._tee.invoke(CommandId.SHOW, WalletView)

    def pin_anchors(self) -> None:
        """Ask the issuer for its trust anchors and let the trusted world pin them."""
        self._tee.invoke_command(CommandId.PIN_ANCHORS, self._ask(AnchorsRequest(), Anchors))

    def apply(self, currency: int, count: int = POOL_SIZE, *, with_key: bool = False) -> WalletView:
        """Apply for `count` virtual cards, backed by the Trusted Key or not, and store them."""
        require_not_moved(self.view())
        self.pin_anchors()
        return self._apply(currency, count, with_key=with_key)

    def _apply(self, currency: int, count: int, *, with_key: bool = False) -> WalletView:
        order = ApplyRequest(currency, count, with_key)
        application = self._key.converse(self._tee, CommandId.APPLY, order)
        answer = self._issuer.exchange(application)
        expect(answer, Issuance)
        return self._tee.invoke(CommandId.INSTALL, WalletView, Installation(application, answer))

    def refill(self) -> Synced:
        """Settle and apply for as many cards as are missing, if the pool runs low."""
        view = self._refill_backed(self.view())
        if not view.currency or view.locked or view.moving or view.cards_left >= REFILL_BELOW:
            return Synced(view, Standing.GOOD, 0, ())
        settled = self.settle()
        return replace(settled, view=self._apply(view.currency, POOL_SIZE - view.cards_left))

    def _refill_backed(self, view: WalletView) -> WalletView:
        """Have enough cards that the Trusted Key backs, if there is one and it can be reached now."""
        wants = view.currency and view.key and self._key.is_there and not (view.locked or view.moving)
        if not wants or view.key_cards_left >= KEY_REFILL_BELOW:
            return view
        try:
            return self._apply(view.currency, KEY_POOL_SIZE - view.key_cards_left, with_key=True)
        except TeeError:
            return view

    def load(self, amount: Amount) -> Loaded:
        """Add money. A load that was paid for but never arrived comes first, and is all that this call brings then."""
        before = self.view()
        require_card(before)
        request = self._tee.invoke_command(CommandId.REQUEST_LOAD, LoadOrder(amount.minor, amount.currency.number))
        voucher = expect(self._issuer.exchange(request), Voucher)
        after = self._tee.invoke(CommandId.LOAD, WalletView, voucher)
        return Loaded(Amount(voucher.amount, amount.currency), after)

    def sync(self) -> Synced:
        """Settle with the issuer, then take over the newest list of what is blocked.

        A wallet whose storage was put back gets its money reissued here, once the claim window has passed.
        """
        synced = self.settle()
        if synced.standing is Standing.REISSUED:
            synced = self.settle()  # from now on it is a wallet like any other
        if not synced.view.locked:
            self._tee.invoke_command(CommandId.OBEY_LIST, self._ask(BlockListRequest(), BlockList))
        return synced

    def settle(self) -> Synced:
        """List what was debited, and take over refunds and what became of earlier debits."""
        before = self.view()
        if not before.device:
            require_card(before)
        decided: list[DecidedDebit] = []
        while True:
            nonce = self._ask(NonceRequest(before.device), IssuerNonce).nonce
            statement = self._tee.invoke_command(CommandId.REQUEST_STATEMENT, StatementOrder(nonce))
            settlement = expect(self._issuer.exchange(statement), Settlement)
            settled = self._tee.invoke(CommandId.SETTLE, SettledView, settlement)
            decided += settled.decided
            if not settled.more:
                return Synced(settled.view, settlement.standing, settlement.until, tuple(decided))

    def unblock_pin(self) -> WalletView:
        """Let the issuer give the PIN its tries back; IssuerRefusedError unless its operator has allowed it."""
        require_card(self.view())
        request = self._tee.invoke_command(CommandId.REQUEST_UNBLOCK)
        return self._tee.invoke(CommandId.UNBLOCK, WalletView, expect(self._issuer.exchange(request), Unblocking))

    def _ask(self, request: Wire, kind: type[AnyWire]) -> AnyWire:
        return expect(self._issuer.exchange(encode_message(request)), kind)
