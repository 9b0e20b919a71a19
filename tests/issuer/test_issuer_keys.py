# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The issuer's files: keys for their owner only, made once, never half; a database of one version."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from console.home import Home, make_private
from issuer import keys
from issuer.database import FILE_NAME, Database
from issuer.service import Issuer
from protocol.errors import LinkUnavailableError, UsageError
from protocol.issuing import Anchors, AnchorsRequest, encode_message, expect
from protocol.transport.issuer import IssuerLink

_NAMES = ("issuer.key", "operations.key", "acquirer.key")


@pytest.fixture
def lax_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def _init(home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "issuer", "init", "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.usefixtures("lax_umask")
def test_key_files_are_for_their_owner_only(tmp_path: Path) -> None:
    keys.create(tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == set(_NAMES)
    assert {one.stat().st_mode & 0o777 for one in tmp_path.iterdir()} == {0o600}


@pytest.mark.usefixtures("lax_umask")
def test_the_folder_that_init_makes_is_for_its_owner_only(tmp_path: Path) -> None:
    assert _init(tmp_path / "home").returncode == 0
    assert (tmp_path / "home" / "issuer").stat().st_mode & 0o777 == 0o700


def test_keys_are_kept_and_all_different(tmp_path: Path) -> None:
    made = keys.create(tmp_path)
    assert keys.load(tmp_path).anchors == made.anchors
    assert len({(tmp_path / name).read_bytes() for name in _NAMES}) == 3


def test_keys_are_never_made_over_others(tmp_path: Path) -> None:
    made = keys.create(tmp_path)
    with suppress(UsageError):
        keys.create(tmp_path)
    assert keys.load(tmp_path).anchors == made.anchors


def test_no_key_is_shown_by_its_object(tmp_path: Path) -> None:
    shown = repr(keys.create(tmp_path)) + str(keys.load(tmp_path))
    for name in _NAMES:
        content = (tmp_path / name).read_bytes()
        assert content.hex() not in shown
        assert str(int.from_bytes(content, "big")) not in shown


def test_missing_keys_are_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no issuer in .*; make one with `tap-issuer init`"):
        keys.load(tmp_path)


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33), bytes(32), b"\xff" * 32], ids=len)
def test_a_damaged_key_is_said_in_a_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    """Of another length, zero, or beyond the order of the curve."""
    keys.create(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=r"a key file in .* is damaged; restore it from a copy"):
        keys.load(tmp_path)


# --- torn while it was made


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_an_init_that_was_torn_can_be_repeated(tmp_path: Path, left: int) -> None:
    """It got as far as some of the keys and no database; the next one finishes."""
    folder = make_private(Home(tmp_path).issuer)
    keys.create(folder)
    for name in _NAMES[left:]:
        (folder / name).unlink()
    again = _init(tmp_path)
    assert again.returncode == 0, again.stderr
    issuer = Issuer(folder)
    assert expect(issuer.handle(encode_message(AnchorsRequest())), Anchors)
    issuer.close()


_TORN_INIT = """
import os, sys
from issuer import database
from issuer.cli import cli
makes = database._metadata.create_all
step = sys.argv[2]
if step == "nothing":
    database._on_begin = lambda connection: os._exit(9)
elif step == "no table":
    database._metadata.create_all = lambda connection: os._exit(9)
else:
    database._metadata.create_all = lambda connection: (makes(connection), os._exit(9))
cli(["init", "--home", sys.argv[1]])
"""


@pytest.mark.parametrize("step", ["nothing", "no table", "every table, not committed"])
def test_an_init_that_was_killed_while_it_made_the_tables_can_be_repeated(tmp_path: Path, step: str) -> None:
    torn = subprocess.run([sys.executable, "-c", _TORN_INIT, str(tmp_path), step], check=False, timeout=30)
    assert torn.returncode == 9
    assert (tmp_path / "issuer" / FILE_NAME).exists()
    with pytest.raises(UsageError, match=r"there is no issuer in .*; make one with `tap-issuer init`"):
        Database(tmp_path / "issuer")
    before = keys.load(tmp_path / "issuer").anchors
    again = _init(tmp_path)
    assert again.returncode == 0, again.stderr
    issuer = Issuer(tmp_path / "issuer")
    assert expect(issuer.handle(encode_message(AnchorsRequest())), Anchors) == before
    issuer.close()


def test_an_init_of_an_issuer_that_lost_a_key_makes_no_other(tmp_path: Path) -> None:
    assert _init(tmp_path).returncode == 0
    (tmp_path / "issuer" / "acquirer.key").unlink()
    assert "there is an issuer in" in _init(tmp_path).stderr
    assert not (tmp_path / "issuer" / "acquirer.key").exists()


@pytest.mark.parametrize("name", _NAMES)
def test_a_key_that_an_issuer_has_lost_is_to_be_restored(tmp_path: Path, name: str) -> None:
    assert _init(tmp_path).returncode == 0
    lost = tmp_path / "issuer" / name
    lost.unlink()
    command = [sys.executable, "-m", "issuer", "settle", "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (2, f"tap-issuer: {lost} is missing; restore it from a copy\n")
    said = pytest.raises(LinkUnavailableError, match=rf"{name} is missing; restore it from a copy")
    with IssuerLink(f"embedded:{lost.parent}") as issuer, said:
        issuer.exchange(encode_message(AnchorsRequest()))


def test_a_database_is_never_made_over_another(tmp_path: Path) -> None:
    Database(tmp_path, create=True).close()
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(UsageError, match=r"there is an issuer in .* already; it is kept as it is"):
        Database(tmp_path, create=True)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_an_init_of_a_whole_issuer_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    assert _init(tmp_path).returncode == 0
    before = keys.load(tmp_path / "issuer").anchors
    again = _init(tmp_path)
    assert again.returncode == 2
    assert "there is an issuer in" in again.stderr
    assert keys.load(tmp_path / "issuer").anchors == before


# --- the database


def test_a_database_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no issuer in .*; make one with `tap-issuer init`"):
        Database(tmp_path)


def test_a_database_of_another_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    Database(tmp_path, create=True).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(UsageError, match="is of version 99, this program reads version 4"):
        Database(tmp_path)


def test_a_file_that_is_no_database_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"nonsense" * 1000)
    with pytest.raises(UsageError):
        Database(tmp_path)
