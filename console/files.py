# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Files that only their owner can read, written all or not at all."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import InUseError, TapLabError, UsageError
from protocol.secret import Secret

_ROOT_KEY_BYTES = 32
_PRIMARY_CODE = 0xFF  # what is above it tells which kind of the same error it is
_NOT_OURS = (
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_ERROR,
)  # the last: a table is not as it was made


@dataclass(frozen=True, slots=True)
class DatabaseKind:
    """What marks a database as one of ours, and the script that makes its tables; `name` is what users call it."""

    name: str
    application_id: int
    version: int
    tables: frozenset[str]
    script: str


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


def take_lock(path: Path, sentence: str) -> int:
    """Return the descriptor of a lock file that this process now holds alone; the lock goes with the process.

    InUseError with `sentence` when another process holds it.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InUseError(sentence) from None
    return lock


def root_key(path: Path, sealed: Path, what: str) -> Secret:
    """Return the key that hardware would have fused in; made when what it seals, the file `sealed`, is not there either.

    UsageError when it is lost or of another length; `what` is what users call that file.
    """
    if path.exists():
        key = Secret(path.read_bytes())
        if len(key) != _ROOT_KEY_BYTES:
            raise UsageError(f"{path} does not hold a key of {_ROOT_KEY_BYTES} bytes; restore it from where it came")
        return key
    if sealed.exists():
        raise UsageError(f"{path} is missing, and {what} cannot be read without it; put it back")
    key = Secret(os.urandom(_ROOT_KEY_BYTES))
    write_privately(path, key)
    return key


def prepare(database: sqlite3.Connection, path: Path, kind: DatabaseKind, *, create: bool) -> None:
    """Make the tables, all of them or none, in a file that is empty yet; UsageError for one that is not of this kind.

    Without `create` an empty file is not of this kind: what it held must not be forgotten in silence. One with just these
    tables and no mark was made before there were marks, and gets its own.
    """
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    listed = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    tables = {name for (name,) in listed}
    is_marked = bool(application or version)
    if application == kind.application_id and version != kind.version:
        raise UsageError(f"{path} is of version {version}, this program reads version {kind.version}")
    is_whole = tables == kind.tables and (application == kind.application_id or not is_marked)
    is_new = create and not tables and not is_marked
    if not is_whole and not is_new:
        raise UsageError(f"{path} cannot be used (it is no {kind.name}); restore it from a copy")
    if not is_marked:
        database.executescript(
            f"BEGIN IMMEDIATE; {kind.script} PRAGMA application_id = {kind.application_id};"
            f" PRAGMA user_version = {kind.version}; COMMIT;"
        )


def cannot_use(path: Path, error: BaseException | None) -> TapLabError:
    """Return what to say of a database that could not be used: damaged, or whole on a disk that is full or read-only."""
    if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_NOTADB) & _PRIMARY_CODE in _NOT_OURS:
        return UsageError(f"{path} cannot be used ({error}); restore it from a copy")
    return TapLabError(
        f"{path} cannot be used now ({error}), and nothing in it is lost; make room on the disk, or let it be written to"
    )
