# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What only a link over PC/SC must do: keep to what readers carry, choose one of several, share with other programs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from protocol.apdu import MAX_DATA, MAX_NE, Command
from protocol.errors import CardSilentError, ForeignCardError, LinkUnavailableError, UsageError
from protocol.transport.base import CardLink
from protocol.transport.opening import open_terminal_end
from tests.echo_card import EchoCard
from tests.pcsc.slots import FIRST, PATIENCE, READERS, SECOND, ExchangeableCard

LONGEST = 65_528  # bytes of data in one command


def _tap(link: CardLink, apdu: bytes) -> bytes:
    link.activate(PATIENCE)
    answer = link.transceive(apdu)
    link.deactivate()
    return answer


@pytest.fixture
def scard() -> Any:
    """pyscard's bindings, imported when they are needed: without them these tests can still be counted."""
    from smartcard import scard

    return scard


def _pyscard(reader: str) -> Any:
    from smartcard.System import readers as pyscard_readers

    connection = next(one for one in pyscard_readers() if str(one) == reader).createConnection()
    connection.connect()
    return connection


@pytest.mark.parametrize(
    "apdu",
    [
        Command(0x80, 0x50, 1, 1, bytes(LONGEST + 1)).encode(),
        Command(0x80, 0x50, 1, 1, bytes(MAX_DATA), MAX_NE).encode(),
        Command(0x80, 0x50, 1, 1, bytes(LONGEST), MAX_NE).encode(),
        Command(0x80, 0x50, 1, 1, bytes(LONGEST - 1), MAX_NE).encode(),
        bytes(0x10000),
    ],
    ids=["65529 bytes", "65535 bytes and Le", "65528 bytes and Le", "65527 bytes and Le", "no APDU"],
)
def test_command_longer_than_readers_carry_is_refused_before_it_is_sent(first: ExchangeableCard, apdu: bytes) -> None:
    first.card = card = EchoCard()
    with open_terminal_end(FIRST) as link:
        link.activate(PATIENCE)
        with pytest.raises(UsageError, match="longer than"):
            link.transceive(apdu)
        assert link.transceive(bytes(4)) == bytes(4)
    assert card.apdus == [bytes(4)]


def test_cards_in_two_readers_are_one_too_many(first: ExchangeableCard, second: ExchangeableCard) -> None:
    first.card = card = EchoCard()
    second.card = other = EchoCard()
    with open_terminal_end("pcsc:") as link, pytest.raises(ForeignCardError, match="2 readers; present one card"):
        link.activate(PATIENCE)
    assert card.apdus == other.apdus == []


@pytest.mark.parametrize("reader", [READERS[1], READERS[1].lower(), "00 01"])
def test_naming_a_reader_chooses_one_of_two_cards(
    first: ExchangeableCard, second: ExchangeableCard, reader: str
) -> None:
    first.card = card = EchoCard()
    second.card = other = EchoCard()
    with open_terminal_end(f"pcsc:{reader}") as link:
        _tap(link, bytes(4))
    assert (card.apdus, other.apdus) == ([], [bytes(4)])


def test_reader_that_is_not_there_is_named(first: ExchangeableCard) -> None:
    with (
        open_terminal_end("pcsc:nobody") as link,
        pytest.raises(LinkUnavailableError, match=r"no PC/SC reader is named like 'nobody'.*tap-pos readers"),
    ):
        link.activate(0.1)


def test_other_program_cannot_slip_an_apdu_into_a_tap(first: ExchangeableCard) -> None:
    from smartcard.Exceptions import SmartcardException

    first.card = card = EchoCard()
    tries, ended = threading.Event(), threading.Event()

    def disturb() -> None:
        while not ended.is_set():
            with contextlib.suppress(SmartcardException):
                _pyscard(READERS[0]).transmit([0xFF] * 5)
            tries.set()

    disturber = threading.Thread(target=disturb)
    with open_terminal_end(FIRST) as link:
        link.activate(PATIENCE)
        disturber.start()
        assert tries.wait(PATIENCE)
        for number in range(200):
            link.transceive(bytes(4) + bytes([number]))
        sent = list(card.apdus)
        ended.set()
        link.deactivate()
    disturber.join(PATIENCE)
    assert not disturber.is_alive()
    assert sent == [bytes(4) + bytes([number]) for number in range(200)]


@pytest.fixture
def held(first: ExchangeableCard, scard: Any) -> Iterator[Callable[[], None]]:
    """The first card, which another program has for itself until this is called."""
    _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    either = scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
    result, card, _ = scard.SCardConnect(context, READERS[0], scard.SCARD_SHARE_EXCLUSIVE, either)
    assert result == scard.SCARD_S_SUCCESS
    yield lambda: scard.SCardDisconnect(card, scard.SCARD_LEAVE_CARD)
    scard.SCardReleaseContext(context)


def test_card_that_another_program_has_for_itself_is_said_to_be(held: Callable[[], None]) -> None:
    with open_terminal_end(FIRST) as link, pytest.raises(LinkUnavailableError, match="another program holds"):
        link.activate(0.2)
    held()
    with open_terminal_end(FIRST) as link:
        assert _tap(link, bytes(4)) == bytes(4)


def test_card_that_another_program_has_for_itself_is_waited_for(held: Callable[[], None]) -> None:
    found: list[bytes] = []
    with open_terminal_end(FIRST) as link:
        waiting = threading.Thread(target=lambda: found.append(_tap(link, bytes(4))))
        waiting.start()
        waiting.join(0.5)
        assert found == []
        held()
        waiting.join(PATIENCE)
    assert found == [bytes(4)]


@pytest.mark.parametrize("transaction", [False, True], ids=["connected", "in a transaction"])
def test_other_program_with_the_card_does_not_hold_a_terminal_up(
    first: ExchangeableCard, scard: Any, transaction: bool
) -> None:
    first.card = card = EchoCard()
    other = _pyscard(READERS[0])
    if transaction:
        scard.SCardBeginTransaction(other.component.hcard)
    link = open_terminal_end(FIRST)
    said: list[str] = []

    def activate() -> None:
        try:
            link.activate(0.2)
        except LinkUnavailableError as error:
            said.append(str(error))

    waiting = threading.Thread(target=activate)
    waiting.start()
    waiting.join(PATIENCE)
    ended = not waiting.is_alive()
    other.disconnect()  # which ends its transaction, too
    waiting.join(PATIENCE)
    link.close()
    assert ended, "activate() waited for another program without an end"
    assert said in ([], ["another program holds the card; end it and present the card again"])
    assert card.apdus == []
    with open_terminal_end(FIRST) as again:
        assert _tap(again, bytes(4)) == bytes(4)


def test_card_that_does_not_answer_is_a_silent_card(second: ExchangeableCard) -> None:
    answers = threading.Event()

    def think(apdu: bytes) -> bytes:
        answers.wait(2 * PATIENCE)
        return apdu

    second.card = EchoCard(think)
    link = open_terminal_end(SECOND)
    link.activate(PATIENCE)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            link.transceive(bytes(4))
        except CardSilentError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(PATIENCE)
    ended = not asking.is_alive()
    answers.set()
    asking.join(PATIENCE)
    link.close()
    assert ended, "transceive() waited for a silent card without an end"
    assert len(errors) == 1
    with open_terminal_end(SECOND) as again:
        second.card = EchoCard()
        assert _tap(again, bytes(4)) == bytes(4)
