# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Shared memory between the two worlds: a memfd sealed against resizing, one half for each direction.

Whoever reads copies the payload once and works on the copy, so that what was checked cannot change afterwards.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from protocol.errors import TapLabError

REGION = 256 * 1024  # the longest transcript and the longest command together
_REQUEST_OFFSET = 0
_ANSWER_OFFSET = REGION
_SIZE = 2 * REGION


class SharedMemory:
    """A mapping of the memory in one of the two processes."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory behind `descriptor`, which is not needed any longer afterwards."""
        self._map = mmap.mmap(descriptor, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def write_request(self, payload: bytes) -> None:
        """Put a request where the trusted side looks for it."""
        self._write(_REQUEST_OFFSET, payload)

    def read_request(self, length: int) -> bytes:
        """Copy a request of `length` bytes."""
        return self._read(_REQUEST_OFFSET, length)

    def write_answer(self, payload: bytes) -> None:
        """Put an answer where the client side looks for it."""
        self._write(_ANSWER_OFFSET, payload)

    def read_answer(self, length: int) -> bytes:
        """Copy an answer of `length` bytes."""
        return self._read(_ANSWER_OFFSET, length)

    def _write(self, offset: int, payload: bytes) -> None:
        if len(payload) > REGION:
            raise TapLabError(f"{len(payload)} bytes do not fit into the memory that both worlds share ({REGION})")
        self._map[offset : offset + len(payload)] = payload

    def _read(self, offset: int, length: int) -> bytes:
        if not 0 <= length <= REGION:
            raise ValueError(f"a payload of {length} bytes does not fit the shared memory ({REGION})")
        return self._map[offset : offset + length]

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def create() -> int:
    """Return the descriptor of new memory of fixed size."""
    descriptor = os.memfd_create("tee-shared-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _SIZE)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor
