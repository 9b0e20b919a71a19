# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The terminal's journal: on disk before it is seen, numbers used once, one process at a time."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lab.fixtures import Laboratory
from pos.journal import FILE_NAME, TAP_NUMBER_BLOCK, Journal, JournalFailedError, Record, State
from pos.outcome import Outcome, OutcomeKind, Step
from pos.terminal import NOT_KNOWN, WRITTEN_LATER, Terminal, TerminalOptions
from protocol import tally
from protocol.commands import Ins
from protocol.errors import TapLabError, UsageError
from protocol.money import Amount
from protocol.transport.fault import Fault, inject
from tests.end_to_end.commands import tap
from tests.end_to_end.parties import EditingCard, WatchedLink, link_to, terminal_like

Broken = Callable[[Journal, bytes], None]
DEBIT = bytes.fromhex("8052")
CONFIRM = bytes.fromhex("8054")
CANCEL = bytes.fromhex("8056")
ONE_EURO = Amount.parse("1.00", "EUR")

TAKE_NUMBERS_AND_DIE = """
import os, signal, sys
from pathlib import Path
from pos.journal import Journal
journal = Journal(Path(sys.argv[1]))
print(*(journal.next_tap_number() for _ in range(int(sys.argv[2]))), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def record(name: int) -> Record:
    return Record(bytes([name] * 16), "2026-01-02T03:04:05+00:00", 100, 978, "card", b"c", b"t", b"r")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path) as opened:
        yield opened


def on_disk(folder: Path, scratch: Path) -> list[tuple[str, int, bytes]]:
    """Return (state, amount, signature) of every row that a crash at this moment would leave behind."""
    copy = Path(shutil.copytree(folder, scratch))
    with sqlite3.connect(copy / FILE_NAME) as database:
        rows = database.execute("SELECT state, amount, signature FROM transactions ORDER BY id").fetchall()
    database.close()
    return rows


def seen_at(laboratory: Laboratory, folder: Path, scratch: Path, ins: bytes) -> list[tuple[str, int, bytes]]:
    """Charge 1.00 EUR and return what was on disk when the command `ins` left the terminal."""
    seen: list[tuple[str, int, bytes]] = []

    def look(apdu: bytes) -> None:
        if apdu.startswith(ins):
            seen.extend(on_disk(folder, scratch))

    identity = terminal_like(laboratory.home.path)
    with Terminal(identity, Journal(folder)) as terminal:
        assert terminal.charge(ONE_EURO, WatchedLink(link_to(laboratory.phone.card), look)).approved
    return seen


def test_the_open_record_is_on_disk_when_debit_leaves(laboratory: Laboratory, tmp_path: Path) -> None:
    (folder := tmp_path / "pos").mkdir()
    assert seen_at(laboratory, folder, tmp_path / "copy", DEBIT) == [("open", 100, b"")]


def test_the_result_is_on_disk_when_confirm_leaves(laboratory: Laboratory, tmp_path: Path) -> None:
    (folder := tmp_path / "pos").mkdir()
    [(state, amount, signature)] = seen_at(laboratory, folder, tmp_path / "copy", CONFIRM)
    assert (state, amount, len(signature)) == ("approved", 100, 64)


def test_nothing_is_written_about_a_payment_before_the_card_was_checked(laboratory: Laboratory, tmp_path: Path) -> None:
    (folder := tmp_path / "pos").mkdir()
    assert seen_at(laboratory, folder, tmp_path / "copy", bytes.fromhex("8050")) == []


def test_the_result_is_on_disk_when_the_shopper_may_see_it(laboratory: Laboratory, tmp_path: Path) -> None:
    (folder := tmp_path / "pos").mkdir()
    with Terminal(terminal_like(laboratory.home.path), Journal(folder)) as terminal:
        steps = terminal.transaction(ONE_EURO, link_to(laboratory.phone.card))
        while next(steps).step is not Step.PAID:
            pass
        rows = on_disk(folder, tmp_path / "copy")
        steps.close()
    assert [state for state, _, _ in rows] == ["approved"]


def test_opening_and_settling_are_synced(journal: Journal) -> None:
    before = tally.snapshot()
    journal.open(record(1))
    assert tally.since(before)[tally.Operation.SYNC] == 1
    journal.settle(record(1).transaction_id, State.APPROVED, b"s")
    assert tally.since(before)[tally.Operation.SYNC] == 2


def test_every_commit_of_the_journal_goes_to_the_disk(journal: Journal) -> None:
    [level] = journal._database.execute("PRAGMA synchronous").fetchone()
    assert level == 2  # FULL
    journal.open(record(1))
    journal.confirm(record(1).transaction_id)
    [level] = journal._database.execute("PRAGMA synchronous").fetchone()
    assert level == 2


def test_a_transaction_leaves_open_once(journal: Journal) -> None:
    journal.open(record(1))
    journal.settle(record(1).transaction_id, State.APPROVED, b"first")
    journal.settle(record(1).transaction_id, State.REFUSED, b"second", "too late")
    [kept] = journal.records()
    assert (kept.state, kept.signature, kept.reason) == (State.APPROVED, b"first", "")


def test_settling_one_transaction_leaves_the_others_open(journal: Journal) -> None:
    journal.open(record(1))
    journal.open(record(2))
    journal.settle(record(2).transaction_id, State.REFUSED, b"", "insufficient funds")
    assert [one.state for one in journal.records()] == [State.OPEN, State.REFUSED]


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.open(record(1))
        journal.open(record(2))
        journal.confirm(record(2).transaction_id)
    with Journal(tmp_path) as journal:
        first, second = journal.records()
    assert first == record(1)
    assert (second.transaction_id, second.confirmed) == (record(2).transaction_id, True)


def test_one_transaction_is_opened_once(journal: Journal) -> None:
    journal.open(record(1))
    with pytest.raises(JournalFailedError):
        journal.open(record(1))


def test_tap_numbers_grow_across_blocks(journal: Journal) -> None:
    numbers = [journal.next_tap_number() for _ in range(TAP_NUMBER_BLOCK + 5)]
    assert numbers == sorted(set(numbers))


def test_a_tap_number_is_never_used_twice_whatever_kills_the_terminal(tmp_path: Path) -> None:
    numbers: list[int] = []
    for count in (1, 3, TAP_NUMBER_BLOCK, TAP_NUMBER_BLOCK + 1, 2):
        command = [sys.executable, "-c", TAKE_NUMBERS_AND_DIE, str(tmp_path), str(count)]
        killed = subprocess.run(command, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL
        numbers += map(int, killed.stdout.split())
    with Journal(tmp_path) as journal:
        numbers.append(journal.next_tap_number())
    assert len(set(numbers)) == len(numbers) == 2 * TAP_NUMBER_BLOCK + 8


def test_a_tap_number_whose_block_could_not_be_written_is_not_handed_out(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal._database.execute("PRAGMA query_only = 1")
        for _ in range(2):
            with pytest.raises(JournalFailedError):
                journal.next_tap_number()
        journal._database.execute("PRAGMA query_only = 0")
        numbers = [journal.next_tap_number() for _ in range(3)]
    with Journal(tmp_path) as journal:
        numbers += [journal.next_tap_number() for _ in range(3)]
    assert len(set(numbers)) == 6


def test_a_tap_waits_for_no_number_most_of_the_time(journal: Journal) -> None:
    journal.next_tap_number()
    before = tally.snapshot()
    for _ in range(TAP_NUMBER_BLOCK // 2):
        journal.next_tap_number()
    assert tally.since(before)[tally.Operation.SYNC] == 0


def test_a_second_terminal_process_is_refused_in_a_sentence(home: Path) -> None:
    with Journal(home / "pos"):
        refused = tap("pos", "charge", "1.00", "--timeout", "1", home=home)
    assert refused.code == 69
    assert refused.sentence.startswith("tap-pos: another terminal process is using")
    assert tap("pos", "history", home=home).code == 0


def test_a_closed_journal_can_be_opened_by_another(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    Journal(tmp_path).close()


def test_a_damaged_journal_is_told_in_a_sentence(home: Path) -> None:
    (home / "pos" / FILE_NAME).write_bytes(b"this is no database" * 100)
    refused = tap("pos", "charge", "1.00", "--timeout", "1", home=home)
    assert refused.code == 2
    assert "restore it from a copy" in refused.sentence


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def somebody_elses(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def without_tap_numbers(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE tap_numbers")


def with_other_tap_numbers(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript("DROP TABLE tap_numbers; CREATE TABLE tap_numbers (x)")


def with_words_for_tap_numbers(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO tap_numbers VALUES ('many')")


def without_amounts(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE transactions DROP COLUMN amount")


@pytest.mark.parametrize(
    "damage",
    [
        somebody_elses,
        emptied,
        without_tap_numbers,
        with_other_tap_numbers,
        with_words_for_tap_numbers,
        without_amounts,
    ],
)
def test_what_is_no_whole_journal_is_refused_and_kept(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / FILE_NAME
    Journal(tmp_path).close()
    damage(path)
    before, open_files = path.read_bytes(), _open_files()
    with pytest.raises(UsageError, match=r"cannot be used \(.*\); restore it from a copy"):
        Journal(tmp_path, create=False)
    assert path.read_bytes() == before
    assert _open_files() == open_files


@pytest.mark.parametrize("command", ["history", "show", "settle"])
def test_the_issuers_database_is_no_journal(home: Path, command: str) -> None:
    shutil.copy(home / "issuer" / "issuer.sqlite", home / "pos" / FILE_NAME)
    refused = tap("pos", command, home=home)
    assert (refused.code, refused.sentence.endswith("(it is no journal of a terminal); restore it from a copy")) == (
        2,
        True,
    )


def test_a_journal_of_another_version_is_refused_and_kept(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(UsageError, match="is of version 2, this program reads version 1"):
        Journal(tmp_path)


def test_a_journal_that_was_made_before_there_were_marks_is_used_and_marked(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.open(record(1))
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.executescript(
            "ALTER TABLE transactions DROP COLUMN verdict; PRAGMA application_id = 0; PRAGMA user_version = 0"
        )
    with Journal(tmp_path, create=False) as journal:
        assert journal.records() == [record(1)]
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        assert database.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"TPJ1"),)


def test_a_journal_that_was_never_made_whole_is_made(tmp_path: Path) -> None:
    emptied(tmp_path / FILE_NAME)
    with Journal(tmp_path) as journal:
        assert journal.next_tap_number() == 1


@pytest.mark.attack("T5")
@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY])
def test_a_journal_on_a_full_disk_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = code

    def full(*_: object) -> sqlite3.Connection:
        raise error

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(TapLabError, match="nothing in it is lost; make room") as refused:
        Journal(tmp_path)
    assert not isinstance(refused.value, UsageError)


def test_a_damaged_journal_keeps_no_lock(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"this is no database" * 100)
    with pytest.raises(UsageError, match="cannot be used"):
        Journal(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    Journal(tmp_path).close()


def test_a_transaction_that_was_interrupted_is_settled_at_the_next_tap(laboratory: Laboratory, tmp_path: Path) -> None:
    identity = terminal_like(laboratory.home.path)
    with Terminal(identity, Journal(tmp_path), TerminalOptions(timeout=1.0)) as terminal:
        answers = laboratory.phone.card

        def pull(apdu: bytes) -> None:
            if apdu.startswith(DEBIT):
                raise KeyboardInterrupt

        torn = terminal.charge(ONE_EURO, WatchedLink(link_to(answers), pull))
    assert (torn.kind, torn.charged) == (OutcomeKind.TORN, None)
    with Journal(tmp_path) as journal:
        assert [one.state for one in journal.records()] == [State.OPEN]
    with Terminal(identity, Journal(tmp_path), TerminalOptions(timeout=1.0)) as terminal:
        assert terminal.charge(ONE_EURO, link_to(answers)).kind is OutcomeKind.APPROVED
    with Journal(tmp_path) as journal:
        assert [one.state for one in journal.records()] == [State.CANCELLED, State.APPROVED]


def test_what_ctrl_c_keeps_from_the_disk_is_not_read_back(journal: Journal) -> None:
    journal.open(record(1))

    def approve_and_press() -> None:
        with journal._durably():
            journal._database.execute("UPDATE transactions SET state = 'approved'")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        approve_and_press()
    assert [one.state for one in journal.records()] == [State.OPEN]


def full(journal: Journal) -> None:
    """Let the disk be full for this journal: not a page more."""
    [pages] = journal._database.execute("PRAGMA page_count").fetchone()
    journal._database.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_is_told_in_a_sentence(journal: Journal) -> None:
    full(journal)
    with pytest.raises(JournalFailedError, match=r"cannot be written.*full"):
        deque(map(journal.open, map(record, range(100))), maxlen=0)


def test_no_debit_leaves_when_the_journal_cannot_be_written(laboratory: Laboratory, tmp_path: Path) -> None:
    before = laboratory.balance
    sent: list[bytes] = []
    journal = Journal(tmp_path)
    journal.next_tap_number()
    journal._database.execute("PRAGMA query_only = 1")
    with Terminal(terminal_like(laboratory.home.path), journal) as terminal, pytest.raises(JournalFailedError):
        terminal.charge(ONE_EURO, WatchedLink(link_to(laboratory.phone.card), sent.append))
    assert not [apdu for apdu in sent if apdu.startswith(DEBIT)]
    assert laboratory.balance == before


def break_at(laboratory: Laboratory, folder: Path, ins: bytes) -> OutcomeKind:
    """Charge 1.00 EUR with a journal that cannot be written any more from the command `ins` on."""
    journal = Journal(folder)

    def stop(apdu: bytes) -> None:
        if apdu.startswith(ins):
            journal._database.execute("PRAGMA query_only = 1")

    with Terminal(terminal_like(laboratory.home.path), journal) as terminal:
        return terminal.charge(ONE_EURO, WatchedLink(link_to(laboratory.phone.card), stop)).kind


def test_nothing_is_approved_that_could_not_be_written_down(laboratory: Laboratory, tmp_path: Path) -> None:
    assert break_at(laboratory, tmp_path, DEBIT) is OutcomeKind.TORN
    with Journal(tmp_path) as journal:
        assert [one.state for one in journal.records()] == [State.OPEN]


def test_a_confirmation_that_cannot_be_noted_leaves_it_approved(laboratory: Laboratory, tmp_path: Path) -> None:
    assert break_at(laboratory, tmp_path, CONFIRM) is OutcomeKind.APPROVED


def charge_without_disk(laboratory: Laboratory, folder: Path, broken: Broken, tears: int = 0) -> Outcome:
    """Charge 1.00 EUR, the first answers to DEBIT lost; `broken` is told of each command before it leaves."""
    journal, left = Journal(folder), tears

    def lose(answer: bytes) -> bytes:
        nonlocal left
        left -= 1
        return b"" if left >= 0 else answer

    card = EditingCard(laboratory.phone.card, Ins.DEBIT, lose)
    options = TerminalOptions(timeout=1.0, again=30.0)
    with Terminal(terminal_like(laboratory.home.path), journal, options) as terminal:
        return terminal.charge(ONE_EURO, WatchedLink(link_to(card), lambda apdu: broken(journal, apdu)))


def from_debit_on(journal: Journal, apdu: bytes) -> None:
    if apdu.startswith(DEBIT):
        journal._database.execute("PRAGMA query_only = 1")


def out_of_numbers_from_debit_on(journal: Journal, apdu: bytes) -> None:
    if apdu.startswith(DEBIT):
        journal._next_tap = journal._reserved_until
        journal._database.execute("PRAGMA query_only = 1")


def unreadable_from_debit_on(journal: Journal, apdu: bytes) -> None:
    if apdu.startswith(DEBIT):
        journal._database.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)


def from_cancel_on(journal: Journal, apdu: bytes) -> None:
    if apdu.startswith(CANCEL):
        journal._database.execute("PRAGMA query_only = 1")


@pytest.mark.attack("T5")
@pytest.mark.parametrize("broken", [from_debit_on, out_of_numbers_from_debit_on])
def test_a_full_disk_in_the_next_tap_does_not_hide_what_the_first_one_told(
    laboratory: Laboratory, tmp_path: Path, broken: Broken
) -> None:
    before = laboratory.balance
    outcome = charge_without_disk(laboratory, tmp_path, broken)
    assert (outcome.kind, outcome.charged) == (OutcomeKind.TORN, True)
    assert outcome.reason.startswith("the wallet has paid, but the journal cannot be written: ")
    assert outcome.reason.endswith(f"make room or mend the disk; {WRITTEN_LATER}")
    assert [one.step for one in outcome.steps].count(Step.CARD_CHECKED) == 1
    assert before.minor - laboratory.balance.minor == 100
    with Journal(tmp_path) as journal:
        [record] = journal.records()
    assert (record.transaction_id.hex(), record.state) == (outcome.reference, State.OPEN)


@pytest.mark.attack("T5")
@pytest.mark.parametrize("broken", [from_cancel_on, out_of_numbers_from_debit_on, unreadable_from_debit_on])
def test_a_disk_that_fails_after_a_torn_debit_leaves_the_result_not_known(
    laboratory: Laboratory, tmp_path: Path, broken: Broken
) -> None:
    outcome = charge_without_disk(laboratory, tmp_path, broken, tears=1)
    assert (outcome.kind, outcome.charged) == (OutcomeKind.TORN, None)
    assert outcome.reason.startswith(f"{NOT_KNOWN} (the journal cannot be ")
    assert outcome.reason.endswith("make room or mend the disk)")
    with Journal(tmp_path) as journal:
        [record] = journal.records()
    assert (record.transaction_id.hex(), record.state) == (outcome.reference, State.OPEN)


@pytest.mark.attack("T5")
def test_a_full_disk_before_the_second_debit_says_that_nothing_was_charged(
    laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first DEBIT never reached the wallet, so the next tap cancels it, and a new one would follow."""
    before = laboratory.balance
    journal, opened = Journal(tmp_path), Journal.open

    def open_once(journal: Journal, record: Record) -> None:
        if journal.records():
            raise JournalFailedError("the journal cannot be written: database or disk is full")
        opened(journal, record)

    monkeypatch.setattr(Journal, "open", open_once)
    options = TerminalOptions(timeout=1.0, again=30.0)
    link = inject(link_to(laboratory.phone.card), Fault.parse("tear@frame:7"))
    with Terminal(terminal_like(laboratory.home.path), journal, options) as terminal:
        outcome = terminal.charge(ONE_EURO, link)
        assert [one.state for one in journal.records()] == [State.CANCELLED]
    assert (outcome.kind, outcome.charged) == (OutcomeKind.TORN, False)
    assert outcome.reason.startswith("nothing was charged: the journal cannot be written")
    assert laboratory.balance == before


def test_ctrl_c_with_a_journal_that_cannot_be_read_leaves_the_result_not_known(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    def press(journal: Journal, apdu: bytes) -> None:
        unreadable_from_debit_on(journal, apdu)
        if apdu.startswith(DEBIT):
            raise KeyboardInterrupt

    outcome = charge_without_disk(laboratory, tmp_path, press)
    assert (outcome.kind, outcome.charged, outcome.reason) == (OutcomeKind.TORN, None, NOT_KNOWN)
