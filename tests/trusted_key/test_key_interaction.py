# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Trusted interaction: a question that is seen whole and answered by one press, and what the user begins."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.key_commands import (
    EventKind,
    KeyEvent,
    KeyIns,
    Question,
    QuestionNumber,
    QuestionState,
    Reply,
)
from protocol.status import StatusWord
from tests.trusted_key.board import Board
from tests.trusted_key.talk import OK, Clock, Talk
from wallet.trusted_key.panel import EVENT_SECONDS, MENU_SECONDS, Effect, Panel, PanelBusyError
from wallet.trusted_key.screen import COLUMNS, LINES, Button, Showing, laid_out

pytestmark = pytest.mark.requirement("K4")


def ask(talk: Talk, text: str = "Lock the phone?", seconds: int = 30) -> int:
    state = talk.ask(QuestionState, KeyIns.ASK, Question(seconds, text))
    assert state.reply is Reply.PENDING
    return state.number


def poll(talk: Talk, number: int) -> Reply:
    state = talk.ask(QuestionState, KeyIns.POLL, QuestionNumber(number))
    assert state.number == number
    return state.reply


# --- a question and its press


@pytest.mark.parametrize(("button", "reply"), [(Button.OK, Reply.CONFIRMED), (Button.CANCEL, Reply.CANCELLED)])
def test_a_question_is_shown_and_answered_by_one_press(token: Board, button: Button, reply: Reply) -> None:
    number = ask(token.talk)
    frame = token.panel.frame
    assert (frame.showing, frame.text) == (Showing.QUESTION, "Lock the phone?")
    assert poll(token.talk, number) is Reply.PENDING
    assert token.panel.press(button) == reply.name.lower()
    assert [poll(token.talk, number) for _ in range(2)] == [reply, reply]
    assert token.panel.frame.showing is Showing.IDLE


@pytest.mark.attack("D1")
def test_a_press_without_a_question_answers_nothing(token: Board) -> None:
    assert [token.panel.press(button) for button in (Button.OK, Button.CANCEL, Button.OK)] == [Effect.NOTHING] * 3
    assert poll(token.talk, ask(token.talk)) is Reply.PENDING
    assert token.panel.pending is None


@pytest.mark.attack("D1")
def test_a_question_without_a_press_is_never_confirmed(token: Board) -> None:
    number = ask(token.talk, seconds=60)
    for _ in range(59):
        token.clock.tick(1)
        assert poll(token.talk, number) is Reply.PENDING
    token.clock.tick(1)
    assert poll(token.talk, number) is Reply.TIMED_OUT


@pytest.mark.attack("D2")
def test_one_press_answers_one_question(token: Board) -> None:
    first = ask(token.talk, "First?")
    token.panel.press(Button.OK)
    second = ask(token.talk, "Second?")
    assert (first, poll(token.talk, second)) == (second - 1, Reply.PENDING)
    assert token.panel.press(Button.CANCEL) is Effect.CANCELLED
    assert poll(token.talk, second) is Reply.CANCELLED


@pytest.mark.attack("D2")
def test_a_double_press_is_one_answer_and_nothing(token: Board) -> None:
    number = ask(token.talk)
    assert [token.panel.press(Button.OK) for _ in range(2)] == [Effect.CONFIRMED, Effect.NOTHING]
    assert token.panel.press(Button.CANCEL) is Effect.NOTHING
    assert poll(token.talk, number) is Reply.CONFIRMED
    assert poll(token.talk, ask(token.talk)) is Reply.PENDING


@pytest.mark.attack("D2")
def test_many_presses_at_once_are_one_answer(token: Board) -> None:
    ask(token.talk)
    effects: list[Effect] = []
    start = threading.Barrier(8)

    def press() -> None:
        start.wait(5)
        effects.append(token.panel.press(Button.OK))

    threads = [threading.Thread(target=press) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert sorted(effects) == [Effect.CONFIRMED, *[Effect.NOTHING] * 7]


@pytest.mark.attack("D2")
@pytest.mark.parametrize("late", [0.0, 0.001, 100.0])
def test_a_press_after_the_time_is_over_answers_nothing(token: Board, late: float) -> None:
    number = ask(token.talk, seconds=10)
    token.clock.tick(10 + late)
    assert token.panel.press(Button.OK) is Effect.NOTHING
    assert poll(token.talk, number) is Reply.TIMED_OUT


def test_a_press_just_before_the_time_is_over_answers(token: Board) -> None:
    number = ask(token.talk, seconds=10)
    token.clock.tick(9.999)
    token.panel.press(Button.OK)
    token.clock.tick(100)
    assert poll(token.talk, number) is Reply.CONFIRMED


@pytest.mark.attack("D2")
def test_a_press_meant_for_another_frame_does_nothing(token: Board) -> None:
    token.panel.press(Button.DOWN)
    seen = token.panel.frame.number
    number = ask(token.talk)
    assert token.panel.press(Button.OK, seen) is Effect.NOTHING
    assert poll(token.talk, number) is Reply.PENDING
    assert token.panel.press(Button.OK, token.panel.frame.number) is Effect.CONFIRMED


@pytest.mark.attack("D2")
def test_two_questions_of_one_text_are_two_frames(token: Board) -> None:
    ask(token.talk, "Sure?")
    first = token.panel.frame
    token.panel.press(Button.CANCEL)
    second = ask(token.talk, "Sure?")
    assert token.panel.frame.lines == first.lines
    assert token.panel.press(Button.OK, first.number) is Effect.NOTHING
    assert poll(token.talk, second) is Reply.PENDING


def test_up_and_down_are_no_answers(token: Board) -> None:
    number = ask(token.talk)
    assert [token.panel.press(button) for button in (Button.UP, Button.DOWN)] == [Effect.NOTHING] * 2
    assert (poll(token.talk, number), token.panel.frame.showing) == (Reply.PENDING, Showing.QUESTION)


def test_there_is_one_question_at_a_time(token: Board) -> None:
    number = ask(token.talk)
    assert token.talk.sw(KeyIns.ASK, Question(30, "Another?")) == StatusWord.CONDITIONS_NOT_SATISFIED
    assert token.panel.frame.text == "Lock the phone?"
    token.panel.press(Button.OK)
    assert poll(token.talk, number) is Reply.CONFIRMED
    ask(token.talk, "Another?")
    assert token.talk.sw(KeyIns.POLL, QuestionNumber(number)) == StatusWord.REFERENCED_DATA_NOT_FOUND


@pytest.mark.parametrize("bad", ["00", "3D0161", "1E00", "1E0107", "1E0180", "1E016161", "1E"])
def test_a_malformed_question_is_refused(token: Board, bad: str) -> None:
    assert token.talk.sw(KeyIns.ASK, bytes.fromhex(bad)) == StatusWord.WRONG_DATA
    assert token.panel.frame.showing is Showing.IDLE


def test_a_question_has_a_time_and_a_text_has_none(token: Board) -> None:
    assert token.talk.sw(KeyIns.ASK, Question(0, "x")) == StatusWord.WRONG_DATA
    assert token.talk.sw(KeyIns.SHOW, Question(1, "x")) == StatusWord.WRONG_DATA


@pytest.mark.parametrize(
    "ins", [KeyIns.ASK, KeyIns.POLL, KeyIns.SHOW, KeyIns.CLEAR, KeyIns.CONFIRM_PAYMENT, KeyIns.FETCH]
)
def test_parameters_are_zero(token: Board, ins: KeyIns) -> None:
    assert token.talk.sw(ins, p1=1) == StatusWord.WRONG_P1_P2
    assert token.talk.sw(ins, p2=1) == StatusWord.WRONG_P1_P2


@pytest.mark.parametrize("ins", [KeyIns.CLEAR, KeyIns.FETCH])
def test_commands_without_data_take_none(token: Board, ins: KeyIns) -> None:
    assert token.talk.sw(ins, b"x") == StatusWord.WRONG_LENGTH


@pytest.mark.attack("D5")
@pytest.mark.parametrize(
    "ins", [KeyIns.ASK, KeyIns.SHOW, KeyIns.CONFIRM_PAYMENT, KeyIns.FETCH, KeyIns.POLL, KeyIns.CLEAR]
)
def test_with_a_channel_only_a_peer_uses_the_screen(board: Board, ins: KeyIns) -> None:
    body = Question(0 if ins is KeyIns.SHOW else 30, "Pay 1.00 EUR?")
    for talk in (board.talk.plain(), board.talk.in_channel()):
        assert talk.sw(ins, body) == StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert board.panel.frame.showing is Showing.IDLE
    ask(board.talk.as_peer())


# --- what is seen


def test_a_text_is_shown_until_it_is_cleared_and_comes_back_after_a_question(token: Board) -> None:
    def seen() -> tuple[Showing, str]:
        return token.panel.frame.showing, token.panel.frame.text

    assert token.talk.sw(KeyIns.SHOW, Question(0, "Balance 12.00 EUR")) == OK
    assert seen() == (Showing.TEXT, "Balance 12.00 EUR")
    ask(token.talk)
    assert seen() == (Showing.QUESTION, "Lock the phone?")
    token.panel.press(Button.CANCEL)
    assert seen() == (Showing.TEXT, "Balance 12.00 EUR")
    assert token.talk.sw(KeyIns.CLEAR) == OK
    assert seen()[0] is Showing.IDLE


def test_a_text_is_no_question(token: Board) -> None:
    token.talk.good(KeyIns.SHOW, Question(0, "Pay 1.00 EUR?"))
    assert token.panel.press(Button.OK) is Effect.NOTHING


@pytest.mark.attack("D3")
@pytest.mark.parametrize(
    "text", ["x" * 21, "elevenchars " * 5, "Pay 1.00 EUR to " + "y" * 21, "1 twenty characters x " * 3 + "y"]
)
def test_a_text_that_is_not_seen_whole_is_not_shown(token: Board, text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        laid_out(text)
    assert token.talk.sw(KeyIns.SHOW, Question(0, text)) == StatusWord.WRONG_DATA
    assert token.talk.sw(KeyIns.ASK, Question(30, text)) == StatusWord.WRONG_DATA
    assert token.panel.frame.showing is Showing.IDLE


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=80))
def test_what_is_laid_out_is_the_whole_text(text: str) -> None:
    try:
        lines = laid_out(text)
    except ValueError:
        return
    assert len(lines) == LINES
    assert {len(line) for line in lines} == {COLUMNS}
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert [word for line in lines for word in line.split()] == text.split()


@pytest.mark.parametrize("text", ["", "two\nlines", "tab\t", "caf\u00e9", "\x1b[2J", "\u202e"])
def test_only_what_is_printable_is_shown(text: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        laid_out(text)


def test_a_text_of_four_full_lines_fits() -> None:
    lines = laid_out("twenty characters ar " * 3 + "twenty characters ar")
    assert [line.rstrip() for line in lines] == ["twenty characters ar"] * 4


# --- what the user begins


@pytest.mark.parametrize(
    ("presses", "kind"),
    [
        ([Button.DOWN, Button.OK], EventKind.READY_TO_PAY),
        ([Button.UP, Button.OK], EventKind.READY_TO_PAY),
        ([Button.DOWN, Button.DOWN, Button.OK], EventKind.NEXT_CARD),
        ([Button.DOWN, Button.UP, Button.OK], EventKind.LOCK),
        ([Button.DOWN, Button.DOWN, Button.DOWN, Button.OK], EventKind.LOCK),
        ([Button.DOWN] * 4 + [Button.OK], EventKind.READY_TO_PAY),
    ],
)
def test_the_user_begins_something_by_the_menu(token: Board, presses: list[Button], kind: EventKind) -> None:
    effects = [token.panel.press(button) for button in presses]
    assert effects == [Effect.MENU] * (len(presses) - 1) + [Effect.QUEUED]
    event = KeyEvent.decode(token.talk.good(KeyIns.FETCH))
    assert event.details.kind is kind
    assert token.panel.frame.showing is Showing.IDLE


def test_the_menu_marks_what_ok_would_choose(token: Board) -> None:
    token.panel.press(Button.DOWN)
    token.panel.press(Button.DOWN)
    assert [line.rstrip() for line in token.panel.frame.lines] == ["  Ready to pay", "> Next card", "  Lock", ""]


def test_cancel_closes_the_menu_and_begins_nothing(token: Board) -> None:
    assert [token.panel.press(button) for button in (Button.DOWN, Button.CANCEL)] == [Effect.MENU, Effect.CLOSED]
    assert (token.panel.pending, token.panel.frame.showing) == (None, Showing.IDLE)


@pytest.mark.attack("D2")
def test_a_double_press_in_the_menu_begins_one_thing(token: Board) -> None:
    effects = [token.panel.press(button) for button in (Button.DOWN, Button.OK, Button.OK)]
    assert effects == [Effect.MENU, Effect.QUEUED, Effect.NOTHING]
    token.talk.good(KeyIns.FETCH)
    assert token.panel.pending is None


def test_a_menu_that_is_left_alone_closes(token: Board) -> None:
    token.panel.press(Button.DOWN)
    token.clock.tick(MENU_SECONDS)
    assert token.panel.frame.showing is Showing.IDLE
    assert token.panel.press(Button.OK) is Effect.NOTHING


def test_a_question_takes_the_place_of_the_menu(token: Board) -> None:
    token.panel.press(Button.DOWN)
    number = ask(token.talk)
    assert token.panel.frame.showing is Showing.QUESTION
    token.panel.press(Button.CANCEL)
    assert (poll(token.talk, number), token.panel.frame.showing) == (Reply.CANCELLED, Showing.IDLE)


def test_events_wait_in_order_and_there_is_room_for_four(token: Board) -> None:
    for _ in range(5):
        token.panel.press(Button.DOWN)
        last = token.panel.press(Button.OK)
    assert last is Effect.NOTHING
    answers = [token.talk.send(KeyIns.FETCH) for _ in range(4)]
    assert [answer.sw for answer in answers] == [0x910B, 0x910B, 0x910B, OK]
    assert [KeyEvent.decode(answer.data).details.number for answer in answers] == [1, 2, 3, 4]


@pytest.mark.attack("D2")
def test_what_the_user_began_is_forgotten_after_a_minute_but_for_lock(token: Board) -> None:
    for presses in ([Button.DOWN], [Button.UP, Button.UP], [Button.DOWN, Button.DOWN]):
        for button in (*presses, Button.OK):
            token.panel.press(button)
    token.clock.tick(EVENT_SECONDS - 0.1)
    assert token.talk.send(KeyIns.RANDOM, p2=1).sw == 0x910B
    token.clock.tick(0.1)
    assert KeyEvent.decode(token.talk.good(KeyIns.FETCH)).details.kind is EventKind.LOCK
    token.clock.tick(10 * EVENT_SECONDS)
    assert token.talk.sw(KeyIns.FETCH) == StatusWord.CONDITIONS_NOT_SATISFIED


def test_what_changes_nothing_is_no_new_frame(token: Board) -> None:
    token.panel.press(Button.DOWN)
    number = token.panel.frame.number
    token.talk.select()
    token.talk.good(KeyIns.CLEAR)
    assert token.panel.frame.number == number
    assert token.panel.press(Button.OK, number) is Effect.QUEUED


def test_events_stay_when_a_session_ends(token: Board) -> None:
    token.panel.press(Button.DOWN)
    token.panel.press(Button.OK)
    token.talk.select()
    assert token.talk.sw(KeyIns.FETCH) == OK


def test_numbers_of_events_and_questions_start_again_at_one() -> None:
    panel = Panel(Clock())
    for _ in range(0x10000):
        number = panel.ask("x", 1)
        panel.press(Button.CANCEL)
    assert number == 1
    for _ in range(0xFF):
        panel.press(Button.UP)
        panel.press(Button.OK)
        event = panel.fetch()
    assert event is not None
    assert event.details.number == 1


def test_a_busy_panel_says_so() -> None:
    panel = Panel(Clock())
    panel.ask("x", 1)
    with pytest.raises(PanelBusyError):
        panel.ask("y", 1)


@given(
    st.lists(
        st.one_of(st.sampled_from(Button), st.just("ask"), st.just("show"), st.just("clear"), st.just("withdraw"),
                  st.floats(0, 20)),
        max_size=40,
    )
)  # fmt: skip
def test_a_question_is_confirmed_by_ok_while_it_stands_and_by_nothing_else(
    steps: list[Button | str | float],
) -> None:
    clock, confirmed = Clock(), []
    panel = Panel(clock)
    standing: tuple[int, float] | None = None
    due: list[int] = []
    for step in steps:
        if standing is not None and clock.now >= standing[1]:
            standing = None
        if isinstance(step, float):
            clock.tick(step)
        elif step == "ask" and standing is None:
            number = panel.ask("Sure?", 10, lambda: confirmed.append(panel._last_number))
            standing = number, clock.now + 10
        elif step == "show":
            panel.show("text")
        elif step == "clear":
            panel.clear()
        elif step == "withdraw":
            panel.withdraw()
            standing = None
        elif isinstance(step, Button):
            panel.press(step)
            if standing is not None and step in (Button.OK, Button.CANCEL):
                due += [standing[0]] if step is Button.OK else []
                standing = None
    assert confirmed == due
