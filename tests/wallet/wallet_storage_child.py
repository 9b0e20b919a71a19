# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Uses sealed storage in a process that is locked down, or on a disk that is full, and prints how that went.

The full disk is a tmpfs of 64 KiB in a mount namespace of its own; who may not mount one meets the kernel's limit on the
size of a file instead. Either way the error is the kernel's.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from protocol.secret import Secret
from wallet.environment.lockdown import lock_down
from wallet.tee import storage as storage_module
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.storage import SealedStorage, StorageFailedError

_KEY = Secret(bytes(range(32)))
_COUNTER_KEY = Secret(bytes(range(32, 64)))
_CLONE_NEWNS = 0x20000
_MS_PRIVATE_RECURSIVE = (1 << 18) | (1 << 14)
_DISK_BYTES = 64 * 1024


class _Store:
    """A storage and its counter."""

    def __init__(self, folder: Path) -> None:
        """Open both."""
        self.counter = FreshnessCounter(folder, _COUNTER_KEY)
        self.storage = SealedStorage(folder, _KEY, self.counter)

    def state(self) -> dict[str, str]:
        """Return everything as text."""
        return {key.hex(): value.hex() for key, value in self.storage.items(b"")}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of both."""
        return (*self.storage.descriptors, *self.counter.descriptors)


def _mount_small_disk(folder: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        return False
    libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE_RECURSIVE), None)
    options = f"size={_DISK_BYTES}".encode()
    return bool(libc.mount(b"tmpfs", bytes(folder), b"tmpfs", ctypes.c_ulong(0), options) == 0)


def _limit_files(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


class _Room:
    """Something that takes room away and can give it back."""

    def __init__(self, folder: Path, what: str) -> None:
        """Prepare the disk, or fall back to the limit."""
        self.filler = folder / "filler"
        self.is_disk = what != "file size" and _mount_small_disk(folder)
        self.folder = folder

    def take(self) -> None:
        """Leave less than a page."""
        if not self.is_disk:
            _limit_files((self.folder / "state.log").stat().st_size + 100)
            return
        with self.filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1024)):
                    pass
            except OSError:
                return

    def give_back(self) -> None:
        """Make room again."""
        if self.is_disk:
            self.filler.unlink()
        else:
            _limit_files(resource.RLIM_INFINITY)


def _fail_for_room(folder: Path, what: str) -> dict[str, Any]:
    room = _Room(folder, what)
    store = _Store(folder)
    log = folder / "state.log"
    store.storage.commit({b"purse": b"1", b"kept": b"2"})
    said: dict[str, Any] = {"state before": store.state(), "size before": log.stat().st_size}
    room.take()
    try:
        store.storage.commit({b"purse": b"9", b"large": bytes(2 * 4096)})
    except StorageFailedError as error:
        said["error"] = [type(error).__name__, _cause(error)]
    said |= {"state while full": store.state(), "size while full": log.stat().st_size}
    said["state when opened again"] = _Store(folder).state()
    room.give_back()
    store.storage.commit({b"purse": b"3"})
    said["commits after room was made"] = _Store(folder).state() == {**said["state before"], "7075727365": "33"}
    return said


def _cause(error: StorageFailedError) -> int | None:
    return error.__context__.errno if isinstance(error.__context__, OSError) else None


def _compact_without_room(folder: Path) -> dict[str, Any]:
    """Let compactions fail for want of room while single entries still fit, where a disk can be had."""
    room = _Room(folder, "disk")
    store = _Store(folder)
    storage_module._MIN_COMPACT_BYTES = 12_000
    store.storage.commit({b"large": bytes(9_000)})
    if room.is_disk:
        with room.filler.open("wb", buffering=0) as file:
            file.write(bytes(_DISK_BYTES - 24 * 1024))
    before, error = len(os.listdir("/proc/self/fd")), None  # noqa: PTH208
    for number in range(60):
        try:
            store.storage.commit({b"purse": bytes([number]) * 100})
        except (OSError, StorageFailedError) as failure:
            error = repr(failure)
            break
    after = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    return {"error": error, "new file": (folder / "state.log.new").exists(), "more descriptors": after - before}


def _compact_locked_down(folder: Path, out: int) -> dict[str, Any]:
    store = _Store(folder)
    storage_module._MIN_COMPACT_BYTES = 500
    store.storage.commit({b"purse": b"0"})
    json.dumps({})
    lockdown = lock_down(folder, (out, *store.descriptors))
    sizes = []
    for number in range(100):
        store.storage.commit({b"purse": bytes([number])})
        sizes.append(os.lseek(store.storage.descriptors[0], 0, os.SEEK_END))
    return {"missing": list(lockdown.missing), "compacted": max(sizes) != sizes[-1], "number": number}


def main() -> None:
    """Take what to do and the folder from the command line."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    out = os.dup(1)
    if what == "compact":
        said = _compact_locked_down(folder, out)
    elif what == "compact on a full disk":
        said = _compact_without_room(folder)
    else:
        said = _fail_for_room(folder, what)
    os.write(out, json.dumps(said).encode())


if __name__ == "__main__":
    main()
