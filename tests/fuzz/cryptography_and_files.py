# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What is promised of foreign keys and signatures, and of the files that the trusted world finds again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol import envelope, signing
from protocol.errors import TapLabError, VerificationError
from protocol.secret import Secret
from protocol.signing import PrivateKey
from tests.fuzz.cutting import refused
from wallet.tee import freshness, storage
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.storage import SealedStorage

_MESSAGE = b"message"
_SIGNER = PrivateKey.from_scalar(bytes([3]) * 32)
_SIGNATURE = _SIGNER.sign(_MESSAGE)  # the same each time: deterministic ECDSA
SIGNED = _SIGNER.public + _SIGNATURE

_RECIPIENT = X25519PrivateKey.from_private_bytes(bytes([5]) * 32)
RECIPIENT = _RECIPIENT.public_key().public_bytes_raw()


def check_signature(data: bytes) -> str:
    """Expect yes or no of any point and signature, and yes of no other than the good ones."""
    point, signature = data[: signing.POINT_LENGTH], data[signing.POINT_LENGTH :]
    is_valid = signing.is_valid(point, signature, _MESSAGE)
    assert not is_valid or _is_ours(point, signature)
    return f"{is_valid}"


def _is_ours(point: bytes, signature: bytes) -> bool:
    """Tell whether it is our signature, or the other one of the same r that ECDSA cannot tell from it."""
    return point == _SIGNER.public and signature[:32] == _SIGNATURE[:32]


def check_envelope(data: bytes) -> str:
    """Expect that a foreign key is sealed to or refused, and that nothing is opened that was not sealed to us."""
    try:
        outcome = f"{len(envelope.seal(b'text', data[:32], b'info'))}"
    except VerificationError as error:
        outcome = refused(error)
    try:
        envelope.unseal(data, _RECIPIENT, b"info")
    except VerificationError:
        return outcome
    raise AssertionError("a stranger's bytes were opened")


# --- files

_KEY = Secret(bytes([6]) * 32)
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
_PLAIN_ENTRIES: tuple[dict[bytes, bytes | None], ...] = (
    {b"purse": b"100", b"device": b"d" * 32},
    {b"purse": b"90", b"txn/1": b"open"},
    {b"txn/1": None, b"purse": b"80"},
)


def _good_log() -> bytes:
    """Return a log of three entries whose nonces are their numbers, so that it is the same each time."""
    log, previous = storage._MAGIC, bytes(16)
    for number, changes in enumerate(_PLAIN_ENTRIES, 1):
        nonce, encoded = number.to_bytes(12, "big"), number.to_bytes(8, "big")
        sealed = AESGCM(_KEY).encrypt(nonce, storage._encode(changes), storage._MAGIC + encoded + previous)
        log, previous = log + len(sealed).to_bytes(4, "big") + encoded + nonce + sealed, sealed[-16:]
    return log


def _states() -> list[dict[bytes, bytes]]:
    """Return what the log may hold: nothing, or what some of the entries from the first on made."""
    states: list[dict[bytes, bytes]] = [{}]
    for changes in _PLAIN_ENTRIES:
        merged = {**states[-1], **changes}
        states.append({key: value for key, value in merged.items() if value is not None})
    return states


def _counter_file(*values: int) -> bytes:
    """Return a counter file that went through these values."""
    with tempfile.TemporaryDirectory() as name:
        counter = FreshnessCounter(Path(name), _KEY)
        for value in values:
            counter.advance(value)
        _close(counter.descriptors)
        return (Path(name) / freshness.FILE_NAME).read_bytes()


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


_WITH_MAGIC, _COUNTER_AT_TWO = 0x01, 0x02
GOOD_LOGS = tuple(bytes([flags | _WITH_MAGIC]) + _good_log()[len(storage._MAGIC) :] for flags in (0, _COUNTER_AT_TWO))
GOOD_COUNTERS = (_counter_file(6), _counter_file(5, 6))
_STATES = _states()
_COUNTERS = {2: _counter_file(1, 2), 3: _counter_file(2, 3)}


def _in_folder(check: Callable[[Path, bytes], str]) -> Callable[[bytes], str]:
    def checked(data: bytes) -> str:
        folder = Path(tempfile.mkdtemp(prefix="taplab-fuzz-", dir=_MEMORY))
        try:
            return check(folder, data)
        finally:
            shutil.rmtree(folder)

    return checked


@_in_folder
def check_log(folder: Path, data: bytes) -> str:
    """Expect what the first entries made and nothing else, stale unless the counter is as far; or a sentence.

    The first byte says whether the magic stands before the rest, and how far the counter is.
    """
    flags, count = data[0] if data else 0, 2 if data[:1] and data[0] & _COUNTER_AT_TWO else 3
    log = (storage._MAGIC if flags & _WITH_MAGIC else b"") + data[1:]
    (folder / storage.FILE_NAME).write_bytes(log)
    (folder / freshness.FILE_NAME).write_bytes(_COUNTERS[count])
    counter = FreshnessCounter(folder, _KEY)
    opened = SealedStorage.__new__(SealedStorage)  # so that its file can be closed when it refuses
    try:
        SealedStorage.__init__(opened, folder, _KEY, counter)
        found = dict(opened.items(b""))
    except TapLabError as error:
        return refused(error)
    finally:
        _close(counter.descriptors + opened.descriptors)
    entries = _STATES.index(found)
    assert opened.is_stale == (entries not in (count, count + 1))
    return f"{entries} {opened.is_stale}"


@_in_folder
def check_counter(folder: Path, data: bytes) -> str:
    """Expect a value that the counter once had, or 0."""
    (folder / freshness.FILE_NAME).write_bytes(data)
    counter = FreshnessCounter(folder, _KEY)
    _close(counter.descriptors)
    assert counter.value in (0, 5, 6)
    return f"{counter.value} {counter.is_of_another_key}"
