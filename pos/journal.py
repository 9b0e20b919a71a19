# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The terminal's durable record: what was about to be charged before it was sent, and the result before it is shown.

SQLite, synced at every commit but the one of a confirmation, which costs nothing when it is lost. Tap numbers are
reserved in blocks, so that a number is never used twice and a tap does not wait for it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from console.files import DatabaseKind, cannot_use, prepare, take_lock
from protocol import tally
from protocol.closing import Closing
from protocol.errors import TapLabError, UsageError
from protocol.settlement import Verdict

FILE_NAME = "journal.sqlite"
LOCK_FILE = "lock"
TAP_NUMBER_BLOCK = 1000
_KIND = DatabaseKind(
    "journal of a terminal",
    application_id=0x54504A31,  # "TPJ1"
    version=1,
    tables=frozenset({"transactions", "tap_numbers"}),
    script="""
CREATE TABLE IF NOT EXISTS transactions (
  id INTEGER PRIMARY KEY, transaction_id BLOB NOT NULL UNIQUE, started TEXT NOT NULL, amount INTEGER NOT NULL,
  currency INTEGER NOT NULL, card TEXT NOT NULL, credential BLOB NOT NULL, terminal_hash BLOB NOT NULL,
  receipt BLOB NOT NULL, signature BLOB NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, confirmed INTEGER NOT NULL,
  verdict INTEGER
);
CREATE TABLE IF NOT EXISTS tap_numbers (reserved INTEGER NOT NULL);
""",
)


class JournalFailedError(TapLabError):
    """The journal could not be written, and what was to be written is not there; or it could not be read."""


class State(StrEnum):
    """Where a transaction stands at the terminal."""

    OPEN = "open"
    APPROVED = "approved"
    REFUSED = "refused"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Record:
    """One transaction. `receipt` is what a wallet that approves would sign, `signature` the evidence of how it ended, empty
    while it is open; `started` is ISO 8601 in UTC.

    `verdict` is what the issuer said to the claim or the VOID of it, None before that.
    """

    transaction_id: bytes
    started: str
    amount: int
    currency: int
    card: str
    credential: bytes
    terminal_hash: bytes
    receipt: bytes
    signature: bytes = b""
    state: State = State.OPEN
    reason: str = ""
    confirmed: bool = False
    verdict: Verdict | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the wallet paid and the terminal did not give it up: a VOID is for good, whatever a later tap brings."""
        return self.state is State.APPROVED and self.verdict not in (Verdict.VOIDED, Verdict.CHARGED_BACK)


_COLUMNS = (
    "transaction_id, started, amount, currency, card, credential, terminal_hash, receipt, signature, state, reason,"
    " confirmed, verdict"
)


class Journal(Closing):
    """The journal of one terminal folder; one process holds it at a time."""

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        """Open or create the journal; InUseError when another process holds it.

        Without `create` a journal that is not there is an error: what it held must not be forgotten in silence.
        """
        if not create and not (folder / FILE_NAME).exists():
            raise UsageError(f"the journal in {folder} is missing; restore it from a copy, or set up another terminal")
        sentence = f"another terminal process is using {folder}; wait for it, or use another --home"
        self._lock = take_lock(folder / LOCK_FILE, sentence)
        try:
            self._database = sqlite3.connect(folder / FILE_NAME)
            self._prepare(folder / FILE_NAME, create=create)
        except BaseException as error:
            os.close(self._lock)
            if not isinstance(error, sqlite3.Error):
                raise
            raise cannot_use(folder / FILE_NAME, error) from None

    def _prepare(self, path: Path, *, create: bool) -> None:
        """Require a journal of ours, or make its tables; a file of somebody else's is not touched."""
        try:
            prepare(self._database, path, _KIND, create=create)
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._add_missing_column()
            self._database.execute(f"SELECT {_COLUMNS} FROM transactions LIMIT 0")  # noqa: S608 - a constant
            self._next_tap = self._reserved_until = self._reserved()
        except BaseException:
            self._database.close()
            raise

    def _add_missing_column(self) -> None:
        """Bring a journal that was made before there were verdicts up to date; nothing in it is lost."""
        columns = {row["name"] for row in self._database.execute("PRAGMA table_info(transactions)")}
        if "verdict" not in columns:
            self._database.execute("ALTER TABLE transactions ADD COLUMN verdict INTEGER")

    def _reserved(self) -> int:
        (number,) = self._database.execute("SELECT max(reserved) FROM tap_numbers").fetchone()
        if not isinstance(number, int | None):
            raise sqlite3.DatabaseError("a tap number is no number")
        return number or 0

    def next_tap_number(self) -> int:
        """Return a number that no tap of this terminal ever had or will have, whatever crashes."""
        if self._next_tap >= self._reserved_until:
            until = self._next_tap + TAP_NUMBER_BLOCK
            with self._durably():
                self._database.execute("DELETE FROM tap_numbers")
                self._database.execute("INSERT INTO tap_numbers VALUES (?)", (until,))
            self._reserved_until = until  # only now: a number that is not reserved on disk would come again
        self._next_tap += 1
        return self._next_tap

    def open(self, record: Record) -> None:
        """Write down what is about to be charged; it is on disk when this returns."""
        with self._durably():
            self._database.execute(
                f"INSERT INTO transactions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
                (record.transaction_id, record.started, record.amount, record.currency, record.card, record.credential,
                 record.terminal_hash, record.receipt, record.signature, record.state, record.reason, record.confirmed,
                 record.verdict),
            )  # fmt: skip

    def settle(self, transaction_id: bytes, state: State, signature: bytes, reason: str = "") -> None:
        """Write down the result of an open transaction; it is on disk when this returns."""
        with self._durably():
            self._database.execute(
                "UPDATE transactions SET state = ?, signature = ?, reason = ? WHERE transaction_id = ? AND state = 'open'",
                (state, signature, reason, transaction_id),
            )

    def confirm(self, transaction_id: bytes) -> None:
        """Note that the wallet knows that the result arrived.

        It goes to disk with the next thing that must; when it is lost before, the wallet says the result once more.
        """
        with suppress(sqlite3.Error):
            self._database.execute("UPDATE transactions SET confirmed = 1 WHERE transaction_id = ?", (transaction_id,))

    def judge(self, verdicts: Mapping[bytes, Verdict]) -> None:
        """Write down what the issuer said, by transaction id; it is on disk when this returns."""
        with self._durably():
            self._database.executemany(
                "UPDATE transactions SET verdict = ? WHERE transaction_id = ?",
                [(int(verdict), transaction_id) for transaction_id, verdict in verdicts.items()],
            )

    @contextmanager
    def _durably(self) -> Iterator[None]:
        """Commit what is done within, synced, or raise JournalFailedError."""
        try:
            yield
            self._database.commit()
        except BaseException as error:  # Ctrl-C too: what is read afterwards must be what is on disk
            with suppress(sqlite3.Error):
                self._database.rollback()
            if not isinstance(error, sqlite3.Error):
                raise
            raise JournalFailedError(f"the journal cannot be written: {error}; make room or mend the disk") from None
        tally.count(tally.Operation.SYNC)

    def records(self, newest: int = -1) -> list[Record]:
        """Return every transaction, or the `newest` so many, oldest first."""
        rows = self._read(f"SELECT {_COLUMNS} FROM transactions ORDER BY id DESC LIMIT ?", newest)  # noqa: S608 - a constant
        return [_record(row) for row in reversed(rows)]

    def find(self, transaction_id: bytes) -> Record | None:
        """Return a transaction by its id, None when this terminal never began it."""
        rows = self._read(f"SELECT {_COLUMNS} FROM transactions WHERE transaction_id = ?", transaction_id)  # noqa: S608 - a constant
        return _record(rows[0]) if rows else None

    def _read(self, query: str, value: bytes | int) -> list[sqlite3.Row]:
        try:
            return self._database.execute(query, (value,)).fetchall()
        except sqlite3.Error as error:
            raise JournalFailedError(f"the journal cannot be read: {error}; make room or mend the disk") from None

    def close(self) -> None:
        """Close the journal and let another process have it."""
        with suppress(sqlite3.Error):
            self._database.commit()
        self._database.close()
        os.close(self._lock)


def _record(row: sqlite3.Row) -> Record:
    try:
        verdict = None if row["verdict"] is None else Verdict(row["verdict"])
        decoded = {"state": State(row["state"]), "confirmed": bool(row["confirmed"]), "verdict": verdict}
    except ValueError as error:
        raise UsageError(f"the journal holds what it never wrote ({error}); restore it from a copy") from None
    return Record(**{**dict(row), **decoded})
