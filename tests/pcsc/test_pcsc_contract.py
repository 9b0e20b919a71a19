# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What a link must do, over a PC/SC service, its virtual reader and pyscard."""

from __future__ import annotations

import contextlib
import threading

import pytest
from smartcard import scard
from smartcard.CardConnection import CardConnection
from smartcard.Exceptions import SmartcardException
from smartcard.System import readers as pyscard_readers

from protocol.apdu import MAX_DATA, MAX_NE, Command, Response
from protocol.errors import CardRemovedError, CardSilentError, ForeignCardError, LinkUnavailableError, UsageError
from protocol.status import StatusWord
from protocol.transport.base import CardLink, card_historical
from protocol.transport.chaining import TerminalChaining
from protocol.transport.opening import open_terminal_end
from tests.pcsc.slots import FIRST, PATIENCE, READERS, SECOND, EchoCard, ExchangeableCard, chaining_echo

LONGEST = 65_528  # bytes of data in one command


def _data(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def _tap(link: CardLink, apdu: bytes) -> bytes:
    link.activate(PATIENCE)
    answer = link.transceive(apdu)
    link.deactivate()
    return answer


def _terminal(link: CardLink, *, extended: bool) -> TerminalChaining:
    assert link.activate(PATIENCE).takes_extended_length is extended
    return TerminalChaining(link.transceive, extended=extended)


def _pyscard(reader: str) -> CardConnection:
    connection = next(one for one in pyscard_readers() if str(one) == reader).createConnection()
    connection.connect()
    return connection


def test_atr_states_extended_length(first: ExchangeableCard) -> None:
    with open_terminal_end(FIRST) as link:
        activation = link.activate(PATIENCE)
    assert activation.historical == card_historical(extended=True)
    assert activation.takes_extended_length


def test_atr_of_a_short_card_does_not(second: ExchangeableCard) -> None:
    with open_terminal_end(SECOND) as link:
        activation = link.activate(PATIENCE)
    assert activation.historical == card_historical(extended=False)
    assert not activation.takes_extended_length


@pytest.mark.parametrize("length", [4, 5, 255, 256, 257, 4096, 65535])
def test_bytes_arrive_as_they_were_sent(first: ExchangeableCard, length: int) -> None:
    first.card = card = EchoCard()
    with open_terminal_end(FIRST) as link:
        link.activate(PATIENCE)
        assert link.transceive(_data(length)) == _data(length)
    assert card.apdus == [_data(length)]


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65526])
def test_data_of_any_length_goes_both_ways_in_extended_length(first: ExchangeableCard, length: int) -> None:
    first.card = chaining_echo()
    with open_terminal_end(FIRST) as link:
        command = Command(0x80, 0x50, 1, 1, _data(length), MAX_NE)
        assert _terminal(link, extended=True).exchange(command) == Response(_data(length), StatusWord.OK)


def test_longest_data_goes_out_in_one_command_and_comes_back_in_pieces(first: ExchangeableCard) -> None:
    first.card = card = chaining_echo()
    with open_terminal_end(FIRST) as link:
        command = Command(0x80, 0x50, 1, 1, _data(LONGEST))
        assert _terminal(link, extended=True).exchange(command) == Response(_data(LONGEST), StatusWord.OK)
    assert card.apdus[0] == command.encode()
    assert all(apdu[:4] == bytes.fromhex("00C00000") for apdu in card.apdus[1:])


@pytest.mark.parametrize("length", [0, 1, 255, 256, LONGEST])
def test_data_of_any_length_goes_both_ways_in_short_lengths(second: ExchangeableCard, length: int) -> None:
    second.card = card = chaining_echo()
    with open_terminal_end(SECOND) as link:
        command = Command(0x80, 0x50, 1, 1, _data(length), MAX_NE)
        assert _terminal(link, extended=False).exchange(command) == Response(_data(length), StatusWord.OK)
    assert max(map(len, card.apdus)) <= 261


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


def test_many_exchanges_in_one_tap_keep_their_order(first: ExchangeableCard) -> None:
    first.card = EchoCard()
    with open_terminal_end(FIRST) as link:
        link.activate(PATIENCE)
        for number in range(200):
            apdu = number.to_bytes(4, "big") + bytes(number)
            assert link.transceive(apdu) == apdu


def test_ten_taps_in_a_row_reset_the_card_each_time(first: ExchangeableCard) -> None:
    first.card = card = EchoCard()
    with open_terminal_end(FIRST) as link:
        for number in range(10):
            assert _tap(link, bytes(4) + bytes([number])) == bytes(4) + bytes([number])
    assert card.apdus == [bytes(4) + bytes([number]) for number in range(10)]
    for number, event in enumerate(card.events):
        if isinstance(event, bytes):
            assert card.events[number - 1] == "on"
            assert isinstance(card.events[number + 1], str)


def test_nothing_is_sent_outside_a_tap(first: ExchangeableCard) -> None:
    first.card = card = EchoCard()
    with open_terminal_end(FIRST) as link:
        with pytest.raises(CardRemovedError):
            link.transceive(bytes(5))
        _tap(link, bytes(4))
        with pytest.raises(CardRemovedError):
            link.transceive(bytes(5))
    assert card.apdus == [bytes(4)]


def test_restarted_terminal_finds_the_same_card(first: ExchangeableCard) -> None:
    first.card = EchoCard()
    for number in range(3):
        with open_terminal_end(FIRST) as link:
            assert _tap(link, bytes([number]) * 4) == bytes([number]) * 4


def test_terminal_that_goes_within_a_tap_leaves_a_card_for_the_next(first: ExchangeableCard) -> None:
    first.card = card = EchoCard()
    link = open_terminal_end(FIRST)
    link.activate(PATIENCE)
    link.transceive(bytes(4))
    link.close()
    link.close()
    assert isinstance(card.events[-1], str)
    with open_terminal_end(FIRST) as other:
        assert _tap(other, bytes(5)) == bytes(5)


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


def test_card_that_another_program_has_for_itself_is_said_to_be(first: ExchangeableCard) -> None:
    _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    either = scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
    result, card, _ = scard.SCardConnect(context, READERS[0], scard.SCARD_SHARE_EXCLUSIVE, either)
    assert result == scard.SCARD_S_SUCCESS
    try:
        with open_terminal_end(FIRST) as link, pytest.raises(LinkUnavailableError, match="another program holds"):
            link.activate(0.2)
    finally:
        scard.SCardDisconnect(card, scard.SCARD_LEAVE_CARD)
        scard.SCardReleaseContext(context)
    with open_terminal_end(FIRST) as link:
        assert _tap(link, bytes(4)) == bytes(4)


@pytest.mark.parametrize("transaction", [False, True], ids=["connected", "in a transaction"])
def test_other_program_with_the_card_does_not_hold_a_terminal_up(first: ExchangeableCard, transaction: bool) -> None:
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
