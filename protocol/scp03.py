# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Secure messaging of SCP03 (GlobalPlatform Card Specification Amendment D §6.2) at security level 33. Pure functions.

C-MAC, C-ENCRYPTION, R-MAC and R-ENCRYPTION with AES-128, MACs of 8 bytes. A state never changes: every command makes the
next one. Whoever keeps it lets go of it before a check and takes up the next one after it, so a failed check is the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.constant_time import bytes_eq

from protocol.apdu import CHAINING_BIT, MAX_DATA, MAX_NE, SHORT_MAX_DATA, SHORT_MAX_NE, Command, Response
from protocol.errors import Check, VerificationError
from protocol.secret import Secret
from protocol.status import StatusWord

SECURE_MESSAGING_BIT = 0x04
KEY_LENGTH = 16
MAC_LENGTH = 8
BLOCK = 16
MAX_PLAIN_DATA = (MAX_DATA - MAC_LENGTH) // BLOCK * BLOCK - 1
MAX_PLAIN_ANSWER = (MAX_NE - MAC_LENGTH) // BLOCK * BLOCK - 1
_PLAIN_CLASSES = (0x00, 0x80)
_WARNINGS = (0x62, 0x63)
_RESPONSE_COUNTER = 0x80 << 120


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """S-ENC, S-MAC and S-RMAC."""

    enc: Secret
    mac: Secret
    rmac: Secret


@dataclass(frozen=True, slots=True)
class SecureMessaging:
    """One end of a channel between two commands: the MAC chaining value and how many commands there were."""

    keys: SessionKeys
    chaining: Secret
    counter: int = 0


def is_secured(command: Command) -> bool:
    """Tell whether `command` says that it carries a C-MAC."""
    return command.cla & ~CHAINING_BIT & ~SECURE_MESSAGING_BIT in _PLAIN_CLASSES and bool(
        command.cla & SECURE_MESSAGING_BIT
    )


def carries_mac(sw: StatusWord) -> bool:
    """Tell whether an answer with `sw` has an R-MAC: 9000 and warnings do, an error is a status word and nothing else."""
    return sw is StatusWord.OK or sw >> 8 in _WARNINGS


def wrap_command(state: SecureMessaging, command: Command) -> tuple[SecureMessaging, Command]:
    """Return the next state and `command` encrypted, with its C-MAC; ValueError for a class or a length that cannot be."""
    if command.cla not in _PLAIN_CLASSES:
        raise ValueError(f"class {command.cla:02X} cannot be secured")
    if len(command.data) > MAX_PLAIN_DATA:
        raise ValueError(f"{len(command.data)} bytes of data, more than {MAX_PLAIN_DATA} in a channel")
    counter = state.counter + 1
    body = _encrypt(state.keys.enc, counter, command.data) if command.data else b""
    secured = replace(command, cla=command.cla | SECURE_MESSAGING_BIT, data=body, ne=_secured_ne(command.ne))
    length = len(body) + MAC_LENGTH
    extended = length > SHORT_MAX_DATA or secured.needs_extended
    chaining = _mac(state.keys.mac, state.chaining, secured.header, _lc(length, extended), body)
    return replace(state, chaining=chaining, counter=counter), secured.with_data(body + chaining[:MAC_LENGTH])


def unwrap_command(state: SecureMessaging, command: Command) -> tuple[SecureMessaging, Command]:
    """Return the next state and what `command` was before it was secured; VerificationError when a check fails.

    The MAC covers the length, short or extended, and on its way a command may have been taken from the one form to the
    other. Both are tried: as one starts with 00 and the other does not, they are never the same bytes.
    """
    body, mac = _split_mac(command.data)
    if not is_secured(command):
        raise VerificationError(Check.CHANNEL)
    chaining = _matching(_command_macs(state, command, body), mac)
    counter = state.counter + 1
    plain = _decrypt(state.keys.enc, counter, body) if body else b""
    known = replace(command, cla=command.cla & ~SECURE_MESSAGING_BIT & ~CHAINING_BIT, data=plain)
    return replace(state, chaining=chaining, counter=counter), known


def wrap_response(state: SecureMessaging, response: Response) -> Response:
    """Return the answer to the command that made `state`: encrypted, with its R-MAC; of an error, the status word alone."""
    if not carries_mac(response.sw):
        return Response(b"", response.sw)
    if len(response.data) > MAX_PLAIN_ANSWER:
        raise ValueError(f"{len(response.data)} bytes of answer, more than {MAX_PLAIN_ANSWER} in a channel")
    body = _encrypt(state.keys.enc, _RESPONSE_COUNTER | state.counter, response.data) if response.data else b""
    return Response(body + _response_mac(state, body, response.sw)[:MAC_LENGTH], response.sw)


def unwrap_response(state: SecureMessaging, response: Response) -> Response:
    """Return what `response` was before it was secured; VerificationError when a check fails.

    An error is a bare status word, which anybody on the link can write: what it says is known, that the card said it is not.
    """
    if not carries_mac(response.sw):
        if response.data:
            raise VerificationError(Check.CHANNEL)
        return response
    body, mac = _split_mac(response.data)
    _matching([_response_mac(state, body, response.sw)], mac)
    plain = _decrypt(state.keys.enc, _RESPONSE_COUNTER | state.counter, body) if body else b""
    return Response(plain, response.sw)


def _command_macs(state: SecureMessaging, command: Command, body: bytes) -> list[Secret]:
    length = len(command.data)
    forms = [True] if length > SHORT_MAX_DATA else [False, True]
    header = command.unchained_header
    return [_mac(state.keys.mac, state.chaining, header, _lc(length, extended), body) for extended in forms]


def _response_mac(state: SecureMessaging, body: bytes, sw: StatusWord) -> Secret:
    return _mac(state.keys.rmac, state.chaining, body, sw.to_bytes(2, "big"))


def _split_mac(data: bytes) -> tuple[bytes, bytes]:
    if len(data) < MAC_LENGTH or (len(data) - MAC_LENGTH) % BLOCK:
        raise VerificationError(Check.CHANNEL)
    return data[:-MAC_LENGTH], data[-MAC_LENGTH:]


def _matching(candidates: list[Secret], mac: bytes) -> Secret:
    """Return the chaining value that starts with `mac`, comparing in constant time; VerificationError when none does."""
    for candidate in candidates:
        if bytes_eq(candidate[:MAC_LENGTH], mac):
            return candidate
    raise VerificationError(Check.CHANNEL)


def _mac(key: bytes, *parts: bytes) -> Secret:
    cmac = CMAC(algorithms.AES(key))
    for part in parts:
        cmac.update(part)
    return Secret(cmac.finalize())


def _lc(length: int, extended: bool) -> bytes:
    return b"\0" + length.to_bytes(2, "big") if extended else bytes([length])


def _secured_ne(ne: int | None) -> int:
    """Return an Ne in the form that `ne` has: every good answer has an R-MAC, and what is left over can be fetched."""
    return SHORT_MAX_NE if (ne or 0) <= SHORT_MAX_NE else MAX_NE


def _encrypt(key: bytes, counter: int, plain: bytes) -> bytes:
    padded = plain + b"\x80" + bytes(-(len(plain) + 1) % BLOCK)
    return _cbc(key, _icv(key, counter), padded)


def _decrypt(key: bytes, counter: int, body: bytes) -> bytes:
    """Return the plaintext of a body whose MAC is good; VerificationError when its padding is not 80 00 … of one block."""
    decryptor = Cipher(algorithms.AES(key), modes.CBC(_icv(key, counter))).decryptor()
    padded = decryptor.update(body) + decryptor.finalize()
    plain = padded.rstrip(b"\0")
    if not plain.endswith(b"\x80") or len(padded) - len(plain) >= BLOCK:
        raise VerificationError(Check.CHANNEL)
    return plain[:-1]


def _icv(key: bytes, counter: int) -> bytes:
    """Return the initial chaining vector: the counter, encrypted as one block."""
    return _cbc(key, bytes(BLOCK), counter.to_bytes(BLOCK, "big"))


def _cbc(key: bytes, icv: bytes, blocks: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.CBC(icv)).encryptor()
    return encryptor.update(blocks) + encryptor.finalize()
