# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The user's history: what happened at the card, and why. The trusted world keeps the money; this is the copy to show."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.files import DatabaseKind, cannot_use, prepare
from protocol.closing import Closing
from protocol.errors import DecodeError, TapLabError, UsageError
from protocol.messages import Result
from protocol.settlement import SettledAs
from wallet.events import Event, Step
from wallet.tee.contract import WalletView

FILE_NAME = "history.sqlite"
_SAME_NANOSECONDS = 600 * 10**9  # as long as a terminal is refused for reading too often
_KIND = DatabaseKind(
    "history of a wallet",
    application_id=0x54574831,  # "TWH1"
    version=1,
    tables=frozenset({"shown", "history"}),
    script="""
CREATE TABLE IF NOT EXISTS shown (id INTEGER PRIMARY KEY CHECK (id = 1), view BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS history (
  id INTEGER PRIMARY KEY, at INTEGER NOT NULL, what TEXT NOT NULL, merchant TEXT NOT NULL, terminal_id TEXT NOT NULL,
  amount INTEGER NOT NULL, currency INTEGER NOT NULL, result INTEGER, balance INTEGER, reason TEXT NOT NULL,
  reference BLOB NOT NULL
);
""",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the history. `at` is in nanoseconds since 1970, `amount` and `balance` in minor units."""

    at: int
    what: str
    merchant: str
    terminal_id: str
    amount: int
    currency: int
    result: Result | None
    balance: int | None
    reason: str


class HistoryFailedError(TapLabError):
    """The history could not be written; no money depends on it."""


class History(Closing):
    """A table of entries; a line may be lost in a crash, money cannot."""

    def __init__(self, folder: Path) -> None:
        """Open or create the history in `folder`; UsageError when it cannot be used."""
        self._path = folder / FILE_NAME
        with self._readably():
            self._database = sqlite3.connect(self._path, check_same_thread=False, timeout=10)
        try:
            with self._readably():
                self._database.execute("PRAGMA synchronous = OFF")
                prepare(self._database, self._path, _KIND, create=True)
                self._database.execute("PRAGMA journal_mode = WAL")
        except TapLabError:
            self._database.close()
            raise

    @contextmanager
    def _readably(self) -> Iterator[None]:
        """Say in a sentence that the file is damaged, or cannot be read now."""
        try:
            yield
        except sqlite3.Error as error:
            raise cannot_use(self._path, error) from None

    def add(self, event: Event) -> None:
        """Write down what an event says, if it is one that a user wants to find again."""
        if event.step is Step.DEBITED:
            approved = event.result is Result.APPROVED
            what = f"declined: {event.result.words if event.result else 'unknown'}"
            self._insert(event, SettledAs.OPEN.words if approved else what)
        elif event.step is Step.CONFIRMED and event.result is Result.APPROVED:
            self.decide(event.reference, SettledAs.PAID)
        elif event.step is Step.CONSENT or (event.step is Step.TERMINAL_REFUSED and not self._was_just_said(event)):
            self._insert(event, event.text)

    def _was_just_said(self, event: Event) -> bool:
        """Tell whether the newest line says the same of the same terminal: one that taps on and on does not bury the rest."""
        try:
            newest = self._database.execute(
                "SELECT what, merchant, terminal_id, reason, at FROM history ORDER BY id DESC LIMIT 1"
            ).fetchone()
        except sqlite3.Error as error:
            raise HistoryFailedError(f"the history cannot be read: {error}") from None
        said = (event.text, event.merchant, event.terminal_id, event.reason)
        return newest is not None and newest[:4] == said and event.at - newest[4] < _SAME_NANOSECONDS

    def decide(self, reference: bytes, outcome: SettledAs) -> None:
        """Write down what became of a debit at the issuer."""
        if outcome is not SettledAs.OPEN:
            self._write("UPDATE history SET what = ? WHERE reference = ?", (outcome.words, reference))

    def _insert(self, event: Event, what: str) -> None:
        self._write(
            "INSERT INTO history (at, what, merchant, terminal_id, amount, currency, result, balance, reason,"
            " reference) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (event.at, what, event.merchant, event.terminal_id, event.amount, event.currency, event.result,
             event.balance, event.reason, event.reference),
        )  # fmt: skip

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            self._database.execute(statement, values)
            self._database.commit()
        except sqlite3.Error as error:
            raise HistoryFailedError(f"the history cannot be written: {error}") from None

    def entries(self) -> list[Entry]:
        """Return every line, oldest first; UsageError for a file that somebody else has written to."""
        columns = "at, what, merchant, terminal_id, amount, currency, result, balance, reason"
        with self._readably():
            rows = self._database.execute(f"SELECT {columns} FROM history ORDER BY id").fetchall()  # noqa: S608 - a constant
        return [_entry(*row) for row in rows]

    def keep_view(self, view: WalletView) -> None:
        """Keep what the trusted world last showed: a copy for looking, never for paying."""
        self._write("INSERT OR REPLACE INTO shown VALUES (1, ?)", (view.encode(),))

    def view(self) -> WalletView | None:
        """Return the copy, None when there is none that can be read."""
        with self._readably():
            row = self._database.execute("SELECT view FROM shown").fetchone()
        try:
            return WalletView.decode(row[0]) if row else None
        except DecodeError:
            return None

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _entry(*row: Any) -> Entry:
    at, what, merchant, terminal_id, amount, currency, result, balance, reason = row
    try:
        known = None if result is None else Result(result)
    except ValueError as error:
        raise UsageError(
            f"the history holds what it never wrote ({error}); remove it, no money depends on it"
        ) from None
    return Entry(at, what, merchant, terminal_id, amount, currency, known, balance, reason)
