# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Secure storage: objects by name, for whom they are meant, written whole or not at all, never more than there is room for."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from protocol.key_commands import (
    MAX_OBJECT,
    BeginObject,
    KeyIns,
    KeyModule,
    ListedObject,
    ObjectList,
    ReadObject,
    Rule,
    WriteObject,
)
from protocol.status import StatusWord
from tests.trusted_key.board import Board, made
from tests.trusted_key.talk import OK, OTHER_PEER, PEER, MemoryCells, Talk
from wallet.card import Card
from wallet.trusted_key.application import KeyApplication
from wallet.trusted_key.storage import Quota, Storage

pytestmark = pytest.mark.requirement("K2")

NOT_FOUND, DENIED = StatusWord.REFERENCED_DATA_NOT_FOUND, StatusWord.SECURITY_STATUS_NOT_SATISFIED
NO_ROOM, TOO_LONG = StatusWord.NOT_ENOUGH_MEMORY, StatusWord.WRONG_LENGTH


def small(quota: Quota, cells: MemoryCells | None = None) -> Talk:
    card = Card([KeyApplication([Storage(cells or MemoryCells(), quota)])])
    card.activate()
    talk = Talk(card)
    talk.select()
    return talk


def store_in_pieces(talk: Talk, name: bytes, pieces: list[bytes], rule: Rule = Rule.OPEN) -> int:
    begun = talk.sw(KeyIns.BEGIN, BeginObject(name, rule, sum(map(len, pieces))))
    sent = [talk.sw(KeyIns.APPEND, piece) for piece in pieces]
    return next((sw for sw in (begun, *sent) if sw != OK), talk.sw(KeyIns.COMMIT))


def test_an_object_is_written_read_replaced_listed_and_deleted(token: Board) -> None:
    talk = token.talk
    assert talk.read(b"a").sw == NOT_FOUND
    assert talk.write(b"a", b"one") == OK
    assert talk.read(b"a").data == b"one"
    assert talk.write(b"a", b"another") == OK
    assert talk.write(b"b", b"") == OK
    listed = talk.ask(ObjectList, KeyIns.LIST)
    assert listed.objects == (ListedObject(b"a", Rule.OPEN, 7), ListedObject(b"b", Rule.OPEN, 0))
    assert (listed.free_objects, listed.free_bytes) == (62, 0x10000 - 9)
    assert talk.delete(b"a") == OK
    assert (talk.read(b"a").sw, talk.delete(b"a"), talk.read(b"b").data) == (NOT_FOUND, NOT_FOUND, b"")


def test_an_object_is_read_in_pieces(token: Board) -> None:
    token.talk.write(b"a", b"0123456789")
    cases = {(0, 0): b"0123456789", (0, 4): b"0123", (8, 4): b"89", (10, 1): b"", (3, 2): b"34"}
    assert {case: token.talk.read(b"a", *case).data for case in cases} == cases
    assert token.talk.read(b"a", 11).sw == StatusWord.OFFSET_OUTSIDE


@pytest.mark.parametrize(
    "bad", ["", "00", "01", "0161", "11" + 17 * "61" + "00", "0161FF0000", "016104000161", "0161000002aa"]
)
def test_a_malformed_write_is_refused(token: Board, bad: str) -> None:
    assert token.talk.sw(KeyIns.WRITE, bytes.fromhex(bad)) == StatusWord.WRONG_DATA
    assert token.cells.commits == 0


@pytest.mark.parametrize("ins", [KeyIns.LIST, KeyIns.WIPE])
def test_commands_without_data_take_none(token: Board, ins: KeyIns) -> None:
    assert token.talk.sw(ins, b"x") == TOO_LONG


@pytest.mark.parametrize("ins", sorted(Storage.instructions))
def test_parameters_are_zero(token: Board, ins: int) -> None:
    assert token.talk.sw(KeyIns(ins), p1=1) == StatusWord.WRONG_P1_P2
    assert token.talk.sw(KeyIns(ins), p2=1) == StatusWord.WRONG_P1_P2


# --- in pieces


@pytest.mark.parametrize("pieces", [[], [b"x"], [b"a" * 200, b"b" * 200], [b"p" * 255] * 60])
def test_an_object_comes_in_pieces_and_is_there_with_commit_only(token: Board, pieces: list[bytes]) -> None:
    talk = token.talk
    talk.write(b"a", b"old")
    assert talk.sw(KeyIns.BEGIN, BeginObject(b"a", Rule.OPEN, sum(map(len, pieces)))) == OK
    for piece in pieces:
        assert talk.sw(KeyIns.APPEND, piece) == OK
    assert token.cells.commits == 1
    assert talk.sw(KeyIns.COMMIT) == OK
    assert talk.read(b"a").data == b"".join(pieces)


@pytest.mark.attack("D4")
@pytest.mark.parametrize(
    "end", ["field off", "select", "another command", "begin again", "too long", "commit too early"]
)
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_an_object_that_was_not_finished_leaves_the_old_one_whole(token: Board, end: str, sent: int) -> None:
    talk = token.talk
    talk.write(b"a", b"old")
    talk.good(KeyIns.BEGIN, BeginObject(b"a", Rule.OPEN, 30))
    for _ in range(sent):
        talk.good(KeyIns.APPEND, b"new" * 3)
    if end == "field off":
        talk.card.deactivate()  # type: ignore[attr-defined]
        talk.select()
    elif end == "select":
        talk.select()
    elif end == "another command":
        talk.good(KeyIns.LIST)
    elif end == "begin again":
        talk.good(KeyIns.BEGIN, BeginObject(b"b", Rule.OPEN, 1))
    elif end == "too long":
        assert talk.sw(KeyIns.APPEND, bytes(31)) == TOO_LONG
    else:
        assert talk.sw(KeyIns.COMMIT) == TOO_LONG
    assert talk.sw(KeyIns.COMMIT) != OK
    assert talk.read(b"a").data == b"old"
    assert talk.sw(KeyIns.APPEND, b"x") == StatusWord.CONDITIONS_NOT_SATISFIED


def test_commit_takes_no_data(token: Board) -> None:
    token.talk.good(KeyIns.BEGIN, BeginObject(b"a", Rule.OPEN, 0))
    assert token.talk.sw(KeyIns.COMMIT, b"x") == TOO_LONG
    assert token.talk.read(b"a").sw == NOT_FOUND


@pytest.mark.attack("D4")
def test_a_write_that_fails_leaves_the_old_object_and_the_key_goes_on(token: Board) -> None:
    talk, cells = token.talk, token.cells
    talk.write(b"a", b"old")
    cells.broken = True
    assert talk.write(b"a", b"new") == StatusWord.MEMORY_FAILURE
    assert store_in_pieces(talk, b"a", [b"new"]) == StatusWord.MEMORY_FAILURE
    assert talk.delete(b"a") == StatusWord.MEMORY_FAILURE
    assert talk.sw(KeyIns.WIPE) == StatusWord.MEMORY_FAILURE
    assert talk.read(b"a").data == b"old"
    cells.broken = False
    assert talk.write(b"a", b"new") == OK


# --- room


def test_there_is_room_for_so_many_objects() -> None:
    talk = small(Quota(objects=3))
    assert [talk.write(bytes([65 + n]), b"x") for n in range(4)] == [OK, OK, OK, NO_ROOM]
    assert talk.write(b"B", b"replaced") == OK
    assert talk.sw(KeyIns.BEGIN, BeginObject(b"D", Rule.OPEN, 1)) == NO_ROOM
    assert talk.delete(b"A") == OK
    assert store_in_pieces(talk, b"D", [b"x"]) == OK
    assert talk.ask(ObjectList, KeyIns.LIST).free_objects == 0


def test_there_is_room_for_so_many_bytes_names_included() -> None:
    talk = small(Quota(bytes=10))
    assert talk.write(b"a", bytes(9)) == OK
    assert talk.ask(ObjectList, KeyIns.LIST).free_bytes == 0
    assert talk.write(b"b", b"") == NO_ROOM
    assert talk.write(b"a", bytes(10)) == NO_ROOM
    assert talk.write(b"a", bytes(8)) == OK
    assert talk.write(b"b", b"") == OK


def test_an_object_has_so_many_bytes_at_most(token: Board) -> None:
    talk = token.talk
    assert talk.write(b"a", bytes(MAX_OBJECT)) == OK
    assert talk.write(b"a", bytes(MAX_OBJECT + 1)) == TOO_LONG
    assert talk.sw(KeyIns.BEGIN, BeginObject(b"a", Rule.OPEN, MAX_OBJECT + 1)) == TOO_LONG
    assert talk.read(b"a").data == bytes(MAX_OBJECT)


def test_all_the_room_can_be_used_and_listed(token: Board) -> None:
    names = [b"object number %02d" % number for number in range(64)]
    assert {token.talk.write(name, bytes(1000)) for name in names} == {OK}
    assert [one.name for one in token.talk.ask(ObjectList, KeyIns.LIST).objects] == names


# --- rules

_AS = {
    "anybody": lambda talk: talk.plain(),
    "in a channel": lambda talk: talk.in_channel(),
    "peer": lambda talk: talk.as_peer(PEER),
    "other peer": lambda talk: talk.as_peer(OTHER_PEER),
}
_MAY = {
    Rule.OPEN: {"anybody", "in a channel", "peer", "other peer"},
    Rule.CHANNEL: {"in a channel", "peer", "other peer"},
    Rule.PEER: {"peer", "other peer"},
    Rule.CREATOR: {"peer"},
}


@pytest.mark.attack("D5")
@pytest.mark.parametrize("who", _AS)
@pytest.mark.parametrize("rule_", Rule)
def test_an_object_is_for_whom_its_rule_says(board: Board, rule_: Rule, who: str) -> None:
    board.talk.as_peer(PEER).write(b"a", b"old", rule_)
    talk = _AS[who](board.talk)
    may = who in _MAY[rule_]
    assert talk.read(b"a").sw == (OK if may else DENIED)
    assert [one.name for one in talk.ask(ObjectList, KeyIns.LIST).objects] == ([b"a"] if may else [])
    assert talk.write(b"a", b"new", rule_) == (OK if may else DENIED)
    assert store_in_pieces(talk, b"a", [b"new"], rule_) in ((OK,) if may else (DENIED,))
    assert talk.sw(KeyIns.WIPE) == OK
    kept = board.talk.as_peer(PEER).read(b"a")
    assert (kept.sw, kept.data) == ((NOT_FOUND, b"") if may else (OK, b"old"))


@pytest.mark.attack("D5")
@pytest.mark.parametrize("who", _AS)
@pytest.mark.parametrize("rule_", Rule)
def test_nobody_makes_what_he_could_not_use(board: Board, rule_: Rule, who: str) -> None:
    talk = _AS[who](board.talk)
    allowed = who in _MAY[rule_] | ({"other peer"} if rule_ is Rule.CREATOR else set())
    assert talk.write(b"a", b"x", rule_) == (OK if allowed else DENIED)
    assert talk.sw(KeyIns.BEGIN, BeginObject(b"b", rule_, 1)) == (OK if allowed else DENIED)


@pytest.mark.attack("D5")
def test_a_rule_cannot_be_changed_by_writing(board: Board) -> None:
    talk = board.talk.as_peer(PEER)
    talk.write(b"a", b"mine", Rule.CREATOR)
    assert talk.write(b"a", b"x", Rule.OPEN) == StatusWord.CONDITIONS_NOT_SATISFIED
    assert board.talk.as_peer(OTHER_PEER).write(b"a", b"x", Rule.OPEN) == DENIED
    assert board.talk.as_peer(PEER).read(b"a").data == b"mine"


def test_who_replaces_an_object_does_not_become_its_owner(board: Board) -> None:
    board.talk.as_peer(PEER).write(b"a", b"1", Rule.CREATOR)
    board.talk.as_peer(PEER).write(b"a", b"2", Rule.CREATOR)
    assert board.talk.as_peer(OTHER_PEER).read(b"a").sw == DENIED


@pytest.mark.attack("D5")
def test_an_object_begun_by_one_peer_is_not_finished_by_another(board: Board) -> None:
    board.talk.as_peer(PEER).good(KeyIns.BEGIN, BeginObject(b"a", Rule.OPEN, 1))
    assert board.talk.as_peer(OTHER_PEER).sw(KeyIns.APPEND, b"x") == StatusWord.CONDITIONS_NOT_SATISFIED


@pytest.mark.attack("D5")
def test_strangers_leave_room_for_peers(board: Board) -> None:
    talk = board.talk.in_channel()
    written = [talk.write(b"%d" % number, b"x", Rule.CHANNEL) for number in range(17)]
    assert written == [OK] * 16 + [NO_ROOM]
    assert talk.write(b"0", bytes(0x4000), Rule.CHANNEL) == NO_ROOM
    assert talk.sw(KeyIns.BEGIN, BeginObject(b"0", Rule.CHANNEL, 0x4000)) == NO_ROOM
    peer = board.talk.as_peer(PEER)
    assert [peer.write(b"of the peer %d" % number, bytes(1000), Rule.PEER) for number in range(48)] == [OK] * 48
    assert peer.ask(ObjectList, KeyIns.LIST).free_objects == 0


@pytest.mark.attack("D5")
def test_a_stranger_does_not_fill_the_room_by_a_peers_open_object(board: Board) -> None:
    board.talk.as_peer(PEER).write(b"a", b"x", Rule.OPEN)
    strange = board.talk.plain()
    assert strange.write(b"a", bytes(0x4000), Rule.OPEN) == NO_ROOM
    assert strange.write(b"a", bytes(100), Rule.OPEN) == OK


# --- any order of commands, against a dictionary

_NAMES = st.sampled_from([b"a", b"b", b"c", b"a name of 16 b.."])
_VALUES = st.binary(max_size=40)
_QUOTA = Quota(objects=3, object_bytes=30, bytes=70)


class StorageMachine(RuleBasedStateMachine):
    """Commands in any order, and starts of the Key in between; a dictionary says what must be there."""

    values = Bundle("values")

    def __init__(self) -> None:
        super().__init__()
        self.cells = MemoryCells()
        self.talk = small(_QUOTA, self.cells)
        self.kept: dict[bytes, bytes] = {}
        self.begun: tuple[bytes, int, bytes] | None = None

    def _expected(self, name: bytes, length: int) -> int:
        if length > _QUOTA.object_bytes:
            return TOO_LONG
        others = {one: value for one, value in self.kept.items() if one != name}
        used = sum(len(one) + len(value) for one, value in others.items())
        full = len(others) >= _QUOTA.objects or used + len(name) + length > _QUOTA.bytes
        return NO_ROOM if full else OK

    @rule(name=_NAMES, value=_VALUES)
    def write(self, name: bytes, value: bytes) -> None:
        expected, self.begun = self._expected(name, len(value)), None
        assert self.talk.sw(KeyIns.WRITE, WriteObject(name, Rule.OPEN, value)) == expected
        if expected == OK:
            self.kept[name] = value

    @rule(name=_NAMES, length=st.integers(0, 40))
    def begin(self, name: bytes, length: int) -> None:
        expected = self._expected(name, length)
        assert self.talk.sw(KeyIns.BEGIN, BeginObject(name, Rule.OPEN, length)) == expected
        self.begun = (name, length, b"") if expected == OK else None

    @rule(piece=_VALUES)
    def append(self, piece: bytes) -> None:
        sw = self.talk.sw(KeyIns.APPEND, piece)
        if self.begun is None:
            assert sw == StatusWord.CONDITIONS_NOT_SATISFIED
            return
        name, length, value = self.begun
        fits = len(value + piece) <= length
        assert sw == (OK if fits else TOO_LONG)
        self.begun = (name, length, value + piece) if fits else None

    @rule()
    def commit(self) -> None:
        sw, begun, self.begun = self.talk.sw(KeyIns.COMMIT), self.begun, None
        if begun is None:
            assert sw == StatusWord.CONDITIONS_NOT_SATISFIED
            return
        name, length, value = begun
        assert sw == (OK if len(value) == length else TOO_LONG)
        if sw == OK:
            self.kept[name] = value

    @rule(name=_NAMES, offset=st.integers(0, 45), length=st.integers(0, 45))
    def read(self, name: bytes, offset: int, length: int) -> None:
        response, self.begun = self.talk.send(KeyIns.READ, ReadObject(name, offset, length)), None
        value = self.kept.get(name)
        if value is None:
            assert response.sw == NOT_FOUND
        elif offset > len(value):
            assert response.sw == StatusWord.OFFSET_OUTSIDE
        else:
            assert response.data == value[offset:][: length or None]

    @rule(name=_NAMES)
    def delete(self, name: bytes) -> None:
        self.begun = None
        assert self.talk.delete(name) == (OK if name in self.kept else NOT_FOUND)
        self.kept.pop(name, None)

    @rule()
    def wipe(self) -> None:
        self.begun = None
        assert self.talk.sw(KeyIns.WIPE) == OK
        self.kept.clear()

    @rule(name=_NAMES, value=_VALUES)
    def fail(self, name: bytes, value: bytes) -> None:
        self.begun = None
        self.cells.broken = True
        assert self.talk.write(name, value) != OK
        self.cells.broken = False

    @rule()
    def start_again(self) -> None:
        self.begun = None
        self.talk = small(_QUOTA, self.cells)

    @invariant()
    def holds_what_was_written(self) -> None:
        found = {name.removeprefix(b"object/"): value for name, value in self.cells.cells.items()}
        assert set(found) == set(self.kept)
        assert all(found[name].endswith(value) for name, value in self.kept.items())


def test_any_order_of_commands_keeps_what_a_dictionary_keeps() -> None:
    run_state_machine_as_test(StorageMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def test_a_key_with_every_module_keeps_objects_apart_from_keys_and_counters() -> None:
    cells = MemoryCells()
    board = made(*KeyModule, cells=cells)
    board.talk.write(b"k", b"x")
    before = set(cells.cells)
    assert board.talk.sw(KeyIns.WIPE) == OK
    assert before == {b"object/k"}
    assert not cells.cells
