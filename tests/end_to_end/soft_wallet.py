# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A wallet without a trusted world, whose every part can be changed: for what a terminal must notice by itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from issuer import keys
from protocol import channel, envelope
from protocol.apdu import Command, Response
from protocol.card_number import CardNumber
from protocol.certificate import CredentialCertificate, Usage, issue, whole_months
from protocol.channel import ChannelKeys
from protocol.commands import DEFAULT_NAME, Ins
from protocol.fci import ApplicationFci
from protocol.messages import (
    NOTHING_OPEN,
    CardPlaintext,
    Confirmed,
    Debit,
    DebitResult,
    GetVirtualCard,
    Receipt,
    Result,
    VirtualCard,
    certificate_hash,
)
from protocol.secret import Secret
from protocol.signing import SIGNATURE_LENGTH, PrivateKey
from protocol.status import StatusWord
from protocol.transcript import Record, digests

EURO = 978


def credential_like(
    home: Path, key: PrivateKey, signer: PrivateKey | None = None, **changes: Any
) -> CredentialCertificate:
    """Return a certificate for `key`, as the issuer of `home` (or `signer`) would sign it with these changes."""
    first, last = whole_months(datetime.now(UTC).date())
    unsigned = CredentialCertificate(
        os.urandom(8), keys.ISSUER_ID, Usage.CREDENTIAL, first, last, key.public, bytes(SIGNATURE_LENGTH), 100_000
    )
    return issue(replace(unsigned, **changes), signer or keys.load(home / "issuer").issuer)


def _as_it_is(data: bytes) -> bytes:
    return data


@dataclass
class SoftWallet:
    """A CardHandler that approves every payment. `home` is the issuer's; the other fields are what may be wrong."""

    home: Path
    key: PrivateKey = field(default_factory=PrivateKey.generate)
    certificate: CredentialCertificate | None = None
    number: CardNumber = field(default_factory=lambda: CardNumber.from_index(1))
    currency: int = EURO
    sealed_to: X25519PrivateKey | None = None
    signing_key: PrivateKey | None = None
    edit_plaintext: Callable[[bytes], bytes] = _as_it_is
    edit_answer: Callable[[bytes], bytes] = _as_it_is
    result: Result = Result.APPROVED
    receipt_changes: dict[str, Any] = field(default_factory=dict)
    debit_changes: dict[str, Any] = field(default_factory=dict)
    receipt_key: PrivateKey | None = None
    commands: list[Ins] = field(default_factory=list)
    _transcript: bytes = b""
    _keys: ChannelKeys | None = None
    _terminal_hash: bytes = b""
    _messages: int = 0

    def __post_init__(self) -> None:
        self.certificate = self.certificate or credential_like(self.home, self.key)

    def activate(self) -> None:
        self._transcript, self._keys, self._messages = b"", None, 0
        self.commands.clear()

    def deactivate(self) -> None:
        pass

    def process(self, apdu: bytes) -> bytes:
        command = Command.decode(apdu)
        self.commands.append(Ins(command.ins))
        response = Response(self._answer(command), StatusWord.OK)
        self._transcript += Record.of_command(command).encode() + Record.of_response(response).encode()
        return response.encode()

    def _answer(self, command: Command) -> bytes:
        if command.ins == Ins.SELECT:
            return ApplicationFci(DEFAULT_NAME, (1,), (1,)).encode()
        if command.ins == Ins.RELAY_CHECK:
            return os.urandom(8)
        if command.ins == Ins.GET_VIRTUAL_CARD:
            return self._virtual_card(command)
        return self._in_channel(command)

    def _virtual_card(self, command: Command) -> bytes:
        assert self.certificate is not None
        hello = GetVirtualCard.decode(command.data)
        self._terminal_hash = certificate_hash(hello.certificate)
        t2 = digests(self._transcript, command).t2
        secret = Secret(os.urandom(channel.SECRET_LENGTH))
        plaintext = self.edit_plaintext(CardPlaintext(self.number, self.currency, 1, secret, NOTHING_OPEN).encode())
        target = self.sealed_to.public_key().public_bytes_raw() if self.sealed_to else hello.tap_key
        sealed = envelope.seal(plaintext, target, envelope.card_info(t2))
        signed = envelope.card_signature_input(t2, self.certificate.encode(), sealed)
        signature = (self.signing_key or self.key).sign(signed)
        self._keys = channel.derive(secret, t2, sealed, self.certificate.encode())
        return self.edit_answer(VirtualCard(sealed, signature, self.certificate).encode())

    def _in_channel(self, command: Command) -> bytes:
        assert self._keys is not None
        plaintext = channel.open_command(self._keys, self._messages, command)
        body = self._debit(Debit.decode(plaintext)) if command.ins == Ins.DEBIT else Confirmed(NOTHING_OPEN).encode()
        sealed = channel.seal_response(self._keys, self._messages, command.ins, body)
        self._messages += 1
        return sealed

    def _debit(self, debit: Debit) -> bytes:
        assert self._keys is not None
        assert self.certificate is not None
        receipt = Receipt(
            1,
            1,
            certificate_hash(self.certificate),
            self._terminal_hash,
            1,
            self._keys.transaction_id,
            replace(debit, **self.debit_changes),
            self.result,
        )
        signed = replace(receipt, **self.receipt_changes).signature_input()
        return DebitResult(self.result, (self.receipt_key or self.key).sign(signed)).encode()
