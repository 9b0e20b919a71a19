# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The transactions that this wallet knows of, by terminal certificate: what is open, what is not confirmed yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

from protocol.messages import NOTHING_OPEN
from wallet.tee.state import CREDENTIAL, TRANSACTION, Status, Transaction, transaction_key
from wallet.tee.storage import Changes, SealedStorage

READS_SECONDS = 600


class TransactionBook:
    """An index over the transactions in storage; storage stays the only truth."""

    def __init__(self, storage: SealedStorage) -> None:
        """Read the index from storage."""
        self._storage = storage
        self.read_again()

    def read_again(self) -> None:
        """Make the index anew from storage."""
        self._unconfirmed: dict[bytes, dict[bytes, Transaction]] = {}
        self._reads: dict[bytes, dict[bytes, int]] = {}
        self._uses: Counter[bytes] = Counter()
        self._next_order = 0
        for transaction in self._everything():
            self._index(transaction, is_new=True)

    def _index(self, transaction: Transaction, *, is_new: bool = False) -> None:
        self._uses[transaction.credential_serial] += is_new
        self._next_order = max(self._next_order, transaction.order + 1)
        self._count_read(transaction)
        mine = self._unconfirmed.setdefault(transaction.terminal_hash, {})
        if transaction.confirmed:
            mine.pop(transaction.transaction_id, None)
        else:
            mine[transaction.transaction_id] = transaction
        if not mine:
            del self._unconfirmed[transaction.terminal_hash]

    def _count_read(self, transaction: Transaction) -> None:
        """Keep count of cards that a terminal saw and did not ask to pay; cancelling them does not undo that."""
        mine = self._reads.setdefault(transaction.terminal_hash, {})
        if transaction.status in (Status.APPROVED, Status.REFUSED):
            mine.pop(transaction.transaction_id, None)
        else:
            mine.setdefault(transaction.transaction_id, transaction.started)

    def begin(self, terminal_hash: bytes, transaction_id: bytes, serial: bytes, counter: int, now: int) -> Transaction:
        """Return a new open transaction; nothing is stored yet."""
        return Transaction(
            terminal_hash, transaction_id, serial, counter, self._next_order, now, Status.OPEN, False, b"", b""
        )

    def commit(self, transaction: Transaction, changes: Changes) -> None:
        """Put a transaction on disk together with what changes with it."""
        is_new = self._storage.get(transaction.key) is None
        self._storage.commit({transaction.key: transaction.encode(), **changes})
        self._index(transaction, is_new=is_new)

    def find(self, terminal_hash: bytes, transaction_id: bytes) -> Transaction | None:
        """Return a transaction of this wallet with that terminal certificate; nobody else's can be asked for."""
        stored = self._storage.get(transaction_key(terminal_hash, transaction_id))
        return Transaction.decode(stored) if stored else None

    def confirm(self, transaction: Transaction, acknowledged: int) -> None:
        """Note that the terminal has the result. What the issuer need not hear of, or has heard of, goes."""
        confirmed = replace(transaction, confirmed=True)
        if transaction.number > acknowledged:
            self._storage.note({transaction.key: confirmed.encode()})
            self._index(confirmed)
        else:
            removal = self._removal([confirmed])
            self._storage.note(removal)
            self._drop([confirmed], removal)

    def _removal(self, transactions: Collection[Transaction]) -> dict[bytes, bytes | None]:
        """Return the changes that remove transactions, and credentials with which no other one was made."""
        kept = [one for one in transactions if self._storage.get(one.key) is not None]
        uses = Counter(one.credential_serial for one in kept)
        spent = [serial for serial, times in uses.items() if self._uses[serial] <= times]
        return dict.fromkeys([one.key for one in kept] + [CREDENTIAL + serial for serial in spent])

    def _drop(self, transactions: Collection[Transaction], removed: Changes) -> None:
        """Let the index do without what has gone from storage."""
        for transaction in transactions:
            if transaction.key in removed:
                self._uses[transaction.credential_serial] -= 1
            self._index(replace(transaction, confirmed=True))
        self._uses = +self._uses  # without those that nothing was made with any more

    def debits(self) -> list[Transaction]:
        """Return the debits that are still kept, in their order."""
        return sorted((one for one in self._everything() if one.number), key=lambda one: one.number)

    def undebited(self, serials: Collection[bytes]) -> list[Transaction]:
        """Return what was begun with these credentials, and for which nothing was deducted."""
        return [one for one in self._everything() if not one.number and one.credential_serial in serials]

    def _everything(self) -> Iterator[Transaction]:
        return (Transaction.decode(value) for _, value in self._storage.items(TRANSACTION))

    def forget(self, transactions: Collection[Transaction], changes: Changes) -> None:
        """Remove transactions that are over, on disk together with `changes`."""
        removal = self._removal(transactions)
        self._storage.commit({**changes, **removal})
        self._drop(transactions, removal)

    def oldest_unconfirmed(self, terminal_hash: bytes, but: bytes = NOTHING_OPEN) -> bytes:
        """Return the id to be settled next with this terminal, approved ones first; zeros when there is none.

        The transaction `but` is left out: it is the one that goes on.
        """
        everything = self._unconfirmed.get(terminal_hash, {}).values()
        mine = [one for one in everything if one.transaction_id != but]
        first = min(mine, key=lambda one: (one.status is not Status.APPROVED, one.order), default=None)
        return first.transaction_id if first else NOTHING_OPEN

    def may_read(self, terminal_hash: bytes, now: int, allowed: int) -> bool:
        """Tell whether a terminal may see one more credential: `allowed` in ten minutes that were not asked to pay."""
        mine = self._reads.get(terminal_hash, {})
        for transaction_id in [one for one, started in mine.items() if now - started >= READS_SECONDS]:
            del mine[transaction_id]
        return len(mine) < allowed
