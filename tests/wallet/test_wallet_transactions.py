# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the wallet remembers of its transactions: what is open, what comes first, and how often a terminal may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.messages import NOTHING_OPEN
from protocol.secret import Secret
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.state import CREDENTIAL, PURSE, Limits, Status, Transaction
from wallet.tee.storage import SealedStorage, StorageFailedError
from wallet.tee.transactions import READS_SECONDS, TransactionBook

_MINE, _THEIRS = b"m" * 32, b"t" * 32
_NOW = 1_800_000_000
READS_ALLOWED = Limits().reads


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[SealedStorage]:
    counter = FreshnessCounter(tmp_path, Secret(bytes(32)))
    made = SealedStorage(tmp_path, Secret(bytes(32)), counter)
    yield made
    for descriptor in (*made.descriptors, *counter.descriptors):
        os.close(descriptor)


@pytest.fixture
def book(storage: SealedStorage) -> TransactionBook:
    return TransactionBook(storage)


def _begin(book: TransactionBook, number: int, terminal: bytes = _MINE, now: int = _NOW) -> Transaction:
    transaction = book.begin(terminal, bytes([number]) * 16, bytes(8), 1, now)
    book.commit(transaction, {})
    return transaction


def _settle(book: TransactionBook, transaction: Transaction, status: Status) -> Transaction:
    settled = replace(transaction, status=status, number=int(status is Status.APPROVED))
    book.commit(settled, {})
    return settled


def test_nothing_is_open_with_a_terminal_that_was_never_met(book: TransactionBook) -> None:
    assert book.oldest_unconfirmed(_MINE) == NOTHING_OPEN


def test_the_oldest_one_comes_first(book: TransactionBook) -> None:
    first, _ = _begin(book, 1), _begin(book, 2)
    assert book.oldest_unconfirmed(_MINE) == first.transaction_id


@pytest.mark.parametrize("other", [Status.OPEN, Status.REFUSED, Status.CANCELLED])
def test_an_approved_one_comes_before_any_other(book: TransactionBook, other: Status) -> None:
    _settle(book, _begin(book, 1), other)
    approved = _settle(book, _begin(book, 2), Status.APPROVED)
    _settle(book, _begin(book, 3), Status.APPROVED)
    assert book.oldest_unconfirmed(_MINE) == approved.transaction_id


def test_a_terminal_hears_of_its_own_transactions_only(book: TransactionBook) -> None:
    _settle(book, _begin(book, 1), Status.APPROVED)
    assert book.oldest_unconfirmed(_THEIRS) == NOTHING_OPEN


def test_a_confirmed_one_is_not_presented_again_and_the_next_one_is(book: TransactionBook) -> None:
    first = _settle(book, _begin(book, 1), Status.APPROVED)
    second = _settle(book, _begin(book, 2), Status.APPROVED)
    book.confirm(first, acknowledged=0)
    assert book.oldest_unconfirmed(_MINE) == second.transaction_id
    book.confirm(second, acknowledged=0)
    assert book.oldest_unconfirmed(_MINE) == NOTHING_OPEN


def test_a_confirmed_payment_is_kept_for_the_issuer_and_a_refusal_is_not(
    book: TransactionBook, storage: SealedStorage
) -> None:
    paid = _settle(book, _begin(book, 1), Status.APPROVED)
    refused = _settle(book, _begin(book, 2), Status.REFUSED)
    for one in (paid, refused):
        book.confirm(one, acknowledged=0)
    kept = storage.get(paid.key)
    assert kept is not None
    assert Transaction.decode(kept).confirmed
    assert storage.get(refused.key) is None


def test_the_index_is_the_same_when_it_is_read_from_storage_again(
    book: TransactionBook, storage: SealedStorage
) -> None:
    _begin(book, 1)
    approved = _settle(book, _begin(book, 2), Status.APPROVED)
    again = TransactionBook(storage)
    assert again.oldest_unconfirmed(_MINE) == approved.transaction_id
    assert again.begin(_MINE, bytes(16), bytes(8), 1, _NOW).order > approved.order


# --- how often a terminal may read without asking for a payment


def test_three_reads_are_allowed_and_a_fourth_is_not(book: TransactionBook) -> None:
    for number in range(READS_ALLOWED):
        assert book.may_read(_MINE, _NOW, READS_ALLOWED)
        _begin(book, number)
    assert READS_ALLOWED == 3  # the default
    assert not book.may_read(_MINE, _NOW, READS_ALLOWED)
    assert book.may_read(_THEIRS, _NOW, READS_ALLOWED)


@pytest.mark.parametrize(("later", "allowed"), [(READS_SECONDS - 1, False), (READS_SECONDS, True)])
def test_reads_are_forgotten_after_ten_minutes(book: TransactionBook, later: int, allowed: bool) -> None:
    for number in range(READS_ALLOWED):
        _begin(book, number)
    assert READS_SECONDS == 600
    assert book.may_read(_MINE, _NOW + later, READS_ALLOWED) is allowed


def test_cancelling_does_not_undo_a_read(book: TransactionBook) -> None:
    for number in range(READS_ALLOWED):
        book.confirm(_settle(book, _begin(book, number), Status.CANCELLED), acknowledged=0)
    assert not book.may_read(_MINE, _NOW, READS_ALLOWED)


@pytest.mark.parametrize("status", [Status.APPROVED, Status.REFUSED])
def test_a_read_that_came_to_a_result_does_not_count(book: TransactionBook, status: Status) -> None:
    for number in range(2 * READS_ALLOWED):
        _settle(book, _begin(book, number), status)
    assert book.may_read(_MINE, _NOW, READS_ALLOWED)


def test_the_reads_are_counted_across_a_restart(book: TransactionBook, storage: SealedStorage) -> None:
    for number in range(READS_ALLOWED):
        _begin(book, number)
    assert not TransactionBook(storage).may_read(_MINE, _NOW, READS_ALLOWED)


# --- a disk that is full: what the book says stays what is on disk


class FullDisk:
    """Lets every write of a storage fail, as it does on a full disk, until it is left."""

    def __init__(self, storage: SealedStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        self._storage = storage
        self._patch = monkeypatch

    def __enter__(self) -> None:
        def fails(_: object) -> None:
            raise StorageFailedError("the disk is full")

        for name in ("commit", "note"):
            self._patch.setattr(self._storage, name, fails)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


@pytest.mark.attack("T5")
@pytest.mark.parametrize("how", ["forget", "confirm"])
def test_what_could_not_be_removed_from_disk_is_still_told_and_its_card_is_kept(
    storage: SealedStorage, book: TransactionBook, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    storage.commit({CREDENTIAL + bytes(8): b"the card"})
    settled = _settle(book, _begin(book, 1), Status.APPROVED)
    with FullDisk(storage, monkeypatch), pytest.raises(StorageFailedError):
        book.forget([settled], {}) if how == "forget" else book.confirm(settled, acknowledged=1)
    assert book.oldest_unconfirmed(_MINE) == settled.transaction_id
    _begin(book, 2)
    book.forget([settled], {})
    assert storage.get(CREDENTIAL + bytes(8)) == b"the card"  # the second transaction was made with it


def test_with_its_last_transaction_a_card_goes(storage: SealedStorage, book: TransactionBook) -> None:
    storage.commit({CREDENTIAL + bytes(8): b"the card"})
    settled = [_settle(book, _begin(book, number), Status.APPROVED) for number in (1, 2)]
    book.forget(settled, {PURSE: b"the purse"})
    assert [storage.get(one) for one in (CREDENTIAL + bytes(8), PURSE)] == [None, b"the purse"]
    assert book.oldest_unconfirmed(_MINE) == NOTHING_OPEN
