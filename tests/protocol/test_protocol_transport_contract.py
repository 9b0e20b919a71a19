# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What every link must do, whatever it is made of. A new link joins by one more entry in tests/links/kinds.py."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.apdu import MAX_NE, Command, Response
from protocol.errors import CardRemovedError, CardSilentError, TapLabError, TransportError
from protocol.status import StatusWord
from protocol.transport.base import CardLink, card_historical
from protocol.transport.chaining import CardChaining, TerminalChaining
from protocol.transport.opening import open_card_end
from protocol.transport.trace import TracingLink
from tests.links.kinds import LINKS, PATIENCE, Kept, Laid, Rig, TestCard, params_of, rig_of, without_idle_resets

_LONGEST = 65_528  # bytes of data in one command that every link but memory just carries


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    with Kept() as kept:
        yield kept


@pytest.fixture(params=params_of(LINKS))
def rig(request: pytest.FixtureRequest, tmp_path: Path, kept: Kept) -> Iterator[Rig]:
    with rig_of(request, request.param, tmp_path, kept) as rig:
        yield rig


def _data(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def _tap(link: CardLink, apdu: bytes) -> bytes:
    link.activate(PATIENCE)
    answer = link.transceive(apdu)
    link.deactivate()
    return answer


@pytest.mark.parametrize("short", [False, True], ids=["extended", "short"])
def test_activation_tells_what_lengths_the_card_takes(rig: Rig, short: bool) -> None:
    rig.lay(TestCard(), short=short)
    activation = rig.link.activate(PATIENCE)
    assert activation.historical == card_historical(extended=not short)
    assert activation.takes_extended_length is not short


@pytest.mark.parametrize("length", [4, 5, 255, 256, 257, 4096, 65535])
def test_bytes_arrive_as_they_were_sent(rig: Rig, length: int) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(PATIENCE)
    assert rig.link.transceive(_data(length)) == _data(length)
    rig.assert_taps(card, [_data(length)])


@pytest.mark.parametrize("length", [2, 3, 255, 256, 258, 65535])
def test_answer_may_be_longer_or_shorter_than_the_command(rig: Rig, length: int) -> None:
    rig.lay(TestCard(lambda _: _data(length)))
    rig.link.activate(PATIENCE)
    assert rig.link.transceive(bytes(5)) == _data(length)


def test_many_exchanges_in_one_tap_keep_their_order(rig: Rig) -> None:
    rig.lay(TestCard())
    rig.link.activate(PATIENCE)
    for number in range(200):
        apdu = number.to_bytes(4, "big") + bytes(number)
        assert rig.link.transceive(apdu) == apdu


def test_ten_taps_in_a_row_reset_the_card_each_time(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    for number in range(10):
        assert _tap(rig.link, bytes(4) + bytes([number])) == bytes(4) + bytes([number])
    rig.link.activate(PATIENCE)
    rig.assert_taps(card, *([bytes(4) + bytes([number])] for number in range(10)), [])


def test_activating_twice_begins_a_new_tap(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(PATIENCE)
    assert rig.link.transceive(bytes(4)) == bytes(4)
    rig.link.activate(PATIENCE)
    assert rig.link.transceive(bytes(5)) == bytes(5)
    assert without_idle_resets(card.events) == ["on", bytes(4), "on", bytes(5)]


def test_nothing_is_sent_before_a_tap(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    with pytest.raises(CardRemovedError):
        rig.link.transceive(bytes(4))
    assert card.apdus == []


def test_nothing_is_sent_after_a_tap(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    _tap(rig.link, bytes(4))
    with pytest.raises(CardRemovedError):
        rig.link.transceive(bytes(5))
    assert card.apdus == [bytes(4)]


def test_ending_a_tap_that_never_began_does_nothing(rig: Rig) -> None:
    rig.link.deactivate()
    rig.link.deactivate()
    rig.lay(TestCard())
    assert _tap(rig.link, bytes(4)) == bytes(4)
    rig.link.deactivate()
    assert _tap(rig.link, bytes(4)) == bytes(4)


def test_no_card_is_noticed_in_the_time_given(rig: Rig) -> None:
    started = time.monotonic()
    with pytest.raises(CardSilentError, match="no card"):
        rig.link.activate(timeout=0.1)
    assert time.monotonic() - started < 2


def test_card_is_found_after_none_was(rig: Rig) -> None:
    with pytest.raises(CardSilentError):
        rig.link.activate(timeout=0.05)
    rig.lay(TestCard())
    assert _tap(rig.link, bytes(4)) == bytes(4)


def test_card_that_comes_while_the_terminal_waits_is_found(rig: Rig) -> None:
    link, found = rig.link, list[bytes]()
    waiting = threading.Thread(target=lambda: found.append(_tap(link, bytes(4))))
    waiting.start()
    rig.lay(TestCard())
    waiting.join(PATIENCE)
    assert found == [bytes(4)]


def test_card_taken_away_between_two_commands_is_a_removed_card(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(PATIENCE)
    rig.link.transceive(bytes(4))
    rig.take_away()
    with pytest.raises(CardRemovedError):
        rig.link.transceive(bytes(5))
    rig.assert_taps(card, [bytes(4)], ended=True)
    rig.link.deactivate()


def test_card_taken_away_while_it_computes_never_answers(rig: Rig) -> None:
    laid: list[Laid] = []

    def leave(apdu: bytes) -> bytes:
        laid[0].close()
        return apdu

    laid.append(rig.lay(TestCard(leave)))
    rig.link.activate(PATIENCE)
    with pytest.raises(CardRemovedError):
        rig.link.transceive(bytes(4))


def test_removed_card_stays_removed_until_the_next_tap(rig: Rig) -> None:
    rig.lay(TestCard())
    rig.link.activate(PATIENCE)
    rig.take_away()
    for _ in range(3):
        with pytest.raises(CardRemovedError):
            rig.link.transceive(bytes(4))


def test_restarted_wallet_is_found_by_the_same_terminal(rig: Rig) -> None:
    for number in range(3):
        rig.lay(TestCard())
        assert _tap(rig.link, bytes([number]) * 4) == bytes([number]) * 4
        rig.take_away()


def test_wallet_restarted_within_a_tap_is_found_by_the_next_one(rig: Rig) -> None:
    rig.lay(TestCard())
    rig.link.activate(PATIENCE)
    rig.take_away()
    rig.lay(TestCard())
    with pytest.raises(CardRemovedError):
        rig.link.transceive(bytes(4))
    assert _tap(rig.link, bytes(4)) == bytes(4)


def test_restarted_terminal_finds_the_same_wallet(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    for _ in range(3):
        assert _tap(rig.link, bytes(4)) == bytes(4)
        rig.restart_terminal()
    assert _tap(rig.link, bytes(4)) == bytes(4)
    rig.assert_serving()


def test_terminal_that_closes_within_a_tap_ends_it_for_the_card(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(PATIENCE)
    rig.link.transceive(bytes(4))
    rig.link.close()
    rig.take_away()
    rig.assert_taps(card, [bytes(4)], ended=True)


@pytest.mark.parametrize("taps", [0, 1])
def test_closing_from_another_thread_ends_serving(rig: Rig, taps: int) -> None:
    rig.lay(TestCard())
    for _ in range(taps):
        rig.link.activate(PATIENCE)
    rig.take_away()  # asserts that serve() has returned


def test_closing_twice_is_once(rig: Rig) -> None:
    laid = rig.lay(TestCard())
    _tap(rig.link, bytes(4))
    laid.close()
    rig.take_away()
    rig.link.close()
    rig.link.close()


def test_port_closed_before_it_serves_presents_no_card(rig: Rig) -> None:
    rig.empty()
    port = open_card_end(rig.card_url)
    port.close()
    thread = threading.Thread(target=port.serve, args=(TestCard(),), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    with pytest.raises(CardSilentError):
        rig.link.activate(timeout=0.05)


def test_context_manager_closes_the_link(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    with rig.link as link:
        link.activate(PATIENCE)
        link.transceive(bytes(4))
    rig.take_away()
    rig.assert_taps(card, [bytes(4)], ended=True)


def test_command_longer_than_the_link_carries_is_refused_before_it_is_sent(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(PATIENCE)
    too_long = bytes(rig.kind.longest + 1)
    if rig.kind.name != "memory":
        with pytest.raises(TapLabError, match="longer than this link can carry"):
            rig.link.transceive(too_long)
        assert card.apdus == []
    assert rig.link.transceive(bytes(4)) == bytes(4)


def test_answer_longer_than_the_link_carries_does_not_end_serving(rig: Rig) -> None:
    rig.lay(TestCard(lambda apdu: bytes(rig.kind.longest + 1) if apdu == bytes(5) else apdu))
    rig.link.activate(PATIENCE)
    with contextlib.suppress(TransportError):
        rig.link.transceive(bytes(5))
    rig.assert_serving()
    assert _tap(rig.link, bytes(4)) == bytes(4)


# Long messages: the same wrappers over every link.


def _echo(command: Command) -> Response:
    return Response(command.data, StatusWord.OK)


class ChainingCard(TestCard):
    """A card that sees whole commands only."""

    def __init__(self, answer: Callable[[Command], Response]) -> None:
        self._chaining = CardChaining(answer)
        super().__init__(self._chaining.process)

    def activate(self) -> None:
        super().activate()
        self._chaining.reset()


def _terminal(rig: Rig, *, extended: bool) -> TerminalChaining:
    activation = rig.link.activate(PATIENCE)
    assert activation.takes_extended_length is extended
    return TerminalChaining(rig.link.transceive, extended=extended, max_data=rig.link.max_data)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 4000, 65_526, _LONGEST, 65_535])
@pytest.mark.parametrize("extended", [True, False], ids=["extended", "short"])
def test_data_of_any_length_goes_both_ways(rig: Rig, length: int, extended: bool) -> None:
    card = ChainingCard(_echo)
    rig.lay(card, short=not extended)
    terminal = _terminal(rig, extended=extended)
    command = Command(0x80, 0x50, 1, 1, _data(length), MAX_NE)
    assert terminal.exchange(command) == Response(_data(length), StatusWord.OK)
    if extended and length <= rig.link.max_data:
        assert card.apdus == [command.encode()]
    else:
        assert max(map(len, card.apdus)) <= 5 + 255 + 1


def test_longest_data_goes_out_in_one_command(rig: Rig) -> None:
    card = ChainingCard(_echo)
    rig.lay(card)
    rig.link.activate(PATIENCE)
    terminal = TerminalChaining(rig.link.transceive, extended=True)
    command = Command(0x80, 0x50, 1, 1, _data(_LONGEST))
    assert terminal.exchange(command) == Response(_data(_LONGEST), StatusWord.OK)
    assert card.apdus[0] == command.encode()
    assert all(apdu[:4] == bytes.fromhex("00C00000") for apdu in card.apdus[1:])


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "short"])
def test_exchange_cut_off_in_the_middle_leaves_nothing_for_the_next_tap(rig: Rig, extended: bool) -> None:
    rig.lay(ChainingCard(_echo), short=not extended)
    rig.link.activate(PATIENCE)
    rig.link.transceive(Command(0x90, 0x50, 1, 1, b"half").encode())
    rig.link.deactivate()
    terminal = _terminal(rig, extended=extended)
    assert terminal.exchange(Command(0x80, 0x50, 1, 1, b"whole", 256)).data == b"whole"


@pytest.mark.parametrize("piece", [0, 1, 256])
def test_get_response_for_ever_is_a_transport_error(rig: Rig, piece: int) -> None:  # P2
    card = TestCard(lambda _: bytes(piece) + b"\x61\x00")
    rig.lay(card)
    terminal = _terminal(rig, extended=True)
    with pytest.raises(TransportError, match="more answer bytes"):
        terminal.exchange(Command(0x80, 0x50, 1, 1, b"", MAX_NE))
    assert len(card.apdus) <= 258


def test_chain_never_ended_is_refused(rig: Rig) -> None:  # P2
    seen: list[Command] = []

    def answer(command: Command) -> Response:
        seen.append(command)
        return _echo(command)

    rig.lay(ChainingCard(answer))
    rig.link.activate(PATIENCE)
    link = Command(0x90, 0x50, 1, 1, bytes(4096))
    answers = [rig.link.transceive(link.encode()) for _ in range(16)]
    assert answers == [bytes.fromhex("9000")] * 15 + [bytes.fromhex("6883")]
    assert seen == []
    alone = replace(link, cla=0x80, data=b"alone", ne=256)
    assert rig.link.transceive(alone.encode()) == b"alone\x90\x00"


def test_trace_keeps_what_went_over_the_link(rig: Rig) -> None:
    rig.lay(TestCard(lambda apdu: apdu + b"\x90\x00"))
    tracing = TracingLink(rig.link)
    _tap(tracing, bytes(9))
    assert _tap(tracing, bytes(4)) == bytes(4) + b"\x90\x00"
    tracing.activate(PATIENCE)
    tracing.transceive(bytes(4))
    tracing.transceive(bytes(7))
    assert [exchange.lengths for exchange in tracing.exchanges] == [(4, 6), (7, 9)]
    assert [exchange.command for exchange in tracing.exchanges] == [bytes(4), bytes(7)]
    assert all(0 <= exchange.seconds < PATIENCE for exchange in tracing.exchanges)
    tracing.deactivate()
    assert len(tracing.exchanges) == 2
