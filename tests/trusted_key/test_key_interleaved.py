# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A client application that carries several conversations with the Key at once, and holds answers back as it likes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from pos.outcome import OutcomeKind
from protocol.apdu import Command
from protocol.errors import TapLabError
from protocol.transport.base import CardHandler
from protocol.transport.chaining import TerminalChaining
from protocol.wire import Wire
from tests.trusted_key.test_key_moving import Two, paired, two
from tests.trusted_key.till import Till
from wallet.environment.launcher import ANSWER_SECONDS
from wallet.tee.client import TeeSession
from wallet.tee.contract import ApplyRequest, CommandId, Dialogue, KeyAnswer

__all__ = ["paired", "two"]

_SECURED = 0x04  # secure messaging, in the class byte
_PURSE_BYTES = 800  # longer than any command but the one that brings the purse


class Conversation:
    """One conversation, carried by hand: what the Key answered is told to the trusted world when the test wants it."""

    def __init__(self, till: Till, card: CardHandler, command: CommandId, parameters: Wire | None = None) -> None:
        self._tee = till.laboratory.phone.tee
        self._way = TerminalChaining(card.process, extended=True)
        self.now = Dialogue.decode(self._tee.invoke_command(command, parameters, ANSWER_SECONDS))

    @property
    def is_over(self) -> bool:
        return not self.now.apdu

    @property
    def is_secured(self) -> bool:
        return bool(self.now.apdu[0] & _SECURED)

    @property
    def brings_the_purse(self) -> bool:
        return len(self.now.apdu) > _PURSE_BYTES

    def carry(self) -> bytes:
        """Let the Key hear what is said, and hold its answer back."""
        return self._way.exchange(Command.decode(self.now.apdu)).encode()

    def tell(self, answer: bytes) -> None:
        told = KeyAnswer(self.now.talk, answer)
        self.now = Dialogue.decode(self._tee.invoke_command(CommandId.KEY_ANSWER, told, ANSWER_SECONDS))

    def steps(self, most: int = 100) -> None:
        """Go on for `most` commands or to the end."""
        for _ in range(most):
            if self.is_over:
                return
            self.tell(self.carry())

    def up_to_the_purse(self) -> Conversation:
        """Go on until the purse is the next thing to be sent."""
        while not self.brings_the_purse:
            self.steps(1)
        return self


@contextlib.contextmanager
def taps_carried_by(till: Till, hand: Callable[[Wire | None], bytes]) -> Iterator[None]:
    """Let `hand` carry what a tap says to the Key."""
    line = till.laboratory.phone.key
    carried = line.converse

    def converse(
        tee: TeeSession, command: CommandId, parameters: Wire | None = None, timeout: float = ANSWER_SECONDS
    ) -> bytes:
        return hand(parameters) if command is CommandId.CHANNEL else carried(tee, command, parameters, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "converse", converse)
        yield


def sum_of(two: Two) -> int:
    """End what was begun and bring the purse where it can be paid from; return what both wallets hold."""
    for _ in range(2):  # the first one may only find out where it is
        two.move(two.first, CommandId.MOVE_IN)
    assert not any(till.view.moving for till in (two.first, two.second))
    return sum(till.view.balance for till in (two.first, two.second))


@pytest.mark.requirement("K2")
@pytest.mark.attack("I2")
@pytest.mark.parametrize("has_arrived", [False, True])
def test_a_signature_of_the_key_that_was_held_back_pays_nothing_from_a_purse_that_moves(
    two: Two, *, has_arrived: bool
) -> None:
    first, card = two.first, two.key.card
    first.lay(card)
    first.need_key_above(10_00)
    assert first.charge("50.00").kind is OutcomeKind.SEE_PHONE
    first.agree("Pay 50.00 EUR to Corner Bakery?")
    first.wait_for_idle()

    def hand(parameters: Wire | None) -> bytes:
        tap = Conversation(first, card, CommandId.CHANNEL, parameters)
        while not tap.is_over and not tap.is_secured:
            tap.steps(1)
        if tap.is_over:
            return tap.now.answer
        signature = tap.carry()
        move = Conversation(first, card, CommandId.MOVE_OUT).up_to_the_purse()
        arrived = move.carry()
        if has_arrived:
            move.tell(arrived)
            move.steps()
        tap.tell(signature)
        return tap.now.answer

    with taps_carried_by(first, hand):
        assert first.charge("50.00").kind is not OutcomeKind.APPROVED
    assert sum_of(two) == 100_00


@pytest.mark.requirement("K2")
@pytest.mark.attack("I2")
def test_what_is_paid_while_a_move_begins_does_not_come_to_the_key_as_well(two: Two) -> None:
    paid = 0
    for steps in range(20):
        two.first.wait_for_idle()
        move = Conversation(two.first, two.key.card, CommandId.MOVE_OUT)
        move.steps(steps)
        if move.is_over:
            break
        paid += 1_00 if two.first.charge("1.00").approved else 0
        with contextlib.suppress(TapLabError):
            move.steps()
        assert sum_of(two) == 100_00 - paid
    assert move.is_over
    assert paid > 0


@pytest.mark.requirement("K2")
@pytest.mark.attack("I2")
def test_a_move_that_was_held_back_changes_nothing_once_another_one_has_begun(two: Two) -> None:
    for steps in range(20):
        two.first.wait_for_idle()
        Conversation(two.first, two.key.card, CommandId.MOVE_OUT).up_to_the_purse()  # torn: nobody knows if it came
        back = Conversation(two.first, two.key.card, CommandId.MOVE_IN)
        back.steps(steps)
        if back.is_over:
            break
        held_back = back.carry()
        again = Conversation(two.first, two.key.card, CommandId.MOVE_OUT).up_to_the_purse()
        arrived = again.carry()
        with contextlib.suppress(TapLabError):
            back.tell(held_back)
            back.steps()
        assert not two.first.charge("1.00").approved
        with contextlib.suppress(TapLabError):
            again.tell(arrived)
            again.steps()
        assert sum_of(two) == 100_00
    assert back.is_over


@pytest.mark.requirement("K2")
def test_an_application_that_was_held_back_makes_nothing_in_a_wallet_whose_purse_has_left(two: Two) -> None:
    order = ApplyRequest(978, 2, with_key=True)
    application = Conversation(two.first, two.key.card, CommandId.APPLY, order)
    held_back = application.carry()
    Conversation(two.first, two.key.card, CommandId.MOVE_OUT).steps()
    with contextlib.suppress(TapLabError):
        application.tell(held_back)
        application.steps()
    assert not application.is_over
    assert not two.first.view.device
    assert sum_of(two) == 100_00
