# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Key's application: what is there is announced and answers, what is not is refused, and a broken session is over."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.apdu import Command
from protocol.commands import DEFAULT_NAME, KEY_NAME, select
from protocol.errors import UsageError
from protocol.key_commands import (
    BeginObject,
    EventKind,
    KeyEvent,
    KeyFci,
    KeyIns,
    KeyModule,
    Question,
    QuestionNumber,
    QuestionState,
    Rule,
    announces,
    event_length,
    is_done,
    key_command,
)
from protocol.status import StatusWord
from tests.trusted_key.board import Board, made
from tests.trusted_key.talk import OK, OTHER_PEER, PEER, Clock, MemoryCells, open_channel, secured
from wallet.trusted_key.computing import Computing
from wallet.trusted_key.interaction import Interaction
from wallet.trusted_key.key import modules_named
from wallet.trusted_key.module import Module
from wallet.trusted_key.panel import Panel
from wallet.trusted_key.payments import ConfirmedPayments
from wallet.trusted_key.screen import Button, Showing
from wallet.trusted_key.storage import Storage

_INSTRUCTIONS = {
    KeyModule.STORAGE: [ins for ins in KeyIns if ins >= KeyIns.WRITE],
    KeyModule.COMPUTING: [ins for ins in KeyIns if KeyIns.GENERATE_KEY <= ins <= KeyIns.SIGN_RECEIPT],
    KeyModule.INTERACTION: [KeyIns.FETCH, *(ins for ins in KeyIns if KeyIns.ASK <= ins <= KeyIns.CONFIRM_PAYMENT)],
}
_CHOICES = [chosen for count in range(5) for chosen in combinations(KeyModule, count)]
_QUESTION = Question(30, "Lock the phone?")


def test_every_instruction_belongs_to_one_module() -> None:
    cells, clock = MemoryCells(), Clock()
    confirmed = ConfirmedPayments(clock)
    modules: dict[KeyModule, Module] = {
        KeyModule.STORAGE: Storage(cells),
        KeyModule.COMPUTING: Computing(cells, confirmed),
        KeyModule.INTERACTION: Interaction(Panel(clock), confirmed),
    }
    assert {module: sorted(made.instructions) for module, made in modules.items()} == _INSTRUCTIONS


@pytest.mark.parametrize("chosen", _CHOICES, ids=lambda chosen: "+".join(one.title for one in chosen) or "none")
@pytest.mark.requirement("K1")
@pytest.mark.requirement("K2")
@pytest.mark.requirement("K3")
@pytest.mark.requirement("K4")
def test_what_is_there_is_announced_and_what_is_not_is_refused(chosen: tuple[KeyModule, ...]) -> None:
    talk = made(*chosen).talk
    fci = KeyFci.decode(talk.select().data)
    assert (fci.name, fci.offer.version, fci.offer.modules) == (KEY_NAME, 1, chosen)
    if KeyModule.CHANNEL in chosen:
        talk.as_peer()
    for module, instructions in _INSTRUCTIONS.items():
        for ins in instructions:
            absent = module not in chosen
            if ins is KeyIns.SIGN_RECEIPT:
                absent = not {KeyModule.COMPUTING, KeyModule.INTERACTION} <= set(chosen)
            assert (talk.sw(ins) == StatusWord.INS_NOT_SUPPORTED) == absent, ins


@pytest.mark.requirement("K1")
def test_without_the_channel_module_nothing_is_secured(token: Board) -> None:
    assert token.talk.raw(secured(key_command(KeyIns.LIST))).sw is StatusWord.CLA_NOT_SUPPORTED
    for ins in (0x2A, 0x82, 0x88):
        assert token.talk.raw(Command(0x80, ins, 0, 0, b"", 256)).sw is StatusWord.INS_NOT_SUPPORTED


def test_names_of_modules_are_known() -> None:
    assert modules_named(["interaction", "storage"]) == (KeyModule.STORAGE, KeyModule.INTERACTION)
    with pytest.raises(UsageError, match="no module 'stor'; there are channel, storage, computing, interaction"):
        modules_named(["stor"])


def test_another_name_is_not_found_and_the_key_stays_selected(board: Board) -> None:
    assert board.talk.raw(select(DEFAULT_NAME)).sw is StatusWord.NOT_FOUND
    assert board.talk.sw(KeyIns.LIST) == OK


def test_nothing_answers_before_it_is_selected(board: Board) -> None:
    board.talk.card.process(b"")
    card = board.talk.card
    card.deactivate()  # type: ignore[attr-defined]
    assert board.talk.sw(KeyIns.LIST) == StatusWord.CONDITIONS_NOT_SATISFIED


@pytest.mark.parametrize("cla", [0x00, 0x0C, 0x90, 0xA0, 0xFF])
def test_other_classes_are_refused(board: Board, cla: int) -> None:
    command = Command(cla, KeyIns.LIST, 0, 0, b"", 256)
    expected = StatusWord.OK if cla == 0x90 else StatusWord.CLA_NOT_SUPPORTED
    assert board.talk.raw(command).sw is expected  # 90 is the first part of a chain


# --- sessions


@pytest.mark.attack("D5")
def test_a_plain_command_within_an_open_channel_ends_it(board: Board) -> None:
    talk = board.talk.as_peer()
    assert talk.write(b"a", b"1", Rule.PEER) == OK
    assert talk.raw(key_command(KeyIns.LIST)).sw is StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert talk.sw(KeyIns.LIST) == StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert talk.as_peer().read(b"a").data == b"1"


def test_a_wrong_mac_ends_the_session_with_all_that_belongs_to_it(board: Board) -> None:
    talk = board.talk.as_peer()
    assert talk.sw(KeyIns.ASK, _QUESTION) == OK
    assert talk.sw(KeyIns.BEGIN, BeginObject(b"a", Rule.OPEN, 1)) == OK
    broken = Command(0x84, KeyIns.LIST, 0, 0, b"no", 256)
    assert talk.raw(broken).sw is StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert board.panel.frame.showing is Showing.IDLE
    talk.as_peer()
    assert talk.sw(KeyIns.APPEND, b"1") == StatusWord.CONDITIONS_NOT_SATISFIED
    assert talk.sw(KeyIns.POLL, QuestionNumber(1)) == StatusWord.REFERENCED_DATA_NOT_FOUND


@pytest.mark.parametrize("end", ["select", "field off", "another channel"])
def test_a_question_goes_with_its_session_and_no_press_answers_for_it(board: Board, end: str) -> None:
    talk = board.talk.as_peer()
    number = talk.ask(QuestionState, KeyIns.ASK, _QUESTION).number
    if end == "select":
        talk.select()
    elif end == "field off":
        talk.card.deactivate()  # type: ignore[attr-defined]
        talk.select()
    else:
        talk.raw(open_channel(OTHER_PEER))
    assert board.panel.frame.showing is Showing.IDLE
    assert board.panel.press(Button.OK) == "nothing"
    assert talk.as_peer().sw(KeyIns.POLL, QuestionNumber(number)) == StatusWord.REFERENCED_DATA_NOT_FOUND


def test_a_refusal_within_the_channel_does_not_end_it(board: Board) -> None:
    talk = board.talk.as_peer()
    assert talk.delete(b"none") == StatusWord.REFERENCED_DATA_NOT_FOUND
    assert talk.sw(KeyIns.LIST) == OK


def test_a_session_of_many_bytes_goes_on(board: Board) -> None:
    for number in range(40):
        assert board.talk.write(b"long", bytes([number]) * 4000) == OK
    assert board.talk.read(b"long").data == bytes([39]) * 4000


# --- events


@pytest.mark.requirement("K4")
def test_every_good_answer_says_that_the_user_began_something_until_it_was_fetched(token: Board) -> None:
    token.panel.press(Button.DOWN)
    token.panel.press(Button.OK)
    answers = [token.talk.send(KeyIns.LIST), token.talk.send(KeyIns.RANDOM, p2=8)]
    assert [answer.sw for answer in answers] == [0x910B, 0x910B]
    assert [len(answer.data) > 0 for answer in answers] == [True, True]
    assert token.talk.delete(b"none") == StatusWord.REFERENCED_DATA_NOT_FOUND
    event = KeyEvent.decode(token.talk.good(KeyIns.FETCH))
    assert event.details.kind is EventKind.READY_TO_PAY
    assert token.talk.sw(KeyIns.LIST) == OK
    assert token.talk.sw(KeyIns.FETCH) == StatusWord.CONDITIONS_NOT_SATISFIED


@pytest.mark.requirement("K4")
def test_within_the_channel_an_event_is_a_warning_so_that_the_answer_keeps_its_data(board: Board) -> None:
    board.panel.press(Button.UP)
    board.panel.press(Button.OK)
    talk = board.talk.as_peer()
    answer = talk.send(KeyIns.RANDOM, p2=8)
    assert (answer.sw, len(answer.data)) == (0x620B, 8)
    assert talk.said[-1].data.endswith(b"RMAC")
    assert KeyEvent.decode(talk.good(KeyIns.FETCH)).details.kind is EventKind.READY_TO_PAY


@pytest.mark.requirement("K4")
def test_events_are_for_the_paired_trusted_world_alone(board: Board) -> None:
    board.panel.press(Button.UP)
    board.panel.press(Button.OK)
    for talk in (board.talk, board.talk.in_channel()):
        assert talk.sw(KeyIns.LIST) == OK
        assert talk.sw(KeyIns.FETCH) == StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert board.panel.pending is not None


@pytest.mark.parametrize("in_channel", [False, True])
def test_announcements_are_read_as_they_are_made(in_channel: bool) -> None:
    for length in (2, 11, 0x80):
        sw = announces(length, in_channel=in_channel)
        assert (event_length(sw), is_done(sw)) == (length, True)
    for length in (0, 1, 0x81):
        with pytest.raises(ValueError, match="2 to 128"):
            announces(length, in_channel=in_channel)


@pytest.mark.parametrize("sw", [0x9000, 0x6283, 0x6200, 0x6201, 0x6281, 0x6A80, 0x6300, 0x9100])
def test_other_status_words_announce_nothing(sw: int) -> None:
    assert event_length(StatusWord(sw)) == 0


# --- any bytes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from([0x00, 0x04, 0x80, 0x84]), st.sampled_from([*KeyIns, 0x2A, 0x82, 0x88, 0xA4]),
                  st.integers(0, 3), st.integers(0, 3), st.binary(max_size=40)),
        max_size=12,
    )
)  # fmt: skip
def test_any_commands_get_a_status_word_and_the_key_lives_on(commands: list[tuple[int, int, int, int, bytes]]) -> None:
    board = made(*KeyModule)
    for cla, ins, p1, p2, data in commands:
        sw = board.talk.raw(Command(cla, ins, p1, p2, data, 256)).sw
        assert sw is not StatusWord.NO_PRECISE_DIAGNOSIS
    assert KeyFci.decode(board.talk.select().data).offer.modules == tuple(KeyModule)
    assert board.talk.as_peer(PEER).sw(KeyIns.LIST) == OK
