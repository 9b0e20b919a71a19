# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Clearing: what wallets list and terminals claim becomes money, by the rules of docs/protocol.md ("Settlement").

A merchant is paid once for each (credential, counter, id). A wallet is credited only for a debit that its own list shows, and
only when its terminal gave it up or never claimed it in time. Nobody is credited on the wallet's word alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from issuer.database import Books, CredentialRow, DebitRow, DeviceRow, VoucherRow
from protocol import signing
from protocol.certificate import CredentialCertificate
from protocol.issuing import IssuerRefusedError, RefusalReason
from protocol.messages import Receipt, Result, certificate_hash
from protocol.settlement import (
    Claim,
    DebitOutcome,
    ListedDebit,
    SettledAs,
    Settlement,
    Standing,
    Statement,
    Verdict,
    Void,
)
from protocol.signing import PrivateKey
from protocol.vouchers import Voucher

CLAIM_WINDOW = 7 * 24 * 3600  # seconds from the sync that first lists a debit
MAX_VOUCHERS = 256
_UNSIGNED = bytes(signing.SIGNATURE_LENGTH)


@dataclass(frozen=True, slots=True)
class Clearing:
    """The rules, within one transaction of the books and at one moment (seconds since 1970)."""

    books: Books
    key: PrivateKey
    now: int

    # --- what a wallet says

    def settle(self, statement: Statement) -> Settlement:
        """Take over a wallet's list and answer what has become of its debits; IssuerRefusedError for a bad one."""
        device = self._device_of(statement)
        if statement.restored:
            return self._settle_restored(statement, device)
        self._require_gapless(statement, device)
        for number, listed in enumerate(statement.debits, statement.first):
            device = self._list(listed, device, again=number <= device.listed)
        device = replace(device, listed=max(device.listed, statement.last), nonce=b"", restored_at=0, reissued_at=0)
        self.books.update_device(device)
        if device.listed == statement.total:
            device = self._deny_what_is_not_listed(device)
        self._expire(device)
        standing = Standing.BLOCKED if device.blocked else Standing.GOOD
        return self._answer(statement, device, standing)

    def _device_of(self, statement: Statement) -> DeviceRow:
        device = self.books.device(statement.device)
        if device is None:
            raise IssuerRefusedError(RefusalReason.UNKNOWN_DEVICE)
        if not signing.is_valid(device.key, statement.signature, statement.signature_input()):
            raise IssuerRefusedError(RefusalReason.SIGNATURE)
        if not device.nonce or statement.nonce != device.nonce:
            raise IssuerRefusedError(RefusalReason.NONCE)
        return device

    def _require_gapless(self, statement: Statement, device: DeviceRow) -> None:
        """A list that goes back is as bad as one with a gap: neither is from the wallet that sent the last one."""
        if not statement.first <= device.listed + 1 <= statement.last + 1 or statement.total < device.listed:
            raise IssuerRefusedError(RefusalReason.GAP)

    def _list(self, listed: ListedDebit, device: DeviceRow, *, again: bool) -> DeviceRow:
        """Note a debit as listed now, unless it was before; a terminal's VOID credits it at once.

        `again` says that its number was listed before: only a wallet that was copied has another debit for it now.
        """
        receipt = listed.receipt
        credential = self._own_credential(listed, device)
        key = (credential.serial, receipt.counter, receipt.transaction_id)
        known = self.books.debit(key)
        if known is not None and known.listed_at:
            return device
        row = known or _debit_of(receipt, credential)
        if not row.counts:
            row = self._take(row)
        row = replace(row, listed_at=self.now, denied=again or not _agree(row, receipt))
        self.books.put_debit(row)
        if not row.pays_merchant and self.books.is_void(row.terminal_hash, key):
            self._refund(row)
        return replace(device, blocked=True) if row.denied else device

    def _take(self, row: DebitRow) -> DebitRow:
        """Take a debit from what its wallet holds by the books; what is not there is lost.

        A wallet has more debits than money when it was copied, or when its keys are its user's.
        """
        taken = min(row.amount, self.books.holds(row.device) + (row.taken if row.counts else 0))
        return replace(row, taken=taken, lost=row.amount - taken)

    def _own_credential(self, listed: ListedDebit, device: DeviceRow) -> CredentialRow:
        credential = self.books.credential_by_serial(listed.credential)
        if (
            credential is None
            or credential.device != device.device
            or listed.receipt.result is not Result.APPROVED
            or listed.receipt.debit.currency != device.currency
        ):
            raise IssuerRefusedError(RefusalReason.MALFORMED)
        return credential

    def _deny_what_is_not_listed(self, device: DeviceRow) -> DeviceRow:
        """A claim older than a complete list that does not have it: pay, block the wallet, take it from its purse first."""
        for row in self.books.unlisted_debits(device.device):
            if row.pays_merchant and not row.denied and row.paid_at < device.nonce_at:
                self.books.put_debit(replace(self._take(row), denied=True))
                device = replace(device, blocked=True)
                self.books.update_device(device)
        return device

    def _expire(self, device: DeviceRow) -> int:
        """Credit every debit whose claim window has passed, and return how many."""
        late = [one for one in self.books.open_debits(device.device) if self._is_late(one)]
        for row in late:
            self._refund(row)
        return len(late)

    def expire_all(self) -> int:
        """Credit what nobody claimed in time, for every wallet, and return how many debits that were."""
        return sum(self._expire(device) for device in self.books.devices()) + sum(
            self._close_books(device) for device in self.books.devices() if self._is_due(device)
        )

    def _is_due(self, device: DeviceRow) -> bool:
        """Tell whether the money of a wallet that was put back can be reissued now, which is done once."""
        return bool(device.restored_at) and not device.reissued_at and self.now > device.restored_at + CLAIM_WINDOW

    def _is_late(self, row: DebitRow) -> bool:
        return bool(row.listed_at) and self.now > row.listed_at + CLAIM_WINDOW

    def _refund(self, row: DebitRow) -> None:
        """Give back by the wallet's next voucher what a debit took from it; what it never held stays nobody's."""
        device = self.books.device(row.device)
        if device is None:
            raise IssuerRefusedError(RefusalReason.UNKNOWN_DEVICE)
        newest = self.books.newest_voucher(row.device)
        if row.amount > row.lost:
            self.add_voucher(device, (newest.number if newest else 0) + 1, row.amount - row.lost, refund=True)
        self.books.put_debit(replace(row, refunded=True, lost=0))

    def add_voucher(self, device: DeviceRow, number: int, amount: int, *, refund: bool = False) -> Voucher:
        """Sign and remember a voucher."""
        unsigned = Voucher(device.device, number, amount, device.currency, _UNSIGNED)
        voucher = replace(unsigned, signature=self.key.sign(unsigned.signature_input()))
        self.books.add_voucher(
            VoucherRow(device.device, number, amount, device.currency, voucher.encode(), refund=refund)
        )
        return voucher

    # --- a wallet whose storage was put back

    def _settle_restored(self, statement: Statement, device: DeviceRow) -> Settlement:
        """Withdraw its credentials, wait out the claim window, then reissue what the books say; repeated alike until used."""
        if not device.restored_at:
            device = replace(device, restored_at=self.now, reissued_at=0)
            self.books.withdraw_credentials(device.device, self.now)
        device = replace(device, nonce=b"")
        self.books.update_device(device)
        if device.blocked:
            return self._answer(statement, device, Standing.BLOCKED)
        if self._is_due(device):
            self._close_books(device)
        elif not device.reissued_at:
            until = device.restored_at + CLAIM_WINDOW
            return self._answer(statement, device, Standing.WAITING, until=until)
        return self._answer(statement, device, Standing.REISSUED)

    def _close_books(self, device: DeviceRow) -> int:
        """End every debit of the withdrawn credentials and return how many went back to the wallet unclaimed."""
        unclaimed = self.books.open_debits(device.device)
        for row in unclaimed:
            self._refund(row)
        for row in self.books.unlisted_debits(device.device):
            if row.pays_merchant:
                self.books.put_debit(replace(row, listed_at=self.now))
        self.books.update_device(replace(device, reissued_at=self.now))
        return len(unclaimed)

    def _answer(self, statement: Statement, device: DeviceRow, standing: Standing, until: int = 0) -> Settlement:
        reissued = standing is Standing.REISSUED
        newest = self.books.newest_voucher(device.device)
        after = self.books.vouchers_after(device.device, statement.loads, MAX_VOUCHERS)
        unsigned = Settlement(
            device.device,
            statement.challenge,
            standing,
            device.listed,
            self.books.holds(device.device) if reissued else 0,
            newest.number if newest and reissued else 0,
            until,
            self._outcomes(statement, device),
            tuple(Voucher.decode(row.message) for row in after) if standing is Standing.GOOD else (),
            self.now,
            _UNSIGNED,
        )
        return replace(unsigned, signature=self.key.sign(unsigned.signature_input()))

    def _outcomes(self, statement: Statement, device: DeviceRow) -> tuple[DebitOutcome, ...]:
        wanted = {*statement.wanted, *(listed.receipt.transaction_id for listed in statement.debits)}
        rows = self.books.debits_by_id(device.device, wanted)
        return tuple(DebitOutcome(row.transaction_id, _outcome_of(row)) for row in rows if not row.is_open)

    # --- what a terminal says

    def claim(self, claim: Claim) -> Verdict:
        """Pay a receipt once, if everything about it is good and it comes in time."""
        credential = self.books.credential_by_serial(claim.credential)
        if credential is None or not self._is_good(claim, credential):
            return Verdict.NOT_VALID
        key = (credential.serial, claim.receipt.counter, claim.receipt.transaction_id)
        known = self.books.debit(key)
        agree = known is None or _agree(known, claim.receipt)
        if known is not None and known.paid_at and not agree:
            return Verdict.NOT_VALID  # the credential signed two receipts, and one is paid
        if known is not None and known.pays_merchant:
            return Verdict.PAID
        if self.books.is_void(claim.receipt.terminal_hash, key):
            return Verdict.VOIDED
        if self._comes_too_late(known, credential, agree=agree):
            return Verdict.TOO_LATE
        row = _debit_of(claim.receipt, credential)
        if known is not None:
            row = known if agree else self._correct(known, row)
        self.books.put_debit(replace(row if row.counts else self._take(row), paid_at=self.now))
        return Verdict.PAID

    def _correct(self, listed: DebitRow, signed: DebitRow) -> DebitRow:
        """Put what the credential signed in the place of what the wallet listed, which is something else.

        Such a wallet has denied the debit. A credit that it got on the word of another terminal stays taken beside the debit.
        """
        device = self.books.device(listed.device)
        if device is not None:
            self.books.update_device(replace(device, blocked=True))
        credited = listed if listed.refunded else replace(listed, taken=0, lost=0)
        self.books.put_debit(credited)  # what the false debit took is there again
        row = self._take(signed)
        return replace(
            row,
            taken=row.taken + credited.taken,
            lost=row.lost + credited.lost,
            listed_at=listed.listed_at,
            denied=True,
        )

    def _is_good(self, claim: Claim, credential: CredentialRow) -> bool:
        """Check all that a receipt says against the issuer's own records; every check is made."""
        certificate = CredentialCertificate.decode(credential.certificate)
        receipt, debit = claim.receipt, claim.receipt.debit
        terminal = self.books.terminal_by_hash(receipt.terminal_hash)
        device = self.books.device(credential.device)
        checks = (
            receipt.result is Result.APPROVED,
            receipt.credential_hash == certificate_hash(certificate),
            receipt.is_shown_by(claim.evidence, certificate),
            debit.amount <= certificate.offline_ceiling,
            device is not None and debit.currency == device.currency,
            terminal is not None and signing.is_valid(terminal.key, claim.signature, claim.signature_input()),
        )
        return all(checks)

    def _comes_too_late(self, known: DebitRow | None, credential: CredentialRow, *, agree: bool) -> bool:
        """Tell whether the window is over, or the debit credited; a credit for another debit is none for this one."""
        if known is not None and ((known.refunded and agree) or self._is_late(known)):
            return True
        return bool(credential.withdrawn_at) and self.now > credential.withdrawn_at + CLAIM_WINDOW

    def void(self, void: Void) -> Verdict:
        """Take a terminal's word that it gives a transaction up; what it was paid for is charged back."""
        terminal = self.books.terminal_by_hash(void.terminal_hash)
        if terminal is None or not signing.is_valid(terminal.key, void.signature, void.signature_input()):
            return Verdict.NOT_VALID
        key = (void.credential, void.counter, void.transaction_id)
        known = self.books.debit(key)
        if known is not None and known.terminal_hash != void.terminal_hash:
            return Verdict.NOT_VALID
        self.books.add_void(void.terminal_hash, key)
        if known is None:
            return Verdict.VOIDED
        verdict = Verdict.CHARGED_BACK if known.pays_merchant else Verdict.VOIDED
        known = replace(known, charged_back=known.charged_back or known.pays_merchant)
        self.books.put_debit(known)
        if known.is_open:
            self._refund(known)
        return verdict


def _debit_of(receipt: Receipt, credential: CredentialRow) -> DebitRow:
    return DebitRow(
        credential.serial,
        receipt.counter,
        receipt.transaction_id,
        credential.device,
        receipt.terminal_hash,
        receipt.debit.amount,
    )


def _agree(row: DebitRow, receipt: Receipt) -> bool:
    """Tell whether the books have what a receipt of the same credential, counter and id says."""
    return (row.terminal_hash, row.amount) == (receipt.terminal_hash, receipt.debit.amount)


def _outcome_of(row: DebitRow) -> SettledAs:
    return SettledAs.PAID if row.pays_merchant else SettledAs.REFUNDED
