# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What every link must do, whatever it is made of. A new link joins by one more entry in LINKS."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab.demo import free_udp_port
from protocol.apdu import MAX_DATA, MAX_NE, Command, Response
from protocol.errors import CardRemovedError, CardSilentError, TapLabError, TransportError
from protocol.status import StatusWord
from protocol.transport.base import CardHandler, CardLink, CardPort, card_historical
from protocol.transport.chaining import CardChaining, TerminalChaining
from protocol.transport.isodep import MAX_APDU
from protocol.transport.opening import open_card_end, open_terminal_end
from protocol.transport.trace import TracingLink

_PATIENCE = 10.0  # seconds until a test gives up waiting for what must happen


@dataclass(frozen=True)
class LinkKind:
    """How both ends of one kind of link are named, and the longest APDU that it can carry."""

    name: str
    ends: Callable[[Path], tuple[str, str]]  # a folder of its own → URL of the terminal's end, URL of the card's end
    longest: int


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _tcp(_: Path) -> str:
    return f"socket:127.0.0.1:{_free_port()}"


def _unix(_: Path) -> str:
    return "socket:./link"  # relative, because a Unix path has at most 107 bytes


def _card_listens(url: Callable[[Path], str]) -> Callable[[Path], tuple[str, str]]:
    return lambda folder: (both := url(folder), both)


def _terminal_listens(url: Callable[[Path], str]) -> Callable[[Path], tuple[str, str]]:
    return lambda folder: ((both := url(folder)) + "?listen", both + "?connect")


LINKS = [
    LinkKind("memory", _card_listens(lambda folder: f"memory:{folder}"), longest=4 + 3 + MAX_DATA + 2),
    LinkKind("unix-card-listens", _card_listens(_unix), longest=0xFFFF),
    LinkKind("unix-terminal-listens", _terminal_listens(_unix), longest=0xFFFF),
    LinkKind("tcp-card-listens", _card_listens(_tcp), longest=0xFFFF),
    LinkKind("tcp-terminal-listens", _terminal_listens(_tcp), longest=0xFFFF),
    LinkKind("nfc-udp", _card_listens(lambda _: f"nfc:udp:127.0.0.1:{free_udp_port()}"), longest=MAX_APDU),
]


class TestCard:
    """Answers each APDU by a function (an echo by default) and notes what the link does with it."""

    __test__ = False

    def __init__(self, answer: Callable[[bytes], bytes] = bytes) -> None:
        self._answer = answer
        self.events: list[str | bytes] = []

    def activate(self) -> None:
        self.events.append("on")

    def process(self, apdu: bytes) -> bytes:
        self.events.append(apdu)
        return self._answer(apdu)

    def deactivate(self) -> None:
        if self.events[-1:] != ["off"]:
            self.events.append("off")


class Rig:
    """Both ends of one link: the terminal's, and whatever card's ends are laid to it one after the other."""

    def __init__(self, kind: LinkKind, folder: Path) -> None:
        self.kind = kind
        self.terminal_url, self.card_url = kind.ends(folder)
        self.link: CardLink = open_terminal_end(self.terminal_url)
        self._served: list[tuple[CardPort, threading.Thread]] = []

    def lay(self, card: CardHandler, *, short: bool = False) -> CardPort:
        """Let `card` be served until it is taken away."""
        port = open_card_end(self._with_option(self.card_url, "short") if short else self.card_url)
        thread = threading.Thread(target=port.serve, args=(card,), daemon=True)
        thread.start()
        self._served.append((port, thread))
        return port

    def take_away(self) -> None:
        """End the card's end that was laid last; it must stop serving."""
        port, thread = self._served.pop()
        port.close()
        thread.join(_PATIENCE)
        assert not thread.is_alive(), "close() did not end serve()"

    def assert_serving(self) -> None:
        assert all(thread.is_alive() for _, thread in self._served), "serve() ended by itself"

    def close(self) -> None:
        self.link.close()
        while self._served:
            self.take_away()

    @staticmethod
    def _with_option(url: str, option: str) -> str:
        return url + ("&" if "?" in url else "?") + option


@pytest.fixture(params=LINKS, ids=lambda kind: kind.name)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with contextlib.chdir(tmp_path):
        rig = Rig(request.param, tmp_path)
        yield rig
        rig.close()


def _data(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def _tap(link: CardLink, apdu: bytes) -> bytes:
    link.activate(_PATIENCE)
    answer = link.transceive(apdu)
    link.deactivate()
    return answer


@pytest.mark.parametrize("short", [False, True], ids=["extended", "short"])
def test_activation_tells_what_lengths_the_card_takes(rig: Rig, short: bool) -> None:
    rig.lay(TestCard(), short=short)
    activation = rig.link.activate(_PATIENCE)
    assert activation.historical == card_historical(extended=not short)
    assert activation.takes_extended_length is not short


@pytest.mark.parametrize("length", [4, 5, 255, 256, 257, 4096, 65535])
def test_bytes_arrive_as_they_were_sent(rig: Rig, length: int) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(_PATIENCE)
    assert rig.link.transceive(_data(length)) == _data(length)
    assert card.events == ["on", _data(length)]


@pytest.mark.parametrize("length", [2, 3, 255, 256, 258, 65535])
def test_answer_may_be_longer_or_shorter_than_the_command(rig: Rig, length: int) -> None:
    rig.lay(TestCard(lambda _: _data(length)))
    rig.link.activate(_PATIENCE)
    assert rig.link.transceive(bytes(5)) == _data(length)


def test_many_exchanges_in_one_tap_keep_their_order(rig: Rig) -> None:
    rig.lay(TestCard())
    rig.link.activate(_PATIENCE)
    for number in range(200):
        apdu = number.to_bytes(4, "big") + bytes(number)
        assert rig.link.transceive(apdu) == apdu


def test_ten_taps_in_a_row_reset_the_card_each_time(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    for number in range(10):
        assert _tap(rig.link, bytes(4) + bytes([number])) == bytes(4) + bytes([number])
    rig.link.activate(_PATIENCE)
    expected: list[str | bytes] = []
    for number in range(10):
        expected += ["on", bytes(4) + bytes([number]), "off"]
    assert card.events == [*expected, "on"]


def test_activating_twice_begins_a_new_tap(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(_PATIENCE)
    rig.link.activate(_PATIENCE)
    assert rig.link.transceive(bytes(4)) == bytes(4)
    assert [event for event in card.events if event != "off"] == ["on", "on", bytes(4)]


def test_nothing_is_sent_before_a_tap(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    with pytest.raises(CardRemovedError):
        rig.link.transceive(bytes(4))
    assert bytes(4) not in card.events


def test_nothing_is_sent_after_a_tap(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    _tap(rig.link, bytes(4))
    with pytest.raises(CardRemovedError):
        rig.link.transceive(bytes(5))
    assert bytes(5) not in card.events


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


def test_card_taken_away_between_two_commands_is_a_removed_card(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(_PATIENCE)
    rig.link.transceive(bytes(4))
    rig.take_away()
    with pytest.raises(CardRemovedError):
        rig.link.transceive(bytes(5))
    assert card.events == ["on", bytes(4), "off"]
    rig.link.deactivate()


def test_card_taken_away_while_it_computes_never_answers(rig: Rig) -> None:
    ports: list[CardPort] = []

    def leave(apdu: bytes) -> bytes:
        ports[0].close()
        return apdu

    ports.append(rig.lay(TestCard(leave)))
    rig.link.activate(_PATIENCE)
    with pytest.raises(CardRemovedError):
        rig.link.transceive(bytes(4))


def test_removed_card_stays_removed_until_the_next_tap(rig: Rig) -> None:
    rig.lay(TestCard())
    rig.link.activate(_PATIENCE)
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
    rig.link.activate(_PATIENCE)
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
        rig.link.close()
        rig.link = open_terminal_end(rig.terminal_url)
    assert _tap(rig.link, bytes(4)) == bytes(4)
    rig.assert_serving()


def test_terminal_that_closes_within_a_tap_ends_it_for_the_card(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(_PATIENCE)
    rig.link.transceive(bytes(4))
    rig.link.close()
    rig.take_away()
    assert card.events == ["on", bytes(4), "off"]


@pytest.mark.parametrize("taps", [0, 1])
def test_closing_from_another_thread_ends_serving(rig: Rig, taps: int) -> None:
    rig.lay(TestCard())
    for _ in range(taps):
        rig.link.activate(_PATIENCE)
    rig.take_away()  # asserts that serve() has returned


def test_closing_twice_is_once(rig: Rig) -> None:
    port = rig.lay(TestCard())
    _tap(rig.link, bytes(4))
    port.close()
    rig.take_away()
    rig.link.close()
    rig.link.close()


def test_port_closed_before_it_serves_presents_no_card(rig: Rig) -> None:
    port = open_card_end(rig.card_url)
    port.close()
    thread = threading.Thread(target=port.serve, args=(TestCard(),), daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    assert not thread.is_alive()
    with pytest.raises(CardSilentError):
        rig.link.activate(timeout=0.05)


def test_context_manager_closes_the_link(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    with rig.link as link:
        link.activate(_PATIENCE)
        link.transceive(bytes(4))
    rig.take_away()
    assert card.events == ["on", bytes(4), "off"]


def test_command_longer_than_the_link_carries_is_refused_before_it_is_sent(rig: Rig) -> None:
    card = TestCard()
    rig.lay(card)
    rig.link.activate(_PATIENCE)
    too_long = bytes(rig.kind.longest + 1)
    if rig.kind.name != "memory":
        with pytest.raises(TapLabError, match="longer than this link can carry"):
            rig.link.transceive(too_long)
        assert card.events == ["on"]
    assert rig.link.transceive(bytes(4)) == bytes(4)


def test_answer_longer_than_the_link_carries_does_not_end_serving(rig: Rig) -> None:
    rig.lay(TestCard(lambda apdu: bytes(rig.kind.longest + 1) if apdu == bytes(5) else apdu))
    rig.link.activate(_PATIENCE)
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
    activation = rig.link.activate(_PATIENCE)
    assert activation.takes_extended_length is extended
    return TerminalChaining(rig.link.transceive, extended=extended)


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "short"])
@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 4000, 65535])
def test_data_of_any_length_goes_both_ways(rig: Rig, length: int, extended: bool) -> None:
    rig.lay(ChainingCard(_echo), short=not extended)
    terminal = _terminal(rig, extended=extended)
    data = _data(min(length, rig.kind.longest - 9) if extended else length)
    assert terminal.exchange(Command(0x80, 0x50, 1, 1, data, MAX_NE)) == Response(data, StatusWord.OK)


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "short"])
def test_exchange_cut_off_in_the_middle_leaves_nothing_for_the_next_tap(rig: Rig, extended: bool) -> None:
    rig.lay(ChainingCard(_echo), short=not extended)
    rig.link.activate(_PATIENCE)
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
    assert len(card.events) <= 1 + 258


def test_chain_never_ended_is_refused(rig: Rig) -> None:  # P2
    seen: list[Command] = []

    def answer(command: Command) -> Response:
        seen.append(command)
        return _echo(command)

    rig.lay(ChainingCard(answer))
    rig.link.activate(_PATIENCE)
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
    tracing.activate(_PATIENCE)
    tracing.transceive(bytes(4))
    tracing.transceive(bytes(7))
    assert [exchange.lengths for exchange in tracing.exchanges] == [(4, 6), (7, 9)]
    assert [exchange.command for exchange in tracing.exchanges] == [bytes(4), bytes(7)]
    assert all(0 <= exchange.seconds < _PATIENCE for exchange in tracing.exchanges)
    tracing.deactivate()
    assert len(tracing.exchanges) == 2
