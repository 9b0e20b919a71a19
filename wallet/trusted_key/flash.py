# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The flash of the Key: what it keeps, in one SQLite file whose rows are sealed under the device's root key.

A row's place is a MAC of its name, and its name is sealed with its value, so that the file says how many things there are,
how long they are, and nothing else. What was committed together is there together, whatever is torn. Who puts an older
copy of the file back is not noticed; a device would have its flash inside.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from console.files import cannot_use, root_key, take_lock
from protocol import tally
from protocol.closing import Closing
from protocol.errors import TapLabError, UsageError
from protocol.labels import Label, labelled
from protocol.secret import Secret

FILE_NAME = "flash.sqlite"
LOCK_FILE = "lock"
ROOT_KEY_FILE = "root.key"
VERSION = 1
_APPLICATION_ID = 0x54504B31  # "TPK1"
_NONCE_BYTES = 12
_PLACE_BYTES = 16
_FIRST = b"flash"

Changes = Mapping[bytes, bytes | None]


class FlashFailedError(TapLabError):
    """The change could not be written: the Key goes on with what was there before."""


class Cells(Protocol):
    """Values by name, changed together or not at all."""

    def get(self, name: bytes) -> bytes | None:
        """Return the value of `name`, None when there is none."""

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield name and value of every name that starts with `prefix`, in order."""

    def commit(self, changes: Changes) -> None:
        """Put changes on disk, None for what goes; FlashFailedError when they are not there."""


class Flash(Closing):
    """The cells of the Key in `folder`; one process holds it at a time."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        """Open it; UsageError when there is none (unless `create`), when another process holds it or it cannot be read."""
        if not create and not (folder / FILE_NAME).exists():
            raise UsageError(f"there is no Trusted Key in {folder}; make one with `tap-key init`")
        sentence = f"another process is using the Key in {folder}; stop it first, or use another --home"
        self._lock = take_lock(folder / LOCK_FILE, sentence)
        try:
            root = root_key(folder / ROOT_KEY_FILE, folder / FILE_NAME, "the flash of the Key")
            self._place_key = _derive(root, Label.KEY_CELL_NAME)
            self._cipher = AESGCM(_derive(root, Label.KEY_FLASH))
            self._database = _open(folder / FILE_NAME)
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._cells = dict(self._load())
            self._require_right_key(folder)
        except BaseException:
            self.close()
            raise

    def _load(self) -> Iterator[tuple[bytes, bytes]]:
        try:
            rows = self._database.execute("SELECT place, sealed FROM cells").fetchall()
        except sqlite3.Error as error:
            raise UsageError(f"the flash of the Key cannot be read: {error}; restore it from a copy") from None
        for place, sealed in rows:
            try:
                plain = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
            except (InvalidTag, ValueError, TypeError):
                raise UsageError(
                    f"the flash of the Key is damaged or of another device; put the right {ROOT_KEY_FILE} back,"
                    " or restore both from a copy"
                ) from None
            yield plain[1 : 1 + plain[0]], Secret(plain[1 + plain[0] :])

    def _require_right_key(self, folder: Path) -> None:
        """Leave a mark in a new flash, so that one without its rows is not taken for one."""
        if not self._cells:
            self.commit({_FIRST: bytes([VERSION])})
        elif _FIRST not in self._cells:
            raise UsageError(f"the flash in {folder} is not whole; restore it from a copy")

    def get(self, name: bytes) -> bytes | None:
        """Return the value of `name`, None when there is none."""
        return self._cells.get(name)

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield name and value of every name that starts with `prefix`, in order."""
        return ((name, self._cells[name]) for name in sorted(self._cells) if name.startswith(prefix))

    def commit(self, changes: Changes) -> None:
        """Put changes on disk, synced, all or none."""
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                for name, value in changes.items():
                    self._write(name, value)
        except sqlite3.Error as error:
            raise FlashFailedError(f"the flash of the Key cannot be written: {error}") from None
        tally.count(tally.Operation.SYNC)
        for name, value in changes.items():
            if value is None:
                self._cells.pop(name, None)
            else:
                self._cells[name] = Secret(value)

    def _write(self, name: bytes, value: bytes | None) -> None:
        place = hmac.digest(self._place_key, name, hashlib.sha256)[:_PLACE_BYTES]
        if value is None:
            self._database.execute("DELETE FROM cells WHERE place = ?", (place,))
            return
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, bytes([len(name)]) + name + value, place)
        self._database.execute("INSERT OR REPLACE INTO cells VALUES (?, ?)", (place, sealed))

    def close(self) -> None:
        """Let another process have it."""
        with suppress(sqlite3.Error):
            self._database.close()
        os.close(self._lock)


def _derive(root: Secret, label: Label) -> Secret:
    return Secret(HKDFExpand(SHA256(), 32, labelled(label)).derive(root))


def _open(path: Path) -> sqlite3.Connection:
    """Open or create the file; one of another version or of somebody else's is not touched."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        _require_version(database, path)
        _prepare(database)
    except sqlite3.Error as error:
        database.close()
        raise cannot_use(path, error) from None
    except UsageError:
        database.close()
        raise
    return database


def _require_version(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (version or application or tables):
        raise UsageError(f"{path} is no flash of a Trusted Key; use another --home")
    if application == _APPLICATION_ID and version != VERSION:
        raise UsageError(
            f"{path} is of version {version}, and this Key reads version {VERSION}; use the TapLab that made it"
        )


def _prepare(database: sqlite3.Connection) -> None:
    for setting in ("journal_mode = WAL", "synchronous = FULL", "temp_store = MEMORY", "secure_delete = ON"):
        database.execute(f"PRAGMA {setting}")
    with database:
        database.execute("BEGIN IMMEDIATE")
        database.execute(
            "CREATE TABLE IF NOT EXISTS cells (place BLOB PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID"
        )
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {VERSION}")
