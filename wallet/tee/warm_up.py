# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Everything that the TEE will do, done once before it is locked down: libraries load code when it is first used."""

from __future__ import annotations

import time
import traceback
from datetime import UTC, date, datetime

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocol import channel, envelope, signing
from protocol.apdu import Command
from protocol.card_number import CardNumber
from protocol.certificate import (
    Authority,
    CredentialCertificate,
    Merchant,
    TerminalCertificate,
    Usage,
    failed_checks,
    issue,
    whole_months,
)
from protocol.errors import TapLabError
from protocol.messages import CardPlaintext, Debit, GetVirtualCard, Receipt, Result, VirtualCard
from protocol.money import Amount, Currency
from protocol.secret import Secret
from wallet.tee import key_agent, pin


def use_everything_once() -> None:
    """Sign, verify, seal, open, encode and decode values that nobody keeps."""
    key = signing.PrivateKey.generate()
    authority = Authority(bytes(4), key.public)
    terminal, credential = _certificates(key)
    failed_checks(terminal, Usage.TERMINAL, authority, date(2026, 1, 2))
    GetVirtualCard.decode(GetVirtualCard(terminal, bytes(32), bytes(64)).encode())
    sealing = X25519PrivateKey.generate()
    card = CardPlaintext(CardNumber.from_index(0), 978, 1, Secret(bytes(16)), bytes(16))
    sealed = envelope.seal(card.encode(), sealing.public_key().public_bytes_raw(), b"")
    CardPlaintext.decode(envelope.unseal(sealed, sealing, b""))
    VirtualCard.decode(VirtualCard(sealed, key.sign(b""), credential).encode())
    _channel_and_receipt(signing.PrivateKey.from_scalar(key.scalar()))
    _time_money_and_errors()
    pin.derive(b"0000", bytes(16))
    key_agent.warm_up()


def _certificates(key: signing.PrivateKey) -> tuple[TerminalCertificate, CredentialCertificate]:
    first, last = whole_months(date(2026, 1, 1))
    unsigned = bytes(signing.SIGNATURE_LENGTH)
    common = (bytes(8), bytes(4))
    terminal = TerminalCertificate(
        *common, Usage.TERMINAL, first, last, key.public, unsigned, "T", Merchant("M", 5999, 978)
    )
    credential = CredentialCertificate(*common, Usage.CREDENTIAL, first, last, key.public, unsigned, 1)
    return issue(terminal, key), issue(credential, key)


def _channel_and_receipt(key: signing.PrivateKey) -> None:
    keys = channel.derive(bytes(16), bytes(32), b"", b"")
    moment = datetime.fromtimestamp(time.time(), UTC)
    debit = Debit(1, 978, moment.date(), moment.time().replace(microsecond=0))
    sealed = channel.seal_command(keys, 0, Command(0x80, 0x52, 0, 0, debit.encode()))
    Debit.decode(channel.open_command(keys, 0, sealed))
    channel.seal_response(keys, 0, 0x52, b"")
    receipt = Receipt(1, 1, bytes(32), bytes(32), 1, bytes(16), debit, Result.APPROVED)
    receipt.signature_input()
    receipt.co_signature_input()
    signing.is_valid(key.public, key.sign(b""), b"")


def _time_money_and_errors() -> None:
    str(Amount(1, Currency.of(978)))
    try:
        Merchant.decode(b"\0")
    except TapLabError as error:
        traceback.format_exception(error)
