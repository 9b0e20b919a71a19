# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The freshness counter: it only grows, so that an older copy of the storage is noticed.

Hardware keeps it in replay-protected memory (an RPMB, say); here it is a file of two slots written in turn, each with a
MAC, so that a torn write leaves the other slot whole. Who copies it back together with the storage is not noticed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from protocol import tally

FILE_NAME = "freshness"
_VALUE_BYTES = 8
_SLOT_BYTES = _VALUE_BYTES + 32


class FreshnessCounter:
    """A number of 64 bits on stable storage."""

    def __init__(self, folder: Path, key: bytes) -> None:
        """Open the counter in `folder`, 0 when there is none; `key` authenticates it."""
        self._key = key
        self._file = os.open(folder / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.value = self._read()
        self.is_of_another_key = self.value == 0 and os.fstat(self._file).st_size > 0

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What must stay open when the process is locked down."""
        return (self._file,)

    def _read(self) -> int:
        data = os.pread(self._file, 2 * _SLOT_BYTES, 0)
        slots = (data[:_SLOT_BYTES], data[_SLOT_BYTES:])
        return max((int.from_bytes(slot[:_VALUE_BYTES], "big") for slot in slots if self._is_good(slot)), default=0)

    def _is_good(self, slot: bytes) -> bool:
        return hmac.compare_digest(self._mac(slot[:_VALUE_BYTES]), slot[_VALUE_BYTES:])

    def _mac(self, value: bytes) -> bytes:
        return hmac.digest(self._key, value, hashlib.sha256)

    def advance(self, value: int) -> None:
        """Set the counter to `value` and sync; ValueError if that were a step back."""
        if value <= self.value:
            raise ValueError("the freshness counter only grows")
        encoded = value.to_bytes(_VALUE_BYTES, "big")
        os.pwrite(self._file, encoded + self._mac(encoded), (value % 2) * _SLOT_BYTES)
        os.fdatasync(self._file)
        tally.count(tally.Operation.SYNC)
        self.value = value
