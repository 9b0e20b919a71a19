# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Sealed storage of the trusted world: an append-only log of encrypted changes, and the freshness counter beside it.

An entry is length ‖ sequence number ‖ nonce ‖ AES-256-GCM ciphertext of a set of changes; the file's magic, the number
and the previous entry's tag are authenticated with it, so entries cannot be dropped, reordered or mixed. An
append and a sync cost a third of an atomic replacement, and a tap waits for two of them. An entry that was torn while
it was written is the last one and is cut off when the log is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from construct import Byte, Construct, Flag, GreedyBytes, GreedyRange, Int32ub, Prefixed
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol import tally
from protocol.errors import TapLabError
from protocol.layout import Fields
from protocol.secret import Secret
from protocol.wire import Nested, Wire
from wallet.tee.freshness import FreshnessCounter

FILE_NAME = "state.log"
_MAGIC = b"TAPTEE\x00\x03"  # the last two bytes are the version of the format
_LENGTH_BYTES = 4
_NUMBER_BYTES = 8
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEAD_BYTES = _LENGTH_BYTES + _NUMBER_BYTES + _NONCE_BYTES
_MIN_COMPACT_BYTES = 1 << 20

Changes = Mapping[bytes, bytes | None]


class StorageFailedError(TapLabError):
    """The change could not be written and is not there; the state is the one before."""


class StorageUncertainError(TapLabError):
    """It is not known whether the change is on disk: only a new start of the process can tell."""


@dataclass(frozen=True, slots=True)
class _Change(Wire):
    """One key's new value; `kept` is False where the key goes."""

    key: bytes
    kept: bool
    value: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "key" / Prefixed(Byte, GreedyBytes), "kept" / Flag, "value" / Prefixed(Int32ub, GreedyBytes)
    )


_CHANGES = GreedyRange(Nested(_Change))


def _encode(changes: Changes) -> bytes:
    return _CHANGES.build([_Change(key, value is not None, value or b"") for key, value in changes.items()])


class SealedStorage:
    """A dictionary of bytes that survives: what `commit` returned from is on disk, and nothing else is."""

    def __init__(self, folder: Path, key: Secret, counter: FreshnessCounter) -> None:
        """Open or create the log in `folder`; TapLabError when it is of another version."""
        self._folder = folder
        self._cipher = AESGCM(key)
        self._counter = counter
        self._state: dict[bytes, bytes] = {}
        self._pending: dict[bytes, bytes | None] = {}
        self._number = 0
        self._previous = bytes(_TAG_BYTES)
        self._file = os.open(folder / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = self._load()
        self._compacted_size = self._size
        if self._number == counter.value + 1:  # a crash came between the entry and the counter
            counter.advance(self._number)

    @property
    def is_stale(self) -> bool:
        """Whether log and counter do not belong together: one of them was put back. Nothing is written any more."""
        return self._number != self._counter.value

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What must stay open when the process is locked down."""
        return (self._file,)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None when there is none."""
        return self._state.get(key)

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of every key that starts with `prefix`, oldest first."""
        return ((key, value) for key, value in list(self._state.items()) if key.startswith(prefix))

    def note(self, changes: Changes) -> None:
        """Take over changes that may be lost in a crash; they go to disk with the next `commit`."""
        self._pending.update(changes)
        self._apply(changes)

    def commit(self, changes: Changes) -> None:
        """Put changes on disk, synced, then advance the counter.

        StorageFailedError: nothing changed. StorageUncertainError: the process must end and start again.
        """
        if self.is_stale:
            raise StorageFailedError("the storage or its freshness counter was put back to an older copy")
        self._append(_encode({**self._pending, **changes}))
        self._pending.clear()
        self._apply(changes)
        try:
            self._counter.advance(self._number)
        except OSError as error:
            raise StorageUncertainError(f"the freshness counter cannot be written: {error.strerror}") from None
        if self._size > max(_MIN_COMPACT_BYTES, 4 * self._compacted_size):
            self._compact()

    def _apply(self, changes: Changes) -> None:
        for key, value in changes.items():
            if value is None:
                self._state.pop(key, None)
            else:
                self._state[key] = value

    def _append(self, plaintext: bytes) -> None:
        entry = self._seal(self._number + 1, self._previous, plaintext)
        try:
            _write_at(self._file, entry, self._size)
            os.fdatasync(self._file)
        except OSError as error:
            self._take_back(error)
        tally.count(tally.Operation.SYNC)
        self._number += 1
        self._previous = entry[-_TAG_BYTES:]
        self._size += len(entry)

    def _take_back(self, cause: OSError) -> None:
        try:
            os.ftruncate(self._file, self._size)
            os.fdatasync(self._file)
        except OSError:
            raise StorageUncertainError(f"the storage cannot be written: {cause.strerror}") from None
        raise StorageFailedError(f"the storage cannot be written: {cause.strerror}") from None

    def _seal(self, number: int, previous: bytes, plaintext: bytes) -> bytes:
        encoded = number.to_bytes(_NUMBER_BYTES, "big")
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = self._cipher.encrypt(nonce, plaintext, _MAGIC + encoded + previous)
        return len(ciphertext).to_bytes(_LENGTH_BYTES, "big") + encoded + nonce + ciphertext

    def _load(self) -> int:
        """Read every whole entry, cut off what follows, and return the size of what is left."""
        data = _read_all(self._file)
        if not data.startswith(_MAGIC):
            if len(data) > len(_MAGIC) or not _MAGIC.startswith(data):
                raise TapLabError("the storage is of another version, or no storage at all")
            _write_at(self._file, _MAGIC, 0)
            return len(_MAGIC)
        position = len(_MAGIC)
        while (end := self._load_entry(data, position)) > position:
            position = end
        if position == len(_MAGIC) < len(data) and self._counter.is_of_another_key:
            raise TapLabError("the storage cannot be read with this device key; put the right root.key back")
        if self._number in (self._counter.value, self._counter.value + 1):
            os.ftruncate(self._file, position)  # else keep the evidence: it is no torn tail
        return position

    def _load_entry(self, data: bytes, position: int) -> int:
        """Take over the entry at `position` and return where it ends; `position` itself when none is whole there."""
        head = data[position : position + _HEAD_BYTES]
        end = position + _HEAD_BYTES + int.from_bytes(head[:_LENGTH_BYTES], "big")
        if len(head) < _HEAD_BYTES or end > len(data):
            return position
        encoded, nonce = head[_LENGTH_BYTES:-_NONCE_BYTES], head[-_NONCE_BYTES:]
        ciphertext = data[position + _HEAD_BYTES : end]
        try:
            plaintext = self._cipher.decrypt(nonce, ciphertext, _MAGIC + encoded + self._previous)
        except InvalidTag:
            return position
        self._apply({change.key: change.value if change.kept else None for change in _CHANGES.parse(plaintext)})
        self._number = int.from_bytes(encoded, "big")
        self._previous = ciphertext[-_TAG_BYTES:]
        return end

    def _compact(self) -> None:
        """Write the state as one entry of the same number into a new file and put it in the log's place.

        An error leaves the old log as it is: it is longer, not wrong.
        """
        try:
            self._put_in_place(self._seal(self._number, bytes(_TAG_BYTES), _encode(self._state)))
        except OSError:
            self._compacted_size = self._size  # try again when the log has grown once more

    def start_anew(self, state: Mapping[bytes, bytes]) -> None:
        """Put `state` in the place of everything, log and counter joined again: the way back from a stale storage.

        StorageFailedError: nothing changed. StorageUncertainError: the process must end and start again.
        """
        number = max(self._number, self._counter.value) + 1
        try:
            self._put_in_place(self._seal(number, bytes(_TAG_BYTES), _encode(state)))
        except OSError as error:
            raise StorageFailedError(f"the storage cannot be written: {error.strerror}") from None
        self._state, self._pending, self._number = dict(state), {}, number
        try:
            self._counter.advance(number)
        except OSError as error:
            raise StorageUncertainError(f"the freshness counter cannot be written: {error.strerror}") from None

    def _put_in_place(self, first: bytes) -> None:
        """Make a new log that begins with the entry `first` and put it in the old one's place; OSError changes nothing."""
        file = self._replace_log(_MAGIC + first)
        os.close(self._file)
        self._file, self._previous = file, first[-_TAG_BYTES:]
        self._size = self._compacted_size = len(_MAGIC) + len(first)
        try:
            directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.fsync(directory)
            os.close(directory)
        except OSError as error:
            raise StorageUncertainError(f"the storage folder cannot be synced: {error.strerror}") from None

    def _replace_log(self, data: bytes) -> int:
        """Return the descriptor of a new log with `data`, in the old one's place; after an OSError nothing is left of it."""
        new = self._folder / f"{FILE_NAME}.new"
        file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_at(file, data, 0)
            os.fsync(file)
            os.rename(new, self._folder / FILE_NAME)  # noqa: PTH104 - a Path's method would stat, which the TEE may not
        except OSError:
            os.close(file)
            os.unlink(new)  # noqa: PTH108 - likewise
            raise
        return file


def _write_at(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _read_all(file: int) -> bytes:
    pieces: list[bytes] = []
    offset = 0
    while piece := os.pread(file, 1 << 20, offset):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)
