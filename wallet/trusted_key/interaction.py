# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Trusted interaction (K4): questions, texts and payments on the Key's own screen, and what the user begins there."""

from __future__ import annotations

from protocol.apdu import Command, Response
from protocol.key_commands import (
    KeyIns,
    PaymentQuestion,
    Question,
    QuestionNumber,
    QuestionState,
    Reply,
    Rule,
)
from protocol.status import StatusWord
from wallet.card import StatusWordError
from wallet.trusted_key.access import NO_OWNER, permits, read, require
from wallet.trusted_key.module import Access
from wallet.trusted_key.panel import Panel, PanelBusyError
from wallet.trusted_key.payments import ConfirmedPayments, Payment, text_of
from wallet.trusted_key.storage import require_no_data


class Interaction:
    """The interaction module. A question is begun by one command and its reply looked for by another."""

    name = "interaction"
    instructions: frozenset[int] = frozenset(
        {KeyIns.ASK, KeyIns.POLL, KeyIns.SHOW, KeyIns.CLEAR, KeyIns.CONFIRM_PAYMENT, KeyIns.FETCH}
    )

    def __init__(self, panel: Panel, confirmed: ConfirmedPayments, rule: Rule = Rule.OPEN) -> None:
        """Ask on `panel`, note what was paid in `confirmed`; `rule` is who may do so."""
        self._panel = panel
        self._confirmed = confirmed
        self._rule = rule

    def reset(self) -> None:
        """Take question and text off the screen; what was confirmed stays for its minute."""
        self._panel.withdraw()

    def event_bytes(self, access: Access) -> int:
        """Return the length of the event that waits for a side that came so; 0 for none."""
        event = self._panel.pending
        return len(event.encode()) if event is not None and permits(self._rule, NO_OWNER, access) else 0

    def answer(self, command: Command, access: Access) -> Response:
        """Answer one command."""
        require(self._rule, NO_OWNER, access)
        if command.p1 or command.p2:
            raise StatusWordError(StatusWord.WRONG_P1_P2)
        act = {
            KeyIns.ASK: self._ask, KeyIns.POLL: self._poll, KeyIns.SHOW: self._show, KeyIns.CLEAR: self._clear,
            KeyIns.CONFIRM_PAYMENT: self._confirm_payment, KeyIns.FETCH: self._fetch,
        }[KeyIns(command.ins)]  # fmt: skip
        try:
            return Response(act(command, access), StatusWord.OK)
        except PanelBusyError:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED) from None
        except ValueError:  # the text does not fit the screen, or there is no such currency
            raise StatusWordError(StatusWord.WRONG_DATA) from None

    def _ask(self, command: Command, access: Access) -> bytes:
        question = read(Question, command.data)
        if question.seconds == 0:
            raise StatusWordError(StatusWord.WRONG_DATA)
        return _begun(self._panel.ask(question.text, question.seconds))

    def _confirm_payment(self, command: Command, access: Access) -> bytes:
        question = read(PaymentQuestion, command.data)
        payment = Payment.of(question, access.peer)
        then = lambda: self._confirmed.remember(payment)  # noqa: E731 - one call, when the user has pressed OK
        return _begun(self._panel.ask(text_of(question), question.seconds, then))

    def _poll(self, command: Command, access: Access) -> bytes:
        number = read(QuestionNumber, command.data).number
        reply = self._panel.reply(number)
        if reply is None:
            raise StatusWordError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        return QuestionState(number, reply).encode()

    def _show(self, command: Command, access: Access) -> bytes:
        question = read(Question, command.data)
        if question.seconds:
            raise StatusWordError(StatusWord.WRONG_DATA)
        self._panel.show(question.text)
        return b""

    def _clear(self, command: Command, access: Access) -> bytes:
        require_no_data(command)
        self._panel.clear()
        return b""

    def _fetch(self, command: Command, access: Access) -> bytes:
        require_no_data(command)
        event = self._panel.fetch()
        if event is None:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return event.encode()


def _begun(number: int) -> bytes:
    return QuestionState(number, Reply.PENDING).encode()
