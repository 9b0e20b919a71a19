# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The wallet's side of settlement: a list of its debits without a gap, signed by the device, and what the issuer answers.

The issuer's answer belongs to one statement, by the challenge that the trusted world made for it. It is the only way back
from a storage that was put to an older copy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from protocol import signing
from protocol.errors import Check, VerificationError
from protocol.messages import Receipt
from protocol.settlement import (
    MAX_LISTED,
    NONCE_LENGTH,
    ListedDebit,
    SettledAs,
    Settlement,
    Standing,
    Statement,
)
from wallet.tee.contract import REFERENCE_LENGTH, Origin, TeeError, TeeResult
from wallet.tee.key_agent import KEPT_AT_REISSUE as KEY_KEPT_AT_REISSUE
from wallet.tee.pin import PIN
from wallet.tee.state import ANCHORS, BLOCK_LIST, DEVICE, LIMITS, PHRASE, PURSE, Purse, Transaction, signer
from wallet.tee.storage import Changes, SealedStorage
from wallet.tee.transactions import TransactionBook
from wallet.tee.vault import Vault

_KEPT_AT_REISSUE = (DEVICE, ANCHORS, BLOCK_LIST, LIMITS, PHRASE, PIN, *KEY_KEPT_AT_REISSUE)


@dataclass(frozen=True, slots=True)
class SettledDebit:
    """What became of one debit, by the reference that the client application knows it by."""

    reference: bytes
    outcome: SettledAs


class Clearing:
    """Lists debits and takes over what the issuer says of them."""

    def __init__(self, storage: SealedStorage, vault: Vault, book: TransactionBook) -> None:
        """Work on what the payment application works on."""
        self._storage = storage
        self._vault = vault
        self._book = book
        self._challenge = b""

    def statement(self, nonce: bytes) -> Statement:
        """Return the signed list of what the issuer has not acknowledged, at most MAX_LISTED debits at once."""
        self._challenge = os.urandom(NONCE_LENGTH)
        purse, restored = self._vault.purse, self._vault.is_locked
        debits = [] if restored else self._book.debits()
        new = [one for one in debits if one.number > purse.acknowledged][:MAX_LISTED]
        known = [one.transaction_id for one in debits if one.number <= purse.acknowledged][:MAX_LISTED]
        unsigned = Statement(
            self._vault.device_id,
            nonce,
            self._challenge,
            restored,
            purse.loads,
            purse.debits,
            purse.acknowledged + 1,
            tuple(ListedDebit(one.credential_serial, Receipt.decode(one.receipt)) for one in new),
            tuple(known),
            bytes(signing.SIGNATURE_LENGTH),
        )
        key = signer(self._vault.device.signing_scalar)
        return replace(unsigned, signature=key.sign(unsigned.signature_input()))

    def take(self, settlement: Settlement) -> list[SettledDebit]:
        """Take over the issuer's answer to the last statement, all of it or nothing; return what was decided.

        Cards that have expired go too, with what was begun with them and never paid: no terminal takes them any more.
        """
        self._require_ours(settlement)
        if self._vault.is_locked:
            if settlement.standing is Standing.REISSUED:
                self._start_anew(settlement)
            return []
        if settlement.standing is Standing.REISSUED:
            raise TeeError(
                TeeResult.BAD_STATE, Origin.TRUSTED_APP, "this storage was not put back; nothing is reissued"
            )
        outcomes = {one.transaction_id: one.outcome for one in settlement.outcomes}
        debits = [one for one in self._book.debits() if one.number <= settlement.acknowledged]
        settled = [one for one in debits if one.transaction_id in outcomes]
        done = [one for one in debits if one.confirmed or one.transaction_id in outcomes]
        expired = self._vault.expired_credentials()
        over = self._book.undebited({one.certificate.serial for one in expired})
        changes: Changes = {one.key: None for one in expired if one.counter == 0}
        self._book.forget([*done, *over], {**changes, PURSE: self._settled_purse(settlement).encode()})
        self._vault.forget_cache()
        return [SettledDebit(_reference(one), outcomes[one.transaction_id]) for one in settled]

    def _require_ours(self, settlement: Settlement) -> None:
        challenge, self._challenge = self._challenge, b""
        key = self._vault.anchors.operations_key
        if not signing.is_valid(key, settlement.signature, settlement.signature_input()):
            raise VerificationError(Check.SIGNATURE)
        if not challenge or (settlement.device, settlement.challenge) != (self._vault.device_id, challenge):
            raise TeeError(TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, "this answers another statement")

    def _settled_purse(self, settlement: Settlement) -> Purse:
        purse = self._vault.purse
        if not purse.acknowledged <= settlement.acknowledged <= purse.debits:
            raise TeeError(
                TeeResult.BAD_PARAMETERS, Origin.TRUSTED_APP, "the issuer counts other debits than were made"
            )
        for voucher in settlement.vouchers:
            if voucher.number > purse.loads:
                purse = self._vault.with_voucher(purse, voucher)
        newest = max(purse.last_time, settlement.time)
        return replace(purse, acknowledged=settlement.acknowledged, last_time=newest)

    def _start_anew(self, settlement: Settlement) -> None:
        """Begin again with what the issuer's books say: no credential, no transaction, the balance that is left."""
        purse = replace(
            self._vault.purse,
            balance=settlement.balance,
            loads=settlement.loads,
            debits=settlement.acknowledged,
            acknowledged=settlement.acknowledged,
            last_time=max(self._vault.purse.last_time, settlement.time),
        )
        kept = {key: value for key in _KEPT_AT_REISSUE if (value := self._storage.get(key)) is not None}
        self._storage.start_anew({**kept, PURSE: purse.encode()})
        self._vault.forget_cache()
        self._book.read_again()


def _reference(transaction: Transaction) -> bytes:
    return transaction.transaction_id[:REFERENCE_LENGTH]
