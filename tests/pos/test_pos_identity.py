# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Who the terminal is: made once, kept privately, and never half read."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pos import identity
from pos.identity import ANCHORS_FILE, CERTIFICATE_FILE, DEVICE_SECRET_FILE, LIST_FILE, SIGNING_KEY_FILE
from pos.journal import FILE_NAME
from protocol.certificate import Merchant
from protocol.errors import UsageError
from protocol.issuing import IssuerRefusedError
from protocol.transport.issuer import IssuerLink
from tests.end_to_end.commands import tap

FILES = (SIGNING_KEY_FILE, DEVICE_SECRET_FILE, CERTIFICATE_FILE, ANCHORS_FILE, LIST_FILE)
BAKERY = Merchant("Corner Bakery", 5462, 978)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def nothing(_: bytes) -> bytes:
    return b""


def longer(data: bytes) -> bytes:
    return data + b"\0"


def zeros(data: bytes) -> bytes:
    return bytes(len(data))


@pytest.mark.parametrize("damage", [half, nothing, longer])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_told_in_a_sentence(home: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = home / "pos" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match="damaged"):
        identity.load(home / "pos")


@pytest.mark.parametrize("name", [SIGNING_KEY_FILE, CERTIFICATE_FILE])
def test_a_file_of_zeros_is_told_in_a_sentence(home: Path, name: str) -> None:
    path = home / "pos" / name
    path.write_bytes(zeros(path.read_bytes()))
    with pytest.raises(UsageError, match="damaged"):
        identity.load(home / "pos")


def test_a_damaged_terminal_charges_nobody(home: Path) -> None:
    path = home / "pos" / CERTIFICATE_FILE
    path.write_bytes(half(path.read_bytes()))
    refused = tap("pos", "charge", "1.00", "--timeout", "1", home=home)
    assert refused.code == 2
    assert "is damaged" in refused.sentence


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_told_in_a_sentence(home: Path, name: str) -> None:
    (home / "pos" / name).unlink()
    with pytest.raises(UsageError, match=r"make one with `tap-pos init`|is missing; restore it from a copy"):
        identity.load(home / "pos")


def test_the_files_can_be_read_by_their_owner_only(home: Path) -> None:
    modes = {(home / "pos" / name).stat().st_mode & 0o777 for name in FILES}
    assert modes == {0o600}
    assert (home / "pos").stat().st_mode & 0o777 == 0o700


def test_a_second_init_keeps_the_terminal(home: Path) -> None:
    before = {name: (home / "pos" / name).read_bytes() for name in FILES}
    refused = tap("pos", "init", home=home)
    assert refused.code == 2
    assert "already" in refused.sentence
    assert before == {name: (home / "pos" / name).read_bytes() for name in FILES}


def test_a_torn_init_is_finished_by_the_next_one(home: Path) -> None:
    key = (home / "pos" / SIGNING_KEY_FILE).read_bytes()
    for name in (CERTIFICATE_FILE, ANCHORS_FILE, LIST_FILE):
        (home / "pos" / name).unlink()
    assert tap("pos", "init", home=home).code == 0
    assert identity.load(home / "pos").key.scalar() == key


INIT_AND_DIE = """
import os, signal, sys
import pos.identity, pos.journal
from pos.cli import main
whole, last, before = pos.identity.write_privately, sys.argv.pop(), pos.journal.Journal.__init__
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def write(path, data):
    whole(path, data)
    if path.name == last:
        die()
def make(journal, folder, **options):
    if last == "nothing":
        die()
    before(journal, folder, **options)
    if last == pos.journal.FILE_NAME:
        die()
pos.identity.write_privately, pos.journal.Journal.__init__ = write, make
main()
"""


@pytest.mark.parametrize("last", ["nothing", FILE_NAME, *FILES])
def test_an_init_that_is_killed_makes_a_terminal_or_can_be_repeated(home: Path, last: str) -> None:
    shutil.rmtree(home / "pos")
    arguments = ["init", "--terminal-id", "TERM0002", "--home", str(home)]
    killed = subprocess.run([sys.executable, "-c", INIT_AND_DIE, *arguments, last], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    if last != CERTIFICATE_FILE:
        refused = tap("pos", "sync", home=home)
        assert (refused.code, "make one with `tap-pos init`" in refused.sentence) == (2, True)
        assert tap("pos", *arguments).code == 0
    assert tap("pos", "show", "--json", home=home).json["terminal_id"] == "TERM0002"
    kept = {path.name: path.read_bytes() for path in (home / "pos").iterdir()}
    assert "already" in tap("pos", *arguments).sentence
    assert kept == {path.name: path.read_bytes() for path in (home / "pos").iterdir()}


def test_a_terminal_id_belongs_to_one_terminal(home: Path, tmp_path: Path) -> None:
    with IssuerLink(f"embedded:{home / 'issuer'}") as issuer, pytest.raises(IssuerRefusedError, match="terminal id"):
        identity.create(tmp_path, "TERM0001", BAKERY, issuer)


def test_keys_are_not_shown(home: Path) -> None:
    own = identity.load(home / "pos")
    shown = repr(own)
    assert own.key.scalar().hex() not in shown
    assert repr(bytes(own.device_secret)) not in shown
