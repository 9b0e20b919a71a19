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

from sqlalchemy import Connection, Row, insert, select

from issuer import keys
from issuer.database import Database, credentials, devices, terminals, vouchers
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
    LoadRequest,
    Refusal,
    RefusalReason,
    TerminalApplication,
    TerminalIssuance,
    Voucher,
    decode_message,
    device_id,
    encode_message,
)
from protocol.money import Currency
from protocol.wire import Wire

OFFLINE_CEILING_MAJOR = 1000
TERMINAL_YEARS = 2
_UNSIGNED = bytes(signing.SIGNATURE_LENGTH)


class Issuer:
    """The scheme of one folder."""

    def __init__(self, folder: Path) -> None:
        """Open the keys and the database; UsageError when there is no issuer in `folder`."""
        self._keys = keys.load(folder)
        self._database = Database(folder)
        self._handlers: dict[type[Wire], Callable[[Any, Connection], Wire]] = {
            AnchorsRequest: lambda _, __: self._keys.anchors,
            Application: self._apply,
            LoadRequest: self._load,
            TerminalApplication: self._certify_terminal,
            BlockListRequest: lambda _, connection: self._block_list(connection),
        }

    def handle(self, request: bytes) -> bytes:
        """Return the answer to one request message; what cannot be done is answered with a Refusal."""
        try:
            message = decode_message(request)
            handler = self._handlers.get(type(message), _no_request)
            with self._database.transaction() as connection:
                answer = handler(message, connection)
        except (DecodeError, VerificationError):
            answer = Refusal(RefusalReason.MALFORMED)
        except IssuerRefusedError as refused:
            answer = Refusal(refused.reason)
        return encode_message(answer)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # --- wallets

    def _apply(self, application: Application, connection: Connection) -> Issuance:
        _require_signature(application.device_key, application.signature, application.signature_input())
        device = device_id(application.device_key)
        self._enrol(application, device, connection)
        issued = [
            self._credential(key, device, application.currency, connection) for key in application.credential_keys
        ]
        numbers = IssuedNumbers(tuple(CardNumber(row.number) for row in issued))
        digest = application.digest()
        sealed = envelope.seal(numbers.encode(), application.sealing_key, IssuedNumbers.info(digest))
        certificates = tuple(CredentialCertificate.decode(row.certificate) for row in issued)
        unsigned = Issuance(certificates, sealed, _UNSIGNED)
        signature = self._keys.operations.sign(unsigned.signature_input(digest))
        return replace(unsigned, signature=signature)

    def _enrol(self, application: Application, device: bytes, connection: Connection) -> None:
        """Remember a device at its first application: from then on its key must sign, and its currency stays."""
        known = connection.execute(select(devices).where(devices.c.device == device)).one_or_none()
        if known is None:
            try:
                Currency.of(application.currency)
            except ValueError:
                raise IssuerRefusedError(RefusalReason.CURRENCY) from None
            values = {"device": device, "key": application.device_key, "currency": application.currency}
            connection.execute(insert(devices).values(locked_down=bool(application.locked_down), **values))
        elif known.blocked:
            raise IssuerRefusedError(RefusalReason.BLOCKED)
        elif known.currency != application.currency:
            raise IssuerRefusedError(RefusalReason.CURRENCY)

    def _credential(self, key: bytes, device: bytes, currency: int, connection: Connection) -> Row[Any]:
        """Return the stored credential of `key`, made now if there is none."""
        of_key = select(credentials).where(credentials.c.key == key)
        known = connection.execute(of_key).one_or_none()
        if known is None:
            certificate = self._credential_certificate(key, currency)
            values = {"key": key, "device": device, "serial": certificate.serial}
            number = _unused_number(connection)
            connection.execute(
                insert(credentials).values(number=number.digits, certificate=certificate.encode(), **values)
            )
            known = connection.execute(of_key).one()
        if known.device != device:
            raise IssuerRefusedError(RefusalReason.KEY_TAKEN)
        return known

    def _credential_certificate(self, key: bytes, currency: int) -> CredentialCertificate:
        ceiling = OFFLINE_CEILING_MAJOR * 10 ** Currency.of(currency).exponent
        unsigned = CredentialCertificate(
            os.urandom(SERIAL_LENGTH),
            keys.ISSUER_ID,
            Usage.CREDENTIAL,
            *whole_months(_today()),
            key,
            _UNSIGNED,
            ceiling,
        )
        return issue(unsigned, self._keys.issuer)

    def _load(self, request: LoadRequest, connection: Connection) -> Voucher:
        device = connection.execute(select(devices).where(devices.c.device == request.device)).one_or_none()
        if device is None:
            raise IssuerRefusedError(RefusalReason.UNKNOWN_DEVICE)
        _require_signature(device.key, request.signature, request.signature_input())
        if device.blocked:
            raise IssuerRefusedError(RefusalReason.BLOCKED)
        if device.currency != request.currency:
            raise IssuerRefusedError(RefusalReason.CURRENCY)
        mine = select(vouchers).where(vouchers.c.device == request.device).order_by(vouchers.c.number.desc())
        newest = connection.execute(mine).first()
        issued = newest.number if newest else 0
        if newest is not None and request.number == issued:
            return Voucher.decode(newest.message)  # the answer was lost on its way: the same voucher again
        if request.number != issued + 1:
            raise IssuerRefusedError(RefusalReason.LOAD_NUMBER)
        return self._new_voucher(request, connection)

    def _new_voucher(self, request: LoadRequest, connection: Connection) -> Voucher:
        unsigned = Voucher(request.device, request.number, request.amount, request.currency, _UNSIGNED)
        voucher = replace(unsigned, signature=self._keys.operations.sign(unsigned.signature_input()))
        values = {"device": request.device, "number": request.number, "amount": request.amount}
        connection.execute(insert(vouchers).values(currency=request.currency, message=voucher.encode(), **values))
        return voucher

    # --- terminals

    def _certify_terminal(self, application: TerminalApplication, connection: Connection) -> TerminalIssuance:
        _require_signature(application.public_key, application.signature, application.signature_input())
        terminal_id = application.terminal_id
        known = connection.execute(select(terminals).where(terminals.c.terminal_id == terminal_id)).one_or_none()
        if known is not None:
            if known.key != application.public_key:
                raise IssuerRefusedError(RefusalReason.TERMINAL_ID_TAKEN)
            return TerminalIssuance(TerminalCertificate.decode(known.certificate))
        today = _today()
        unsigned = TerminalCertificate(
            os.urandom(SERIAL_LENGTH),
            keys.ACQUIRER_ID,
            Usage.TERMINAL,
            today,
            today.replace(year=today.year + TERMINAL_YEARS, day=min(today.day, 28)),
            application.public_key,
            _UNSIGNED,
            terminal_id,
            application.merchant,
        )
        certificate = issue(unsigned, self._keys.acquirer)
        values = {"terminal_id": terminal_id, "key": application.public_key, "serial": certificate.serial}
        connection.execute(insert(terminals).values(certificate=certificate.encode(), **values))
        return TerminalIssuance(certificate)

    # --- lists

    def _block_list(self, connection: Connection) -> BlockList:
        blocked_terminals = connection.execute(select(terminals.c.serial).where(terminals.c.blocked)).scalars()
        blocked_numbers = connection.execute(select(credentials.c.number).where(credentials.c.blocked)).scalars()
        unsigned = BlockList(
            int(time.time()), tuple(blocked_terminals), tuple(map(CardNumber, blocked_numbers)), _UNSIGNED
        )
        return replace(unsigned, signature=self._keys.operations.sign(unsigned.signature_input()))


def _no_request(_: Wire, __: Connection) -> Wire:
    return Refusal(RefusalReason.MALFORMED)


def _require_signature(key: bytes, signature: bytes, signed: bytes) -> None:
    if not signing.is_valid(key, signature, signed):
        raise IssuerRefusedError(RefusalReason.SIGNATURE)


def _unused_number(connection: Connection) -> CardNumber:
    while True:
        number = CardNumber.from_index(secrets.randbelow(10**9))
        taken = select(credentials.c.key).where(credentials.c.number == number.digits)
        if connection.execute(taken).first() is None:
            return number


def _today() -> date:
    return datetime.now(UTC).date()
