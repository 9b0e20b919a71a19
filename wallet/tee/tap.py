# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""One tap as the trusted application sees it: a nonce, one credential, one channel, one debit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from protocol import channel, signing
from protocol.apdu import Command
from protocol.certificate import TerminalCertificate
from protocol.channel import ChannelKeys
from protocol.commands import VERSION_1, Ins
from protocol.envelope import SUITE_1
from protocol.errors import Check, DecodeError
from protocol.messages import (
    CHALLENGE_LENGTH,
    Cancel,
    Cancellation,
    CardPlaintext,
    Confirm,
    Confirmed,
    Debit,
    DebitResult,
    GetVirtualCard,
    Receipt,
    Result,
    Settled,
    VirtualCard,
    certificate_hash,
)
from protocol.secret import Secret
from protocol.transcript import digests
from wallet.tee import encryption_module, purse, signature_module
from wallet.tee.consent import Consents
from wallet.tee.contract import REFERENCE_LENGTH, CardRequest, Origin, Shown, TeeError, TeeResult
from wallet.tee.key_agent import KeyAgent, Talk, slot_name
from wallet.tee.state import PURSE, Credential, Purse, Status, Transaction
from wallet.tee.storage import StorageFailedError
from wallet.tee.terminal_check import Expectation, refuse_alike, require_proof
from wallet.tee.transactions import TransactionBook
from wallet.tee.vault import Vault

VERSIONS = (VERSION_1,)
SUITES = (SUITE_1,)


@dataclass(slots=True)
class _Session:
    """What holds from a good GET VIRTUAL CARD to the end of the tap."""

    keys: ChannelKeys
    terminal: TerminalCertificate
    credential: Credential
    transaction: Transaction
    messages: int = 0
    debit: Debit | None = None
    result: Result | None = None


class Tap:
    """The steps in their order; whatever comes out of order or fails ends the session for good."""

    def __init__(self, vault: Vault, book: TransactionBook, consents: Consents, key: KeyAgent) -> None:
        """Make the nonce of this tap."""
        self._vault = vault
        self._book = book
        self._consents = consents
        self._key = key
        self._nonce: bytes | None = os.urandom(CHALLENGE_LENGTH)
        self._session: _Session | None = None

    @property
    def nonce(self) -> bytes:
        """The wallet's nonce for RELAY CHECK."""
        return self._nonce or bytes(CHALLENGE_LENGTH)

    def get_virtual_card(self, request: CardRequest) -> bytes:
        """Check the terminal, then encrypt the card, then sign the ciphertext; store before the answer leaves."""
        nonce, self._nonce = self._nonce, None
        if nonce is None:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "the nonce of this tap is used up")
        hello, t2 = self._check_terminal(request, nonce)
        terminal_hash = certificate_hash(hello.certificate)
        if not self._book.may_read(terminal_hash, self._vault.now(), self._vault.limits.reads):
            raise TeeError(
                TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, "terminal read too many cards without a payment"
            )
        with_key = self._consents.waits_for_key(hello.certificate)
        credential = self._vault.next_credential(with_key=with_key).shown_once_more()
        secret = Secret(os.urandom(channel.SECRET_LENGTH))
        card = CardPlaintext(
            credential.number,
            self._vault.purse.currency,
            credential.counter,
            secret,
            self._book.oldest_unconfirmed(terminal_hash),
        )
        sealed = encryption_module.encrypt_card(card, hello.tap_key, t2)
        signature = signature_module.sign_card(credential, sealed, t2)
        keys = channel.derive(secret, t2, sealed, credential.certificate.encode())
        serial = credential.certificate.serial
        transaction = self._book.begin(
            terminal_hash, keys.transaction_id, serial, credential.counter, self._vault.now()
        )
        self._book.commit(transaction, {credential.key: credential.encode()})
        self._vault.mark_shown(credential)
        self._session = _Session(keys, hello.certificate, credential, transaction)
        return VirtualCard(sealed, signature, credential.certificate).encode()

    def _check_terminal(self, request: CardRequest, nonce: bytes) -> tuple[GetVirtualCard, bytes]:
        command = Command(0x80, Ins.GET_VIRTUAL_CARD, request.p1, request.p2, request.data)
        if request.p1 not in VERSIONS or request.p2 not in SUITES:
            refuse_alike(Check.TRANSCRIPT, self._vault.acquirer)
        try:
            hello = GetVirtualCard.decode(request.data)
        except DecodeError:
            refuse_alike(Check.CERTIFICATE_FORMAT, self._vault.acquirer)
        both = digests(request.prefix, command)
        today = datetime.fromtimestamp(self._vault.now(), UTC).date()
        expected = Expectation(self._vault.acquirer, today, self._vault.blocked_terminals, nonce, VERSIONS, SUITES)
        require_proof(hello, both, request.prefix, expected)
        return hello, both.t2

    def channel(self, command: Command) -> Talk[tuple[Shown, bytes]]:
        """Answer one command of the channel, with the Key's help where that is needed; any failure ends the session."""
        session, self._session = self._session, None
        if session is None:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "there is no channel")
        plaintext = channel.open_command(session.keys, session.messages, command)
        answer, about = yield from self._answer(session, command.ins, plaintext)
        body = channel.seal_response(session.keys, session.messages, command.ins, answer)
        session.messages += 1
        self._session = session
        return self._shown(session, about), body

    def _answer(self, session: _Session, ins: int, plaintext: bytes) -> Talk[tuple[bytes, Transaction]]:
        """Return the answer to a command, and the transaction that it is about."""
        if ins == Ins.DEBIT:
            result = yield from self._debit(session, Debit.decode(plaintext))
            return result.encode(), session.transaction
        if ins == Ins.CONFIRM:
            return self._confirm(session, Confirm.decode(plaintext))
        if ins == Ins.CANCEL:
            return self._cancel(session, Cancel.decode(plaintext))
        raise TeeError(TeeResult.NOT_SUPPORTED, Origin.TRUSTED_APP, "no such command in the channel")

    def _debit(self, session: _Session, debit: Debit) -> Talk[DebitResult]:
        if session.transaction.status is Status.OPEN and session.debit is None:
            yield from self._settle(session, debit)
        elif session.debit != debit:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "a tap pays once")
        if session.result is None:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "the transaction has no result")
        return DebitResult(session.result, session.transaction.signature)

    def _settle(self, session: _Session, debit: Debit) -> Talk[None]:
        terminal, by_key = session.terminal, purse.needs_key(debit.amount, self._vault.limits)
        consented = self._consents.covers(terminal, debit)
        result = self._judge(session, debit, consented=consented)
        if result is Result.SEE_PHONE and not by_key and self._consents.ask_at_once(terminal, debit):
            consented, result = True, self._judge(session, debit, consented=True)
        session.debit = debit
        co_signature = b""
        if result is Result.APPROVED and session.credential.certificate.co_signing_key:
            co_signature = yield from self._co_sign(session, debit)
            if not co_signature:
                result = Result.SEE_PHONE
                self._consents.withdraw()
        self._conclude(session, debit, result, co_signature, consented=consented)
        if session.result is Result.APPROVED:
            self._consents.use(terminal, debit)
        elif session.result is Result.SEE_PHONE and (by_key or not self._consents.at_once):
            self._consents.want(terminal, debit, by_key=by_key)

    def _conclude(
        self, session: _Session, debit: Debit, result: Result, co_signature: bytes, *, consented: bool
    ) -> None:
        now = self._vault.purse
        paid = purse.pay(debit.amount, now, consented=consented) if result is Result.APPROVED else now
        try:
            self._finish(session, debit, result, paid, co_signature)
        except StorageFailedError:
            self._finish_unstored(session, debit)

    def _co_sign(self, session: _Session, debit: Debit) -> Talk[bytes]:
        """Return what the Key signs of the receipt that is to be; b"" when it does not. Nothing is deducted before it has."""
        certificate = session.credential.certificate
        receipt = self._receipt(session, debit, Result.APPROVED)
        return (yield from self._key.co_sign(slot_name(certificate.public_key), receipt, certificate.co_signing_key))

    def _judge(self, session: _Session, debit: Debit, *, consented: bool) -> Result:
        certificate, limits = session.credential.certificate, self._vault.limits
        return purse.judge(debit, self._vault.purse, session.terminal, certificate, limits=limits, consented=consented)

    def _finish(self, session: _Session, debit: Debit, result: Result, paid: Purse, co_signature: bytes) -> None:
        number = paid.debits if result is Result.APPROVED else 0
        settled = self._signed(session, debit, result, number, co_signature)
        self._book.commit(settled, {PURSE: paid.encode()})
        session.transaction, session.result = settled, result

    def _finish_unstored(self, session: _Session, debit: Debit) -> None:
        """Say that nothing was deducted: on disk the transaction stays open, and only this session could pay it."""
        session.transaction = self._signed(session, debit, Result.STORAGE_FAILURE)
        session.result = Result.STORAGE_FAILURE

    def _signed(
        self, session: _Session, debit: Debit, result: Result, number: int = 0, co_signature: bytes = b""
    ) -> Transaction:
        receipt = self._receipt(session, debit, result)
        signature = signature_module.sign_receipt(session.credential, receipt)
        return session.transaction.settled(receipt, signature + co_signature, number)

    def _receipt(self, session: _Session, debit: Debit, result: Result) -> Receipt:
        return Receipt(
            VERSION_1,
            SUITE_1,
            certificate_hash(session.credential.certificate),
            session.transaction.terminal_hash,
            session.credential.counter,
            session.transaction.transaction_id,
            debit,
            result,
        )

    def _confirm(self, session: _Session, confirm: Confirm) -> tuple[bytes, Transaction]:
        """End the re-presentation of a result; an id that is not known changes nothing."""
        wanted = confirm.transaction_id or session.transaction.transaction_id
        found = self._book.find(session.transaction.terminal_hash, wanted)
        if not confirm.transaction_id:
            found = session.transaction
            if found.status is Status.OPEN:
                raise TeeError(TeeResult.ITEM_NOT_FOUND, Origin.TRUSTED_APP, "there is nothing to confirm")
        if found is not None and found.status is not Status.OPEN:
            self._book.confirm(found, self._vault.purse.acknowledged)
        return Confirmed(self._next_open(session)).encode(), found or session.transaction

    def _cancel(self, session: _Session, cancel: Cancel) -> tuple[bytes, Transaction]:
        """Make an open transaction one that is never paid, and say its final result whatever it is."""
        found = self._book.find(session.transaction.terminal_hash, cancel.transaction_id)
        if found is None:
            nothing = bytes(signing.SIGNATURE_LENGTH)
            return Settled(Result.UNKNOWN, self._next_open(session), nothing).encode(), session.transaction
        if found.status is Status.OPEN:
            found = self._cancelled(found)
            if found.transaction_id == session.transaction.transaction_id:
                session.transaction, session.result = found, Result.CANCELLED
        return Settled(found.result, self._next_open(session), found.signature).encode(), found

    def _cancelled(self, transaction: Transaction) -> Transaction:
        credential = self._vault.credential(transaction.credential_serial)
        cancellation = Cancellation(
            VERSION_1,
            SUITE_1,
            certificate_hash(credential.certificate),
            transaction.terminal_hash,
            transaction.counter,
            transaction.transaction_id,
        )
        cancelled = transaction.cancelled(signature_module.sign_receipt(credential, cancellation))
        self._book.commit(cancelled, {})
        return cancelled

    def _next_open(self, session: _Session) -> bytes:
        """Return what this terminal should settle next, this session's own transaction left out while it is open."""
        return self._book.oldest_unconfirmed(session.transaction.terminal_hash, but=session.transaction.transaction_id)

    def _shown(self, session: _Session, about: Transaction) -> Shown:
        debit = session.debit if about is session.transaction else about.debit
        result = session.result if about is session.transaction and session.result is not None else about.result
        return Shown(
            session.terminal.merchant.name,
            session.terminal.terminal_id,
            debit.amount if debit else 0,
            debit.currency if debit else self._vault.purse.currency,
            result,
            self._vault.purse.balance,
            about.transaction_id[:REFERENCE_LENGTH],
        )
