# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The issuer at work: one request message in, one answer out. Every request can be repeated without harm."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from issuer import keys
from issuer.clearing import Clearing
from issuer.database import Books, CredentialRow, Database, DeviceRow, TerminalRow
from protocol import envelope, signing
from protocol.card_number import CardNumber
from protocol.certificate import (
    SERIAL_LENGTH,
    CredentialCertificate,
    TerminalCertificate,
    Usage,
    issue,
    whole_months,
)
from protocol.errors import DecodeError, VerificationError
from protocol.issuing import (
    AnchorsRequest,
    Application,
    BlockList,
    BlockListRequest,
    Issuance,
    IssuedNumbers,
    IssuerRefusedError,
    Refusal,
    RefusalReason,
    TerminalApplication,
    TerminalIssuance,
    Unblocking,
    UnblockRequest,
    decode_message,
    encode_message,
)
from protocol.messages import certificate_hash
from protocol.money import Currency
from protocol.settlement import NONCE_LENGTH, IssuerNonce, NonceRequest, ReportAnswer, Statement, TerminalReport
from protocol.vouchers import LoadRequest, Voucher, device_id
from protocol.wire import Wire

OFFLINE_CEILING_MAJOR = 1000
TERMINAL_YEARS = 2
_UNSIGNED = bytes(signing.SIGNATURE_LENGTH)


class Issuer:
    """The scheme of one folder."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the keys and the database; UsageError when there is no issuer in `folder`.

        `clock` gives the seconds since 1970.
        """
        self._clock = clock
        self._keys = keys.load(folder)
        self._database = Database(folder)
        self._handlers: dict[type[Wire], Callable[[Any, Books], Wire]] = {
            AnchorsRequest: lambda _, __: self._keys.anchors,
            Application: self._apply,
            LoadRequest: self._load,
            TerminalApplication: self._certify_terminal,
            BlockListRequest: lambda _, books: self._block_list(books),
            NonceRequest: self._nonce,
            Statement: lambda statement, books: self._clearing(books).settle(statement),
            TerminalReport: self._report,
            UnblockRequest: self._unblock,
        }

    def handle(self, request: bytes) -> bytes:
        """Return the answer to one request message; what cannot be done is answered with a Refusal."""
        try:
            message = decode_message(request)
            handler = self._handlers.get(type(message), _no_request)
            with self._database.transaction() as books:
                answer = handler(message, books)
        except (DecodeError, VerificationError):
            answer = Refusal(RefusalReason.MALFORMED)
        except IssuerRefusedError as refused:
            answer = Refusal(refused.reason)
        return encode_message(answer)

    def settle(self) -> int:
        """Credit every debit whose claim window has passed without a claim, and return how many."""
        with self._database.transaction() as books:
            return self._clearing(books).expire_all()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _now(self) -> int:
        return int(self._clock())

    def _today(self) -> date:
        return datetime.fromtimestamp(self._now(), UTC).date()

    def _clearing(self, books: Books) -> Clearing:
        return Clearing(books, self._keys.operations, self._now())

    # --- wallets

    def _apply(self, application: Application, books: Books) -> Issuance:
        _require_signature(application.device_key, application.signature, application.signature_input())
        device = device_id(application.device_key)
        self._enrol(application, device, books)
        backing = application.co_signing_keys or (b"",) * len(application.credential_keys)
        issued = [
            self._credential(key, co_signing_key, device, application.currency, books)
            for key, co_signing_key in zip(application.credential_keys, backing, strict=True)
        ]
        numbers = IssuedNumbers(tuple(CardNumber(row.number) for row in issued))
        digest = application.digest()
        sealed = envelope.seal(numbers.encode(), application.sealing_key, IssuedNumbers.info(digest))
        certificates = tuple(CredentialCertificate.decode(row.certificate) for row in issued)
        unsigned = Issuance(certificates, sealed, _UNSIGNED)
        signature = self._keys.operations.sign(unsigned.signature_input(digest))
        return replace(unsigned, signature=signature)

    def _enrol(self, application: Application, device: bytes, books: Books) -> None:
        """Remember a device at its first application: from then on its key must sign, and its currency stays."""
        known = books.device(device)
        if known is None:
            _require_currency(application.currency)
            locked_down = bool(application.locked_down)
            books.add_device(DeviceRow(device, application.device_key, application.currency, locked_down))
        elif known.blocked:
            raise IssuerRefusedError(RefusalReason.BLOCKED)
        elif known.restored_at:
            raise IssuerRefusedError(RefusalReason.RESTORED)
        elif known.currency != application.currency:
            raise IssuerRefusedError(RefusalReason.CURRENCY)

    def _credential(
        self, key: bytes, co_signing_key: bytes, device: bytes, currency: int, books: Books
    ) -> CredentialRow:
        """Return the stored credential of `key`, made now if there is none."""
        known = books.credential(key)
        if known is None:
            certificate = self._credential_certificate(key, co_signing_key, currency)
            number = _unused_number(books)
            known = CredentialRow(
                key, device, certificate.serial, number.digits, certificate.encode(), certificate.valid_until
            )
            books.add_credential(known)
        if known.device != device:
            raise IssuerRefusedError(RefusalReason.KEY_TAKEN)
        return known

    def _credential_certificate(self, key: bytes, co_signing_key: bytes, currency: int) -> CredentialCertificate:
        ceiling = OFFLINE_CEILING_MAJOR * 10 ** Currency.of(currency).exponent
        unsigned = CredentialCertificate(
            os.urandom(SERIAL_LENGTH),
            keys.ISSUER_ID,
            Usage.CREDENTIAL,
            *whole_months(self._today()),
            key,
            _UNSIGNED,
            ceiling,
            co_signing_key,
        )
        return issue(unsigned, self._keys.issuer)

    def _load(self, request: LoadRequest, books: Books) -> Voucher:
        device = books.device(request.device)
        if device is None:
            raise IssuerRefusedError(RefusalReason.UNKNOWN_DEVICE)
        _require_signature(device.key, request.signature, request.signature_input())
        if device.blocked:
            raise IssuerRefusedError(RefusalReason.BLOCKED)
        if device.currency != request.currency:
            raise IssuerRefusedError(RefusalReason.CURRENCY)
        known = books.voucher(request.device, request.number)
        if known is not None:
            return Voucher.decode(known.message)  # the answer was lost on its way, or it is a refund
        if device.restored_at:
            raise IssuerRefusedError(RefusalReason.RESTORED)
        newest = books.newest_voucher(request.device)
        if request.number != (newest.number if newest else 0) + 1:
            raise IssuerRefusedError(RefusalReason.LOAD_NUMBER)
        return self._clearing(books).add_voucher(device, request.number, request.amount)

    def _unblock(self, request: UnblockRequest, books: Books) -> Unblocking:
        """Let a PIN have its tries back, once for each time that the operator allowed it."""
        device = books.device(request.device)
        if device is None:
            raise IssuerRefusedError(RefusalReason.UNKNOWN_DEVICE)
        _require_signature(device.key, request.signature, request.signature_input())
        if not device.may_unblock or device.blocked:
            raise IssuerRefusedError(RefusalReason.NOT_ALLOWED)
        books.update_device(replace(device, may_unblock=False))
        unsigned = Unblocking(request.device, request.challenge, _UNSIGNED)
        return replace(unsigned, signature=self._keys.operations.sign(unsigned.signature_input()))

    # --- settlement

    def _nonce(self, request: NonceRequest, books: Books) -> IssuerNonce:
        device = books.device(request.device)
        if device is None:
            raise IssuerRefusedError(RefusalReason.UNKNOWN_DEVICE)
        nonce = os.urandom(NONCE_LENGTH)
        books.update_device(replace(device, nonce=nonce, nonce_at=self._now()))
        return IssuerNonce(nonce)

    def _report(self, report: TerminalReport, books: Books) -> ReportAnswer:
        clearing = self._clearing(books)
        verdicts = [*map(clearing.claim, report.claims), *map(clearing.void, report.voids)]
        unsigned = ReportAnswer(tuple(verdicts), _UNSIGNED)
        return replace(unsigned, signature=self._keys.operations.sign(unsigned.signature_input(report.digest())))

    # --- terminals

    def _certify_terminal(self, application: TerminalApplication, books: Books) -> TerminalIssuance:
        _require_signature(application.public_key, application.signature, application.signature_input())
        known = books.terminal(application.terminal_id)
        if known is not None:
            if known.key != application.public_key:
                raise IssuerRefusedError(RefusalReason.TERMINAL_ID_TAKEN)
            return TerminalIssuance(TerminalCertificate.decode(known.certificate))
        _require_currency(application.merchant.currency)
        today = self._today()
        unsigned = TerminalCertificate(
            os.urandom(SERIAL_LENGTH),
            keys.ACQUIRER_ID,
            Usage.TERMINAL,
            today,
            today.replace(year=today.year + TERMINAL_YEARS, day=min(today.day, 28)),
            application.public_key,
            _UNSIGNED,
            application.terminal_id,
            application.merchant,
        )
        certificate = issue(unsigned, self._keys.acquirer)
        books.add_terminal(
            TerminalRow(
                application.terminal_id,
                application.public_key,
                certificate.serial,
                certificate.encode(),
                certificate_hash(certificate),
            )
        )
        return TerminalIssuance(certificate)

    # --- lists

    def _block_list(self, books: Books) -> BlockList:
        """List what is blocked and has not expired: what has is refused anyway."""
        today = self._today()
        blocked = [TerminalCertificate.decode(row.certificate) for row in books.terminals() if row.blocked]
        serials = tuple(one.serial for one in blocked if one.valid_until >= today)
        numbers = tuple(map(CardNumber, books.blocked_numbers(today)))
        unsigned = BlockList(self._now(), serials, numbers, _UNSIGNED)
        return replace(unsigned, signature=self._keys.operations.sign(unsigned.signature_input()))


def _no_request(_: Wire, __: Books) -> Wire:
    return Refusal(RefusalReason.MALFORMED)


def _require_signature(key: bytes, signature: bytes, signed: bytes) -> None:
    if not signing.is_valid(key, signature, signed):
        raise IssuerRefusedError(RefusalReason.SIGNATURE)


def _require_currency(number: int) -> None:
    try:
        Currency.of(number)
    except ValueError:
        raise IssuerRefusedError(RefusalReason.UNKNOWN_CURRENCY) from None


def _unused_number(books: Books) -> CardNumber:
    while True:
        number = CardNumber.from_index(secrets.randbelow(10**9))
        if not books.has_number(number.digits):
            return number
