# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Where all the money is: each side is asked, and it is added up (docs/protocol.md, "Settlement")."""

from __future__ import annotations

from dataclasses import dataclass

from console.home import Home
from issuer.database import Database
from protocol.issuing import encode_message, expect
from protocol.settlement import IssuerNonce, NonceRequest, Statement
from protocol.transport.issuer import IssuerLink
from wallet.tee.client import TeeSession
from wallet.tee.contract import CommandId, StatementOrder, WalletView


@dataclass(frozen=True, slots=True)
class Money:
    """All of it in minor units. What users paid in must be what the rest adds up to, the issuer's loss taken off."""

    funded: int
    on_the_way: int
    in_wallets: int
    not_listed: int
    open: int
    paid: int
    lost: int

    @property
    def found(self) -> int:
        """What is found when every side is asked."""
        return self.on_the_way + self.in_wallets + self.not_listed + self.open + self.paid - self.lost

    @property
    def missing(self) -> int:
        """What was lost (positive) or made (negative)."""
        return self.funded - self.found


def count(home: Home, tee: TeeSession) -> Money:
    """Ask the wallet's trusted world and the issuer; each debit counts once, whoever knows of it."""
    view = tee.invoke(CommandId.SHOW, WalletView)
    with IssuerLink(home.issuer_url) as link:
        nonce = expect(link.exchange(encode_message(NonceRequest(view.device))), IssuerNonce).nonce
    statement = expect(tee.invoke_command(CommandId.REQUEST_STATEMENT, StatementOrder(nonce)), Statement)
    database = Database(home.issuer)
    with database.transaction() as books:
        vouchers = books.vouchers_after(view.device, view.loads, 1 << 30)
        known = [
            books.debit((one.credential, one.receipt.counter, one.receipt.transaction_id)) is not None
            for one in statement.debits
        ]
        amounts = [one.receipt.debit.amount for one in statement.debits]
        money = Money(
            books.loaded(view.device),
            sum(one.amount for one in vouchers),
            view.balance,
            sum(amount for amount, is_known in zip(amounts, known, strict=True) if not is_known),
            books.open(view.device),
            books.paid(view.device),
            books.lost(view.device),
        )
    database.close()
    return money
