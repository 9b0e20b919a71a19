# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Files that only their owner can read, written all or not at all."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from protocol.errors import TapLabError, UsageError

_NOT_OURS = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def write_privately(path: Path, data: bytes) -> None:
    """Put `data` into `path` with mode 0600; after a crash there is the old file or the new one, never half of one."""
    temporary = path.with_name(f"{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


def cannot_use(path: Path, error: BaseException | None) -> TapLabError:
    """Return what to say of a database that could not be used: damaged, or whole on a disk that is full or read-only."""
    if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_NOTADB) in _NOT_OURS:
        return UsageError(f"{path} cannot be used ({error}); restore it from a copy")
    return TapLabError(
        f"{path} cannot be used now ({error}), and nothing in it is lost; make room on the disk, or let it be written to"
    )
