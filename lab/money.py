# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Where all the money is: each side is asked, and it is added up (docs/protocol.md, "Settlement")."""

from __future__ import annotations

from dataclasses import dataclass

from console.home import Home
from issuer.database import Books, Database
from protocol.issuing import encode_message, expect
from protocol.settlement import IssuerNonce, ListedDebit, NonceRequest, Statement
from protocol.transport.issuer import IssuerLink
from wallet.tee.client import TeeSession
from wallet.tee.contract import CommandId, StatementOrder, WalletView

_ALL = 1 << 30


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


def count(home: Home, tee: TeeSession, issuer: IssuerLink) -> Money:
    """Ask the wallet's trusted world and the issuer; each debit counts once, whoever knows of it.

    A wallet that was put back counts as what the issuer will reissue.
    """
    view = tee.invoke(CommandId.SHOW, WalletView)
    nonce = expect(issuer.exchange(encode_message(NonceRequest(view.device))), IssuerNonce).nonce
    statement = expect(tee.invoke_command(CommandId.REQUEST_STATEMENT, StatementOrder(nonce)), Statement)
    database = Database(home.issuer)
    with database.transaction() as books:
        vouchers = [] if view.locked else books.vouchers_after(view.device, view.loads, _ALL)
        not_listed = [one.receipt.debit.amount for one in statement.debits if not _is_counted(one, books)]
        money = Money(
            books.loaded(view.device),
            sum(one.amount for one in vouchers),
            books.holds(view.device) if view.locked else view.balance,
            sum(not_listed),
            books.open(view.device),
            books.paid(view.device),
            books.lost(view.device),
        )
    database.close()
    return money


def _is_counted(listed: ListedDebit, books: Books) -> bool:
    """Tell whether the issuer's books have a debit already: as listed, or as paid to a merchant."""
    row = books.debit((listed.credential, listed.receipt.counter, listed.receipt.transaction_id))
    return row is not None and (row.listed_at > 0 or row.pays_merchant)
