# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Sealed storage: what was committed is there, whatever was torn, changed, put back or full; nothing else ever is."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from protocol.errors import TapLabError
from protocol.secret import Secret
from wallet.tee import storage as storage_module
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.storage import SealedStorage, StorageFailedError, StorageUncertainError

_KEY = Secret(bytes(range(32)))
_COUNTER_KEY = Secret(bytes(range(32, 64)))
_OTHER_KEY = Secret(bytes(32))
_MAGIC_LENGTH = 8
_CHILD = Path(__file__).with_name("wallet_storage_child.py")

State = dict[bytes, bytes]


@contextmanager
def opened(folder: Path, key: Secret = _KEY, counter_key: Secret = _COUNTER_KEY) -> Iterator[SealedStorage]:
    """Open the storage as a new TEE process would, and end as a killed one: without a word."""
    counter = FreshnessCounter(folder, counter_key)
    files = counter.descriptors
    try:
        storage = SealedStorage(folder, key, counter)
        try:
            yield storage
        finally:
            files += storage.descriptors
    finally:
        for file in files:
            os.close(file)


def state_of(storage: SealedStorage) -> State:
    return dict(storage.items(b""))


@dataclass(frozen=True, slots=True)
class Moment:
    """Both files and the state at one moment."""

    log: bytes
    counter: bytes
    state: State

    @classmethod
    def of(cls, folder: Path) -> Moment:
        with opened(folder) as storage:
            state = state_of(storage)
        return cls((folder / "state.log").read_bytes(), (folder / "freshness").read_bytes(), state)


def put_back(folder: Path, log: bytes | None, counter: bytes | None) -> None:
    """Make the files what they were, or remove them."""
    for name, content in (("state.log", log), ("freshness", counter)):
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)


@pytest.fixture
def moments(tmp_path: Path) -> list[Moment]:
    """A storage after each of four commits."""
    found = []
    for number in range(1, 5):
        with opened(tmp_path) as storage:
            storage.commit({b"purse": bytes([number]) * 8, b"key %d" % number: b"value", b"key 2": None})
        found.append(Moment.of(tmp_path))
    return found


def is_locked(folder: Path) -> bool:
    """Tell whether the storage refuses to be used."""
    with opened(folder) as storage:
        stale = storage.is_stale
        if stale:
            before = state_of(storage)
            with pytest.raises(StorageFailedError, match="put back to an older copy"):
                storage.commit({b"purse": b"changed"})
            assert state_of(storage) == before
    return stale


# --- what was committed


def test_what_was_committed_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        storage.commit({b"a": b"1", b"b": b"2"})
        storage.commit({b"a": b"3", b"b": None, b"c": b""})
    with opened(tmp_path) as storage:
        assert state_of(storage) == {b"a": b"3", b"c": b""}
        assert (storage.get(b"b"), storage.is_stale) == (None, False)


def test_what_was_noted_is_seen_at_once_and_on_disk_with_the_next_commit_only(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        storage.note({b"a": b"1"})
        assert storage.get(b"a") == b"1"
    with opened(tmp_path) as storage:
        assert storage.get(b"a") is None
        storage.note({b"a": b"1"})
        storage.commit({b"b": b"2"})
    with opened(tmp_path) as storage:
        assert state_of(storage) == {b"a": b"1", b"b": b"2"}


def test_items_come_by_prefix_oldest_first(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        for key in (b"x/2", b"y/1", b"x/1"):
            storage.commit({key: b""})
        assert [key for key, _ in storage.items(b"x/")] == [b"x/2", b"x/1"]


def test_nothing_that_was_stored_is_readable_in_the_file(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        storage.commit({b"a telling key": b"a secret value"})
    content = (tmp_path / "state.log").read_bytes()
    assert b"telling" not in content
    assert b"secret" not in content


def test_two_equal_commits_look_different_on_disk(tmp_path: Path) -> None:
    sizes = []
    with opened(tmp_path) as storage:
        for _ in range(2):
            storage.commit({b"purse": bytes(20)})
            sizes.append((tmp_path / "state.log").stat().st_size)
    content = (tmp_path / "state.log").read_bytes()
    first, second = content[_MAGIC_LENGTH : sizes[0]], content[sizes[0] :]
    assert len(first) == len(second)
    assert first[24:] != second[24:]  # after length, number and nonce


# --- torn while it was written


def test_a_last_entry_cut_at_any_byte_is_the_state_before(tmp_path: Path, moments: list[Moment]) -> None:
    before, after = moments[2:]
    for cut in range(len(before.log), len(after.log)):
        put_back(tmp_path, after.log[:cut], before.counter)
        with opened(tmp_path) as storage:
            assert (state_of(storage), storage.is_stale) == (before.state, False)
        assert (tmp_path / "state.log").read_bytes() == before.log


def test_a_whole_last_entry_whose_counter_was_not_written_counts(tmp_path: Path, moments: list[Moment]) -> None:
    before, after = moments[2:]
    put_back(tmp_path, after.log, before.counter)
    assert Moment.of(tmp_path).state == after.state
    assert not is_locked(tmp_path)


def test_a_last_entry_with_any_byte_unwritten_is_the_state_before(tmp_path: Path, moments: list[Moment]) -> None:
    before, after = moments[2:]
    for at in range(len(before.log), len(after.log)):
        put_back(tmp_path, after.log[:at] + bytes([after.log[at] ^ 0xFF]) + after.log[at + 1 :], before.counter)
        with opened(tmp_path) as storage:
            assert (state_of(storage), storage.is_stale) == (before.state, False)


@pytest.mark.parametrize("tail", [b"\0", bytes(100), b"\xff" * 100, bytes(5000)], ids=["0", "zeros", "ones", "page"])
def test_bytes_after_the_last_entry_are_cut_off(tmp_path: Path, moments: list[Moment], tail: bytes) -> None:
    put_back(tmp_path, moments[3].log + tail, moments[3].counter)
    assert Moment.of(tmp_path) == moments[3]


def test_after_a_torn_entry_everything_goes_on(tmp_path: Path, moments: list[Moment]) -> None:
    put_back(tmp_path, moments[3].log[:-1], moments[2].counter)
    with opened(tmp_path) as storage:
        storage.commit({b"later": b"1"})
    with opened(tmp_path) as storage:
        assert state_of(storage) == {**moments[2].state, b"later": b"1"}


@pytest.mark.parametrize("length", range(_MAGIC_LENGTH))
def test_a_file_torn_when_it_was_made_is_an_empty_storage(tmp_path: Path, length: int) -> None:
    with opened(tmp_path):
        pass
    log = tmp_path / "state.log"
    log.write_bytes(log.read_bytes()[:length])
    with opened(tmp_path) as storage:
        assert (state_of(storage), storage.is_stale) == ({}, False)
        storage.commit({b"a": b"1"})
    assert Moment.of(tmp_path).state == {b"a": b"1"}


# --- changed


def test_a_changed_byte_in_an_older_entry_locks_and_never_shows_what_never_was(
    tmp_path: Path, moments: list[Moment]
) -> None:
    good = moments[3].log
    known = [{}, *(moment.state for moment in moments)]
    for at in range(_MAGIC_LENGTH, len(moments[2].log)):
        put_back(tmp_path, good[:at] + bytes([good[at] ^ 0x01]) + good[at + 1 :], moments[3].counter)
        with opened(tmp_path) as storage:
            assert storage.is_stale
            assert state_of(storage) in known[:3]
    assert is_locked(tmp_path)


def test_a_changed_log_is_kept_as_evidence(tmp_path: Path, moments: list[Moment]) -> None:
    good = moments[3].log
    changed = good[:40] + bytes([good[40] ^ 0x01]) + good[41:]
    put_back(tmp_path, changed, moments[3].counter)
    assert is_locked(tmp_path)
    assert (tmp_path / "state.log").read_bytes() == changed


def test_entries_dropped_repeated_or_in_another_order_lock(tmp_path: Path, moments: list[Moment]) -> None:
    ends = [_MAGIC_LENGTH, *(len(moment.log) for moment in moments)]
    log = moments[3].log
    entries = [log[start:end] for start, end in itertools.pairwise(ends)]
    known = [{}, *(moment.state for moment in moments[:3])]
    for order in itertools.product(range(4), repeat=4):
        if order != (0, 1, 2, 3):
            put_back(tmp_path, log[:_MAGIC_LENGTH] + b"".join(entries[index] for index in order), moments[3].counter)
            with opened(tmp_path) as storage:
                assert storage.is_stale
                assert state_of(storage) in known


@pytest.mark.parametrize("at", range(_MAGIC_LENGTH))
def test_a_file_of_another_version_is_refused_in_a_sentence(tmp_path: Path, moments: list[Moment], at: int) -> None:
    log = moments[3].log
    other = log[:at] + bytes([log[at] ^ 0x01]) + log[at + 1 :]
    put_back(tmp_path, other, moments[3].counter)
    with pytest.raises(TapLabError, match="the storage is of another version, or no storage at all"), opened(tmp_path):
        pass
    assert (tmp_path / "state.log").read_bytes() == other


def test_a_storage_of_another_key_is_refused_and_left_alone(tmp_path: Path, moments: list[Moment]) -> None:
    with pytest.raises(TapLabError), opened(tmp_path, _OTHER_KEY, _OTHER_KEY):
        pass
    assert Moment.of(tmp_path) == moments[3]


def test_the_log_of_another_wallet_locks(tmp_path: Path, moments: list[Moment]) -> None:
    assert moments
    with opened(tmp_path, _OTHER_KEY) as storage:
        assert (state_of(storage), storage.is_stale) == ({}, True)


# --- put back to an older copy


@pytest.mark.attack("F5")
@pytest.mark.parametrize("older", range(3))
def test_an_older_log_alone_locks(tmp_path: Path, moments: list[Moment], older: int) -> None:
    put_back(tmp_path, moments[older].log, moments[3].counter)
    assert is_locked(tmp_path)


@pytest.mark.attack("F5")
@pytest.mark.parametrize("older", range(2))
def test_an_older_counter_alone_locks(tmp_path: Path, moments: list[Moment], older: int) -> None:
    put_back(tmp_path, moments[3].log, moments[older].counter)
    assert is_locked(tmp_path)


def test_a_counter_put_back_by_one_is_like_a_crash_and_does_no_harm(tmp_path: Path, moments: list[Moment]) -> None:
    put_back(tmp_path, moments[3].log, moments[2].counter)
    assert Moment.of(tmp_path) == moments[3]  # the counter is where it was, and so is the newest state
    put_back(tmp_path, moments[2].log, (tmp_path / "freshness").read_bytes())
    assert is_locked(tmp_path)


def test_a_missing_log_or_counter_locks(tmp_path: Path, moments: list[Moment]) -> None:
    put_back(tmp_path, None, moments[3].counter)
    assert is_locked(tmp_path)
    put_back(tmp_path, moments[3].log, None)
    assert is_locked(tmp_path)


def test_log_and_counter_put_back_together_are_not_noticed_which_only_hardware_could(
    tmp_path: Path, moments: list[Moment]
) -> None:
    put_back(tmp_path, moments[1].log, moments[1].counter)
    assert Moment.of(tmp_path) == moments[1]
    assert not is_locked(tmp_path)


# --- compaction


@pytest.fixture
def compacting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_MIN_COMPACT_BYTES", 500)


@pytest.mark.usefixtures("compacting")
def test_compaction_keeps_the_state_and_the_file_small(tmp_path: Path) -> None:
    sizes = []
    with opened(tmp_path) as storage:
        storage.commit({b"kept": b"from the beginning", b"gone": b"x"})
        storage.commit({b"gone": None})
        for number in range(200):
            storage.commit({b"purse": number.to_bytes(8, "big")})
            sizes.append((tmp_path / "state.log").stat().st_size)
        wanted = {b"kept": b"from the beginning", b"purse": (199).to_bytes(8, "big")}
        assert state_of(storage) == wanted
    assert any(later < earlier for earlier, later in itertools.pairwise(sizes))
    assert max(sizes) < 1000
    assert Moment.of(tmp_path).state == wanted
    assert not (tmp_path / "state.log.new").exists()


@pytest.mark.usefixtures("compacting")
def test_each_commit_around_a_compaction_survives_a_kill(tmp_path: Path) -> None:
    for number in range(40):
        with opened(tmp_path) as storage:
            storage.commit({b"purse": bytes([number]), b"key %d" % (number % 5): bytes(20)})
        with opened(tmp_path) as storage:
            assert (storage.get(b"purse"), storage.is_stale) == (bytes([number]), False)


@pytest.mark.usefixtures("compacting")
def test_an_older_log_is_noticed_across_a_compaction(tmp_path: Path, moments: list[Moment]) -> None:
    with opened(tmp_path) as storage:
        for number in range(40):
            storage.commit({b"purse": bytes([number])})
    put_back(tmp_path, moments[3].log, (tmp_path / "freshness").read_bytes())
    assert is_locked(tmp_path)


@pytest.mark.usefixtures("compacting")
def test_half_a_new_log_that_a_crash_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "state.log.new").write_bytes(b"half")
    with opened(tmp_path) as storage:
        for number in range(40):
            storage.commit({b"purse": bytes([number])})
    assert Moment.of(tmp_path).state == {b"purse": b"\x27"}
    assert not (tmp_path / "state.log.new").exists()


@pytest.mark.usefixtures("compacting")
def test_a_compaction_that_fails_does_not_make_a_commit_fail(tmp_path: Path) -> None:
    (tmp_path / "state.log.new").mkdir()
    with opened(tmp_path) as storage:
        for number in range(40):
            storage.commit({b"purse": bytes([number])})
    assert Moment.of(tmp_path).state == {b"purse": b"\x27"}


# --- in a child: locked down, and with a full disk


def _child(folder: Path, what: str) -> dict[str, object]:
    said = subprocess.run(
        [sys.executable, "-I", str(_CHILD), what, str(folder)], capture_output=True, check=True, timeout=60
    )
    result: dict[str, object] = json.loads(said.stdout)
    return result


def test_compaction_works_in_a_locked_down_process(tmp_path: Path) -> None:
    assert _child(tmp_path, "compact") == {"missing": [], "compacted": True, "number": 99}
    with opened(tmp_path) as storage:
        assert (storage.get(b"purse"), storage.is_stale) == (b"\x63", False)


@pytest.mark.attack("T5")
@pytest.mark.parametrize("limit", ["disk", "file size"])
def test_a_commit_that_does_not_fit_fails_and_leaves_the_state_before(tmp_path: Path, limit: str) -> None:
    said = _child(tmp_path, limit)
    assert said["error"] in (["StorageFailedError", 28], ["StorageFailedError", 27])  # ENOSPC, EFBIG
    assert said["state while full"] == said["state before"] == said["state when opened again"]
    assert said["size while full"] == said["size before"]
    assert said["commits after room was made"] is True


def test_a_compaction_without_room_leaves_nothing_behind(tmp_path: Path) -> None:
    said = _child(tmp_path, "compact on a full disk")
    assert said["error"] is None
    assert said["new file"] is False
    assert said["more descriptors"] == 0


@pytest.mark.attack("T5")
def test_when_the_counter_cannot_be_written_only_a_new_start_can_tell(tmp_path: Path, moments: list[Moment]) -> None:
    counter = FreshnessCounter(tmp_path, _COUNTER_KEY)
    storage = SealedStorage(tmp_path, _KEY, counter)
    os.close(*counter.descriptors)
    with pytest.raises(StorageUncertainError, match="the freshness counter cannot be written"):
        storage.commit({b"later": b"1"})
    os.close(*storage.descriptors)
    assert Moment.of(tmp_path).state == {**moments[3].state, b"later": b"1"}


def test_when_a_change_can_be_neither_written_nor_taken_back_only_a_new_start_can_tell(
    tmp_path: Path, moments: list[Moment]
) -> None:
    counter = FreshnessCounter(tmp_path, _COUNTER_KEY)
    storage = SealedStorage(tmp_path, _KEY, counter)
    os.close(*storage.descriptors)
    with pytest.raises(StorageUncertainError, match="the storage cannot be written"):
        storage.commit({b"later": b"1"})
    os.close(*counter.descriptors)
    assert Moment.of(tmp_path) == moments[3]


# --- compared with a dictionary

_KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b""])
_CHANGES = st.dictionaries(_KEYS, st.none() | st.binary(max_size=40), max_size=4)


class Comparison(RuleBasedStateMachine):
    """The storage beside two dictionaries: what is seen now, and what is on disk."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="taplab-storage-"))
        self.seen: State = {}
        self.kept: State = {}
        self.before: Moment | None = None
        self._open()

    def _open(self) -> None:
        self._context = opened(self.folder)
        self.storage = self._context.__enter__()

    def _close(self) -> None:
        self._context.__exit__(None, None, None)

    def _files(self, state: State) -> Moment:
        return Moment((self.folder / "state.log").read_bytes(), self._counter(), state)

    def _counter(self) -> bytes:
        return (self.folder / "freshness").read_bytes()

    def _change(self, changes: dict[bytes, bytes | None]) -> None:
        merged = {**self.seen, **changes}
        self.seen = {key: value for key, value in merged.items() if value is not None}

    @rule(changes=_CHANGES)
    def commit(self, changes: dict[bytes, bytes | None]) -> None:
        self.before = self._files(self.kept)
        self.storage.commit(changes)
        self._change(changes)
        self.kept = self.seen

    @rule(changes=_CHANGES)
    def note(self, changes: dict[bytes, bytes | None]) -> None:
        self.storage.note(changes)
        self._change(changes)

    @rule()
    def kill(self) -> None:
        self._close()
        self._open()
        self.seen = self.kept

    @rule(part=st.floats(0, 1))
    @precondition(lambda self: self.before is not None)
    def kill_within_the_last_commit(self, part: float) -> None:
        """The log got so far and the counter was not written; a compacted log is whole, since it comes later."""
        before, log = self.before, (self.folder / "state.log").read_bytes()
        assert before is not None
        self._close()
        length = len(log)
        if log.startswith(before.log):
            length = len(before.log) + int(part * (len(log) - len(before.log)))
        put_back(self.folder, log[:length], before.counter)
        self._open()
        self.kept = self.kept if length == len(log) else before.state
        self.seen = self.kept
        self.before = None

    @invariant()
    def agree(self) -> None:
        assert state_of(self.storage) == self.seen
        assert not self.storage.is_stale

    def teardown(self) -> None:
        self._close()
        shutil.rmtree(self.folder)


@pytest.mark.parametrize("threshold", [1 << 20, 300], ids=["without compaction", "with compaction"])
def test_it_behaves_like_a_dictionary_that_survives_kills(monkeypatch: pytest.MonkeyPatch, threshold: int) -> None:
    monkeypatch.setattr(storage_module, "_MIN_COMPACT_BYTES", threshold)
    chosen = settings(max_examples=30, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(Comparison, settings=chosen)
