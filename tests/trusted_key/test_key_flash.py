# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Key's flash: what was committed is there, whatever was torn, and nothing in the file can be read."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from protocol.errors import InUseError, UsageError
from protocol.labels import Label
from protocol.secret import Secret
from wallet.trusted_key import flash as flash_module
from wallet.trusted_key.flash import FILE_NAME, ROOT_KEY_FILE, Flash, FlashFailedError

pytestmark = pytest.mark.requirement("K2")


def state_of(folder: Path) -> dict[bytes, bytes]:
    with Flash(folder) as flash:
        return dict(flash.items(b"x/"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flash with two values."""
    with Flash(tmp_path, create=True) as flash:
        flash.commit({b"x/a": b"first", b"x/b": b"second", b"y": b"third"})
    return tmp_path


def test_what_was_committed_is_there_again(folder: Path) -> None:
    with Flash(folder) as flash:
        assert dict(flash.items(b"x/")) == {b"x/a": b"first", b"x/b": b"second"}
        flash.commit({b"x/a": None, b"x/b": b"", b"x/c": b"new"})
        assert (flash.get(b"x/a"), flash.get(b"x/b"), flash.get(b"y")) == (None, b"", b"third")
    assert state_of(folder) == {b"x/b": b"", b"x/c": b"new"}


def test_every_file_is_for_its_owner_only(folder: Path) -> None:
    with Flash(folder):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes) >= {FILE_NAME, ROOT_KEY_FILE, "lock"}
    assert set(modes.values()) == {0o600}


def test_nothing_in_the_file_can_be_read(tmp_path: Path) -> None:
    secret, name = b"a secret of many letters", b"object/a telling name"
    with Flash(tmp_path, create=True) as flash:
        flash.commit({name: secret})
        flash.commit({name: secret + b"!"})
        files = [path.read_bytes() for path in tmp_path.iterdir()]
    files += [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(files) > 6
    assert not [one for one in files if b"secret" in one or b"telling" in one or b"object/" in one]


def test_values_are_not_shown_by_repr(folder: Path) -> None:
    with Flash(folder) as flash:
        assert repr(flash.get(b"x/a")) == "Secret(5 bytes)"
        assert isinstance(flash.get(b"x/a"), Secret)


def test_equal_values_look_different(folder: Path) -> None:
    with Flash(folder) as flash:
        flash.commit({b"x/a": b"the same", b"x/b": b"the same"})
    with closing(sqlite3.connect(folder / FILE_NAME)) as database:
        sealed = [row[0] for row in database.execute("SELECT sealed FROM cells")]
    assert len({one[12:] for one in sealed}) == len(sealed)


def test_a_second_process_is_told_so(folder: Path) -> None:
    with Flash(folder), pytest.raises(InUseError, match="another process is using the Key"):
        Flash(folder)
    assert state_of(folder)


def test_none_is_made_where_none_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no Trusted Key in .*; make one with `tap-key init`"):
        Flash(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- files that do not belong


def test_a_flash_of_another_version_is_refused_and_kept(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME)) as database:
        database.execute("PRAGMA user_version = 2")
    before = (folder / FILE_NAME).read_bytes()
    with pytest.raises(UsageError, match=r"is of version 2, and this Key reads version 1"):
        Flash(folder)
    assert (folder / FILE_NAME).read_bytes() == before


def test_a_database_of_somebody_elses_is_refused_and_kept(folder: Path) -> None:
    (folder / FILE_NAME).unlink()
    with closing(sqlite3.connect(folder / FILE_NAME)) as database:
        database.execute("CREATE TABLE theirs (x)")
    with pytest.raises(UsageError, match="is no flash of a Trusted Key"):
        Flash(folder)
    with closing(sqlite3.connect(folder / FILE_NAME)) as database:
        assert [row[0] for row in database.execute("SELECT name FROM sqlite_master")] == ["theirs"]


def test_what_is_no_database_is_refused(folder: Path) -> None:
    (folder / FILE_NAME).write_bytes(b"no database at all" * 100)
    with pytest.raises(UsageError, match=r"cannot be used .file is not a database.; restore it from a copy"):
        Flash(folder)


def test_another_root_key_reads_nothing(folder: Path) -> None:
    (folder / ROOT_KEY_FILE).write_bytes(bytes(32))
    with pytest.raises(UsageError, match=r"put the right root.key back"):
        Flash(folder)


def test_a_lost_root_key_is_not_made_anew(folder: Path) -> None:
    (folder / ROOT_KEY_FILE).unlink()
    with pytest.raises(UsageError, match="is missing, and the flash of the Key cannot be read without it"):
        Flash(folder)
    assert not (folder / ROOT_KEY_FILE).exists()


def test_a_root_key_of_another_length_is_refused(folder: Path) -> None:
    (folder / ROOT_KEY_FILE).write_bytes(bytes(31))
    with pytest.raises(UsageError, match="does not hold a key of 32 bytes"):
        Flash(folder)


@pytest.mark.parametrize("change", ["sealed = randomblob(60)", "sealed = x''", "sealed = 7", "place = randomblob(16)"])
def test_a_changed_row_is_noticed(folder: Path, change: str) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME)) as database, database:
        database.execute(f"UPDATE cells SET {change} WHERE place = (SELECT min(place) FROM cells)")  # noqa: S608
    with pytest.raises(UsageError, match="damaged or of another device"):
        Flash(folder)


def test_two_rows_that_change_places_are_noticed(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE_NAME)) as database, database:
        (first, one), (second, other), *_ = database.execute("SELECT place, sealed FROM cells").fetchall()
        database.execute("UPDATE cells SET sealed = ? WHERE place = ?", (other, first))
        database.execute("UPDATE cells SET sealed = ? WHERE place = ?", (one, second))
    with pytest.raises(UsageError, match="damaged or of another device"):
        Flash(folder)


def test_a_flash_that_lost_its_mark_is_not_whole(folder: Path) -> None:
    with Flash(folder) as flash:
        flash.commit({b"flash": None})
    with pytest.raises(UsageError, match="is not whole"):
        Flash(folder)


def test_a_refused_flash_lets_go_of_the_lock(folder: Path) -> None:
    right = (folder / ROOT_KEY_FILE).read_bytes()
    (folder / ROOT_KEY_FILE).write_bytes(bytes(32))
    with pytest.raises(UsageError):
        Flash(folder)
    (folder / ROOT_KEY_FILE).write_bytes(right)
    assert state_of(folder)


# --- torn


class FailingDatabase:
    """A database whose statement number `at` fails, as a full or broken disk makes it fail."""

    def __init__(self, database: sqlite3.Connection, at: int) -> None:
        self._database = database
        self._left = at

    def execute(self, statement: str, values: tuple[bytes, ...] = ()) -> sqlite3.Cursor:
        self._count()
        return self._database.execute(statement, values)

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise sqlite3.OperationalError("disk I/O error")

    def __enter__(self) -> FailingDatabase:
        self._database.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            try:
                self._count()
            except sqlite3.Error:
                self._database.rollback()
                raise
        self._database.__exit__(kind, *rest)  # type: ignore[arg-type]

    def close(self) -> None:
        self._database.close()


@pytest.mark.attack("D4")
@pytest.mark.parametrize("at", range(1, 6))
def test_a_write_that_fails_at_any_step_leaves_everything_as_it_was(folder: Path, at: int) -> None:
    before = state_of(folder)
    with Flash(folder) as flash:
        database = flash._database
        flash._database = FailingDatabase(database, at)  # type: ignore[assignment]
        with pytest.raises(FlashFailedError, match="cannot be written: disk I/O error"):
            flash.commit({b"x/a": b"9", b"x/b": None, b"x/c": b"9"})
        assert dict(flash.items(b"x/")) == before
        flash._database = database
        flash.commit({b"x/d": b"after"})
    assert state_of(folder) == {**before, b"x/d": b"after"}


def test_six_steps_are_all_that_a_commit_of_three_changes_has(folder: Path) -> None:
    with Flash(folder) as flash:
        flash._database = FailingDatabase(flash._database, 6)  # type: ignore[assignment]
        flash.commit({b"x/a": b"9", b"x/b": None, b"x/c": b"9"})
    assert state_of(folder) == {b"x/a": b"9", b"x/c": b"9"}


@pytest.fixture
def torn(folder: Path) -> tuple[Path, int]:
    """A copy of the files at the moment after a commit, its log not yet folded in; and the length of the log before."""
    copy = folder / "copy"
    copy.mkdir()
    with Flash(folder) as flash:
        flash.commit({b"x/a": b"before", b"x/b": b"before"})
        log = folder / f"{FILE_NAME}-wal"
        before = log.stat().st_size
        flash.commit({b"x/a": b"after" * 300, b"x/b": None})
        for name in (FILE_NAME, f"{FILE_NAME}-wal", ROOT_KEY_FILE):
            shutil.copy(folder / name, copy / name)
    return copy, before


@pytest.mark.attack("D4")
def test_a_log_that_is_torn_anywhere_holds_the_old_values_or_the_new_ones(torn: tuple[Path, int]) -> None:
    copy, before = torn
    whole = (copy / f"{FILE_NAME}-wal").read_bytes()
    main = (copy / FILE_NAME).read_bytes()
    old, new = {b"x/a": b"before", b"x/b": b"before"}, {b"x/a": b"after" * 300}
    seen = []
    for length in [*range(before, len(whole), 97), len(whole)]:
        for left in copy.glob(f"{FILE_NAME}-*"):
            left.unlink()
        (copy / FILE_NAME).write_bytes(main)
        (copy / f"{FILE_NAME}-wal").write_bytes(whole[:length])
        seen.append(state_of(copy))
    assert [state for state in seen if state not in (old, new)] == []
    assert (seen[0], seen[-1]) == (old, new)
    assert len(seen) > 40


def test_a_full_disk_is_a_failed_write_and_no_more(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Flash(folder) as flash:
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / f"{FILE_NAME}-wal").stat().st_size + 1000, hard))
        try:
            with pytest.raises(FlashFailedError):
                flash.commit({b"x/a": os.urandom(100_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert flash.get(b"x/a") == b"first"
        flash.commit({b"x/b": b"room again"})
    assert state_of(folder) == {b"x/a": b"first", b"x/b": b"room again"}


def test_each_label_makes_a_key_of_its_own() -> None:
    root = Secret(bytes(32))
    labels = (Label.KEY_FLASH, Label.KEY_CELL_NAME, Label.STORAGE_KEY)
    assert len({bytes(flash_module._derive(root, label)) for label in labels}) == 3
