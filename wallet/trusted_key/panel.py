# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the screen shows and what a press does: one press is one operation, and none is kept for later.

A question stands until it is answered, its time is over or its session is; only `ok` and `cancel` that are pressed while it
stands answer it, and each press answers one. The menu is the user's: `up` and `down` open it and move in it, `ok` queues an
event for the trusted world, `cancel` closes it. What nobody fetches in a minute is forgotten, since a press is meant for
now; only "lock" waits until it is told. The card and the control socket use it from threads of their own.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from protocol.key_commands import EventDetails, EventKind, KeyEvent, Reply
from wallet.trusted_key.screen import COLUMNS, IDLE, LINES, Button, Frame, Showing, filled, laid_out

MENU_SECONDS = 15.0
EVENT_SECONDS = 60.0
MAX_EVENTS = 4
_MENU = (EventKind.READY_TO_PAY, EventKind.NEXT_CARD, EventKind.LOCK)
_MAX_NUMBER = 0xFFFF
_MAX_EVENT_NUMBER = 0xFE  # ETSI TS 102 223 §8.6: 01 to FE

Clock = Callable[[], float]
Confirmed = Callable[[], None]


class Effect(StrEnum):
    """What a press did."""

    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"
    MENU = "menu"
    QUEUED = "queued"
    CLOSED = "closed"
    NOTHING = "nothing"


class PanelBusyError(Exception):
    """A question waits for its answer; there is room for one."""


@dataclass(frozen=True, slots=True)
class _Question:
    number: int
    lines: tuple[str, ...]
    until: float
    then: Confirmed | None
    reply: Reply = Reply.PENDING


@dataclass(frozen=True, slots=True)
class _Menu:
    chosen: int
    until: float


@dataclass(frozen=True, slots=True)
class _Begun:
    event: KeyEvent
    until: float


class Panel:
    """Screen and buttons; every method may be called from any thread."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        """Show the idle screen; `clock` tells seconds."""
        self._clock = clock
        self._lock = threading.RLock()
        self._text: tuple[str, ...] | None = None
        self._question: _Question | None = None
        self._menu: _Menu | None = None
        self._events: deque[_Begun] = deque()
        self._last_number = 0
        self._last_event = 0
        self._number = 0

    # --- what the other side does

    def ask(self, text: str, seconds: int, then: Confirmed | None = None) -> int:
        """Put a question and return its number; `then` is called when it is confirmed.

        PanelBusyError while another one stands; ValueError when the text does not fit the screen whole.
        """
        lines = laid_out(text)
        with self._lock:
            self._expire()
            if self._question is not None and self._question.reply is Reply.PENDING:
                raise PanelBusyError
            self._last_number = self._last_number % _MAX_NUMBER + 1
            self._question = _Question(self._last_number, lines, self._clock() + seconds, then)
            self._menu = None
            self._number += 1
            return self._last_number

    def reply(self, number: int) -> Reply | None:
        """Return how a question stands; None when it is not the last one, or its session is over."""
        with self._lock:
            self._expire()
            question = self._question
            return question.reply if question is not None and question.number == number else None

    def show(self, text: str) -> None:
        """Show a text until something else is shown; ValueError when it does not fit the screen whole."""
        lines = laid_out(text)
        with self._lock:
            self._change(text=lines)

    def clear(self) -> None:
        """Take the text away."""
        with self._lock:
            self._change(text=None)

    def withdraw(self) -> None:
        """The session is over: its question and its text go, and no press answers for it any more."""
        with self._lock:
            self._change(text=None)
            if self._question is not None and self._question.reply is Reply.PENDING:
                self._number += 1
            self._question = None

    def _change(self, text: tuple[str, ...] | None) -> None:
        if text != self._text:
            self._text = text
            self._number += 1

    @property
    def pending(self) -> KeyEvent | None:
        """The oldest event that the user began and nobody fetched."""
        with self._lock:
            self._expire()
            return self._events[0].event if self._events else None

    def fetch(self) -> KeyEvent | None:
        """Return that event and forget it: it is delivered once."""
        with self._lock:
            self._expire()
            return self._events.popleft().event if self._events else None

    # --- what the user does

    def press(self, button: Button, seen: int | None = None) -> Effect:
        """Take one press and return what it did.

        `seen` is the number of the frame that the user looked at: a press meant for another frame does nothing.
        """
        with self._lock:
            if seen is not None and seen != self.frame.number:
                return Effect.NOTHING
            self._expire()
            if self._question is not None and self._question.reply is Reply.PENDING:
                return self._answer(self._question, button)
            return self._choose(button)

    def _answer(self, question: _Question, button: Button) -> Effect:
        if button not in (Button.OK, Button.CANCEL):
            return Effect.NOTHING
        self._number += 1
        confirmed = button is Button.OK
        self._question = replace(question, reply=Reply.CONFIRMED if confirmed else Reply.CANCELLED, then=None)
        if confirmed and question.then is not None:
            question.then()
        return Effect.CONFIRMED if confirmed else Effect.CANCELLED

    def _choose(self, button: Button) -> Effect:
        menu, until = self._menu, self._clock() + MENU_SECONDS
        if button in (Button.UP, Button.DOWN):
            self._number += 1
            step = 1 if button is Button.DOWN else -1
            self._menu = _Menu((menu.chosen + step) % len(_MENU) if menu else 0, until)
            return Effect.MENU
        if menu is None:
            return Effect.NOTHING
        self._menu = None
        self._number += 1
        if button is Button.CANCEL:
            return Effect.CLOSED
        return self._queue(_MENU[menu.chosen])

    def _queue(self, kind: EventKind) -> Effect:
        if len(self._events) >= MAX_EVENTS:
            return Effect.NOTHING
        self._last_event = self._last_event % _MAX_EVENT_NUMBER + 1
        until = math.inf if kind is EventKind.LOCK else self._clock() + EVENT_SECONDS
        self._events.append(_Begun(KeyEvent(EventDetails(self._last_event, kind)), until))
        return Effect.QUEUED

    # --- what is seen

    @property
    def frame(self) -> Frame:
        """What is on the screen now."""
        with self._lock:
            self._expire()
            showing, lines = self._seen()
            return Frame(self._number, showing, lines)

    def _seen(self) -> tuple[Showing, tuple[str, ...]]:
        if self._question is not None and self._question.reply is Reply.PENDING:
            return Showing.QUESTION, self._question.lines
        if self._menu is not None:
            return Showing.MENU, _menu_lines(self._menu.chosen)
        if self._text is not None:
            return Showing.TEXT, self._text
        return Showing.IDLE, laid_out(IDLE)

    def _expire(self) -> None:
        now = self._clock()
        if self._question is not None and self._question.reply is Reply.PENDING and now >= self._question.until:
            self._question = replace(self._question, reply=Reply.TIMED_OUT, then=None)
            self._number += 1
        if self._menu is not None and now >= self._menu.until:
            self._menu = None
            self._number += 1
        if any(now >= begun.until for begun in self._events):
            self._events = deque(begun for begun in self._events if now < begun.until)


def _menu_lines(chosen: int) -> tuple[str, ...]:
    """Return the menu with a mark before what `ok` would choose."""
    lines = [f"{'>' if at == chosen else ' '} {kind.words}"[:COLUMNS] for at, kind in enumerate(_MENU)]
    return filled(lines[:LINES])
