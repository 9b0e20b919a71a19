# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The channel of one tap: AES-128-GCM under keys that only this terminal and this TEE can derive. Pure functions.

Each direction counts its APDUs from 0; a whole command or answer body is one message, ciphertext ‖ 16-byte tag.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from protocol.apdu import Command
from protocol.errors import Check, VerificationError
from protocol.labels import Label, labelled
from protocol.secret import Secret
from protocol.status import StatusWord
from protocol.transcript import FROM_CARD, FROM_TERMINAL

SECRET_LENGTH = 16
KEY_LENGTH = 16
IV_LENGTH = 12
TAG_LENGTH = 16
TRANSACTION_ID_LENGTH = 16


@dataclass(frozen=True, slots=True)
class ChannelKeys:
    """Keys and IVs of both directions, and the transaction id, which is never sent in clear."""

    command_key: Secret
    command_iv: Secret
    response_key: Secret
    response_iv: Secret
    transaction_id: bytes


def derive(secret: bytes, t2: bytes, sealed: bytes, credential: bytes) -> ChannelKeys:
    """Return the keys: HKDF-SHA256 (RFC 5869) of the 16-byte channel secret.

    The salt, SHA-256(T2 ‖ HPKE output ‖ credential certificate), leaves out the wallet's signature and the status word.
    """
    key = HKDF.extract(SHA256(), hashlib.sha256(t2 + sealed + credential).digest(), secret)

    def expand(label: Label, length: int) -> Secret:
        return Secret(HKDFExpand(SHA256(), length, labelled(label)).derive(key))

    return ChannelKeys(
        expand(Label.CHANNEL_COMMAND_KEY, KEY_LENGTH),
        expand(Label.CHANNEL_COMMAND_IV, IV_LENGTH),
        expand(Label.CHANNEL_RESPONSE_KEY, KEY_LENGTH),
        expand(Label.CHANNEL_RESPONSE_IV, IV_LENGTH),
        bytes(expand(Label.TRANSACTION_ID, TRANSACTION_ID_LENGTH)),
    )


def seal_command(keys: ChannelKeys, number: int, command: Command) -> Command:
    """Return `command` with its data encrypted as message `number` of the terminal."""
    nonce = _nonce(keys.command_iv, number)
    return command.with_data(AESGCM(keys.command_key).encrypt(nonce, command.data, _command_aad(command)))


def open_command(keys: ChannelKeys, number: int, command: Command) -> bytes:
    """Return the plaintext of message `number` of the terminal; VerificationError when the tag is wrong."""
    nonce = _nonce(keys.command_iv, number)
    return _open(keys.command_key, nonce, command.data, _command_aad(command))


def seal_response(keys: ChannelKeys, number: int, ins: int, body: bytes) -> bytes:
    """Return the encrypted body of answer `number`, which goes with status word 9000."""
    nonce = _nonce(keys.response_iv, number)
    return AESGCM(keys.response_key).encrypt(nonce, body, _response_aad(ins, StatusWord.OK))


def open_response(keys: ChannelKeys, number: int, ins: int, data: bytes, sw: StatusWord) -> bytes:
    """Return the plaintext of answer `number`; VerificationError when there is no tag or it is wrong."""
    return _open(keys.response_key, _nonce(keys.response_iv, number), data, _response_aad(ins, sw))


def _open(key: bytes, nonce: bytes, data: bytes, aad: bytes) -> bytes:
    if len(data) < TAG_LENGTH:
        raise VerificationError(Check.CHANNEL)
    try:
        return AESGCM(key).decrypt(nonce, data, aad)
    except InvalidTag:
        raise VerificationError(Check.CHANNEL) from None


def _nonce(iv: bytes, number: int) -> bytes:
    return (int.from_bytes(iv, "big") ^ number).to_bytes(IV_LENGTH, "big")


def _command_aad(command: Command) -> bytes:
    return bytes([FROM_TERMINAL]) + command.unchained_header


def _response_aad(ins: int, sw: StatusWord) -> bytes:
    return bytes([FROM_CARD, ins]) + sw.to_bytes(2, "big")
