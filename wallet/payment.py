# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The client application: S3, S5, S7 and what the user sees of S9. It relays, and holds no key, counter or balance."""

from __future__ import annotations

import contextlib
from enum import Enum, auto
from queue import SimpleQueue

from protocol.apdu import Command, Response
from protocol.commands import VERSION_1, Ins
from protocol.envelope import SUITE_1
from protocol.errors import DecodeError, TapLabError
from protocol.fci import ApplicationFci
from protocol.messages import RelayCheck, Result
from protocol.status import StatusWord
from wallet.card import StatusWordError
from wallet.environment.launcher import ANSWER_SECONDS
from wallet.events import Event, Step
from wallet.key_line import KeyLine
from wallet.tee.client import TeeSession
from wallet.tee.contract import BegunTap, CardRequest, ChannelAnswer, ChannelRequest, CommandId, TeeError, TeeResult

VERSIONS = (VERSION_1,)
SUITES = (SUITE_1,)
_CHANNEL_COMMANDS = (Ins.DEBIT, Ins.CONFIRM, Ins.CANCEL)
_REFUSES_TERMINAL = (TeeResult.SECURITY, TeeResult.BAD_FORMAT, TeeResult.ACCESS_DENIED)


class Stage(Enum):
    """How far the tap is; each stage is entered once, in this order."""

    IDLE = auto()
    SELECTED = auto()
    RELAY_CHECKED = auto()
    IN_CHANNEL = auto()
    ENDED = auto()


class PaymentClient:
    """One payment application by name, in front of the trusted application."""

    def __init__(
        self,
        name: bytes,
        tee: TeeSession,
        events: SimpleQueue[Event | None],
        key: KeyLine | None = None,
        patience: float = ANSWER_SECONDS,
    ) -> None:
        """Answer to `name`; tell what happens to `events`; `key` is the way to the Trusted Key.

        `patience` is how many seconds a payment may take the trusted world: long where it asks its user within the tap.
        """
        self._patience = patience
        self._key = key or KeyLine()
        self.name = name
        self._tee = tee
        self._events = events
        self._nonce: bytes | None = None
        self._stage = Stage.IDLE
        self._fci = ApplicationFci(name, VERSIONS, SUITES).encode()

    def select(self) -> Response:
        """S3: the name matches. The trusted world makes the nonce of this tap now, so that RELAY CHECK needs no wait."""
        self._forget()
        begun = self._tee.invoke(CommandId.BEGIN_TAP, BegunTap)
        self._nonce, self._stage = begun.nonce, Stage.SELECTED
        self._events.put(Event(Step.NAME_ANSWERED, "application name matches, wallet answers"))
        return Response(self._fci, StatusWord.SELECTED_FILE_DEACTIVATED if begun.locked else StatusWord.OK)

    def reset(self) -> None:
        """The tap is over."""
        if self._stage is Stage.IDLE:
            return
        self._forget()
        with contextlib.suppress(TapLabError, OSError):  # a trusted world that is gone has ended its tap
            self._tee.invoke_command(CommandId.END_TAP)  # the keys of the channel go with the tap
        self._events.put(Event(Step.TAP_ENDED, "tap ended"))

    def _forget(self) -> None:
        self._nonce, self._stage = None, Stage.IDLE

    def answer(self, command: Command, prefix: bytes) -> Response:
        """Answer RELAY CHECK from memory and relay everything else to the trusted world."""
        if command.ins == Ins.RELAY_CHECK:
            return self._relay_check(command)
        if command.ins == Ins.GET_VIRTUAL_CARD:
            return self._get_virtual_card(command, prefix)
        if command.ins in _CHANNEL_COMMANDS:
            return self._channel(command)
        raise StatusWordError(StatusWord.INS_NOT_SUPPORTED)

    def _relay_check(self, command: Command) -> Response:
        if (command.p1, command.p2) != (0, 0):
            raise StatusWordError(StatusWord.WRONG_P1_P2)
        try:
            RelayCheck.decode(command.data)
        except DecodeError:
            raise StatusWordError(StatusWord.WRONG_LENGTH) from None
        if self._nonce is None or self._stage is not Stage.SELECTED:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
        self._stage = Stage.RELAY_CHECKED
        return Response(self._nonce, StatusWord.OK)

    def _get_virtual_card(self, command: Command, prefix: bytes) -> Response:
        """S5 to S7: the request goes in by the client API, and what comes back goes to the terminal as it is."""
        if command.p1 not in VERSIONS or command.p2 not in SUITES:
            raise StatusWordError(StatusWord.WRONG_P1_P2)
        if self._stage is not Stage.RELAY_CHECKED:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
        self._stage = Stage.ENDED
        self._events.put(Event(Step.CARD_REQUESTED, "client application hands the request to the trusted application"))
        request = CardRequest(prefix, command.p1, command.p2, command.data)
        try:
            card = self._tee.invoke_command(CommandId.GET_VIRTUAL_CARD, request)
        except TeeError as error:
            self._tell_refusal(error)
            raise
        self._events.put(
            Event(Step.CARD_SIGNED, "trusted application encrypted the number, then signed the ciphertext")
        )
        self._stage = Stage.IN_CHANNEL
        self._events.put(Event(Step.CARD_RETURNED, "client application returns the signed ciphertext"))
        return Response(card, StatusWord.OK)

    def _tell_refusal(self, error: TeeError) -> None:
        text = "terminal not accepted" if error.result in _REFUSES_TERMINAL else "tap refused"
        self._events.put(Event(Step.TERMINAL_REFUSED, text, reason=str(error)))

    def _channel(self, command: Command) -> Response:
        """S9 and its confirmation: encrypted for the trusted world, opaque here."""
        if self._stage is not Stage.IN_CHANNEL:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
        self._stage = Stage.ENDED  # whatever goes wrong in the trusted world ends the session
        request = ChannelRequest(command.unchained_header, command.data)
        answer = ChannelAnswer.decode(self._key.converse(self._tee, CommandId.CHANNEL, request, self._patience))
        self._stage = Stage.IN_CHANNEL
        self._events.put(_told(command, answer))
        return Response(answer.body, StatusWord.OK)


def _told(command: Command, answer: ChannelAnswer) -> Event:
    shown = answer.shown
    paid = "amount deducted" if shown.result is Result.APPROVED else f"nothing deducted: {shown.result.words}"
    step, text = {
        Ins.DEBIT: (Step.DEBITED, paid),
        Ins.CONFIRM: (Step.CONFIRMED, "the terminal has the result"),
        Ins.CANCEL: (Step.RECOVERED, f"the terminal asks about an earlier tap: {shown.result.words}"),
    }[Ins(command.ins)]
    return Event(
        step,
        text,
        shown.merchant,
        shown.terminal_id,
        shown.amount,
        shown.currency,
        shown.result,
        shown.balance,
        reference=shown.reference,
    )
