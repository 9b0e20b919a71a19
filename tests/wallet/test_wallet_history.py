# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The user's history in its file: of this wallet, or refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pos.journal import FILE_NAME as JOURNAL
from pos.journal import Journal
from protocol.errors import UsageError
from protocol.messages import Result
from wallet.events import Event, Step
from wallet.history import FILE_NAME, History


def test_the_terminals_journal_is_no_history(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    path = (tmp_path / JOURNAL).rename(tmp_path / FILE_NAME)
    before = path.read_bytes()
    with pytest.raises(UsageError) as refused:
        History(tmp_path)
    assert str(refused.value) == f"{path} cannot be used (it is no history of a wallet); restore it from a copy"
    assert path.read_bytes() == before


def test_a_history_without_its_table_is_refused(tmp_path: Path) -> None:
    History(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.execute("DROP TABLE history")
    with pytest.raises(UsageError, match=r"cannot be used \(it is no history of a wallet\)"):
        History(tmp_path)


def test_a_history_with_other_columns_is_told_in_a_sentence(tmp_path: Path) -> None:
    History(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.execute("ALTER TABLE history DROP COLUMN what")
    with History(tmp_path) as history, pytest.raises(UsageError, match="restore it from a copy"):
        history.entries()


def test_a_history_that_was_made_before_there_were_marks_is_used(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        history.add(Event(Step.DEBITED, "", merchant="Corner Bakery", amount=100, currency=978, result=Result.APPROVED))
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.executescript("PRAGMA application_id = 0; PRAGMA user_version = 0")
    with History(tmp_path) as history:
        assert [entry.amount for entry in history.entries()] == [100]


def test_a_history_that_was_never_made_whole_is_made(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"")
    with History(tmp_path) as history:
        assert history.entries() == []
