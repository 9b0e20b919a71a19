# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Command chaining and GET RESPONSE: whole messages in, whole messages out, and an end to whatever a peer does (P2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.apdu import MAX_NE, Command, Response
from protocol.errors import DecodeError, TransportError
from protocol.status import StatusWord
from protocol.transport.chaining import CardChaining, TerminalChaining

_COMMAND = Command(0x80, 0x50, 0x01, 0x02, b"", MAX_NE)
_GET_RESPONSE = bytes.fromhex("00C0000000")
both_forms = pytest.mark.parametrize("extended", [True, False], ids=["extended", "short"])


class Script:
    """A card that expects certain commands, answers each as told, and must be used up."""

    def __init__(self, *steps: tuple[str, str]) -> None:
        self._steps = [(bytes.fromhex(command), bytes.fromhex(answer)) for command, answer in steps]

    def __call__(self, apdu: bytes) -> bytes:
        expected, answer = self._steps.pop(0)
        assert apdu == expected
        return answer

    def assert_used_up(self) -> None:
        assert not self._steps


class Counting:
    """A card that gives one answer for ever."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.asked = 0

    def __call__(self, apdu: bytes) -> bytes:
        self.asked += 1
        return self._answer


def _echo(seen: list[Command]) -> Callable[[Command], Response]:
    def answer(command: Command) -> Response:
        seen.append(command)
        return Response(command.data, StatusWord.OK)

    return answer


def _data(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


@both_forms
@pytest.mark.parametrize("length", [0, 1, 254, 255, 256, 257, 510, 511, 65535])
def test_data_goes_both_ways_whole(extended: bool, length: int) -> None:
    seen: list[Command] = []
    card = CardChaining(_echo(seen))
    command = replace(_COMMAND, data=_data(length))
    response = TerminalChaining(card.process, extended=extended).exchange(command)
    assert response == Response(_data(length), StatusWord.OK)
    assert [(one.header, one.data) for one in seen] == [(command.header, command.data)]


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 512, 65535, 65536])
def test_answer_of_any_length_arrives_whole_in_short_pieces(length: int) -> None:
    card = CardChaining(lambda _: Response(_data(length), StatusWord.SELECTED_FILE_DEACTIVATED))
    response = TerminalChaining(card.process, extended=False).exchange(_COMMAND)
    assert response == Response(_data(length), StatusWord.SELECTED_FILE_DEACTIVATED)


@given(st.binary(max_size=1200), st.binary(max_size=1200), st.booleans())
def test_any_message_goes_both_ways_whole(sent: bytes, answered: bytes, extended: bool) -> None:
    seen: list[bytes] = []

    def answer(command: Command) -> Response:
        seen.append(command.data)
        return Response(answered, StatusWord.OK)

    terminal = TerminalChaining(CardChaining(answer).process, extended=extended)
    assert terminal.exchange(replace(_COMMAND, data=sent)).data == answered
    assert seen == [sent]


def test_short_terminal_sends_nothing_longer_than_a_short_apdu() -> None:
    sent: list[int] = []
    card = CardChaining(lambda command: Response(command.data, StatusWord.OK))

    def transceive(apdu: bytes) -> bytes:
        answer = card.process(apdu)
        sent.extend((len(apdu), len(answer)))
        return answer

    TerminalChaining(transceive, extended=False).exchange(replace(_COMMAND, data=bytes(2000)))
    assert max(sent) <= 261


def test_chained_command_sets_the_bit_on_all_links_but_the_last() -> None:
    first, second, third = _data(600)[:255].hex(), _data(600)[255:510].hex(), _data(600)[510:].hex()
    card = Script((f"90500102FF{first}", "9000"), (f"90500102FF{second}", "9000"), (f"805001025A{third}00", "AA9000"))
    response = TerminalChaining(card, extended=False).exchange(replace(_COMMAND, data=_data(600)))
    card.assert_used_up()
    assert response == Response(b"\xaa", StatusWord.OK)


def test_refused_link_ends_the_chain() -> None:
    card = Script((f"90500102FF{_data(255).hex()}", "6884"))
    response = TerminalChaining(card, extended=False).exchange(replace(_COMMAND, data=_data(600)))
    card.assert_used_up()
    assert response == Response(b"", StatusWord.CHAINING_NOT_SUPPORTED)


@pytest.mark.parametrize(
    ("announced", "asked"), [("6100", "00C0000000"), ("6101", "00C0000001"), ("61FF", "00C00000FF")]
)
def test_61_is_fetched_with_what_it_announces(announced: str, asked: str) -> None:
    card = Script(("8050010200", "AA" + announced), (asked, "BB9000"))
    response = TerminalChaining(card, extended=False).exchange(_COMMAND)
    card.assert_used_up()
    assert response == Response(b"\xaa\xbb", StatusWord.OK)


@pytest.mark.parametrize(("told", "le"), [("6C00", "00"), ("6C01", "01"), ("6CFF", "FF")])
def test_6c_repeats_the_command_with_the_length_it_tells(told: str, le: str) -> None:
    card = Script(("8050010200", told), ("80500102" + le, "AA9000"))
    response = TerminalChaining(card, extended=False).exchange(_COMMAND)
    card.assert_used_up()
    assert response == Response(b"\xaa", StatusWord.OK)


def test_6c_to_get_response_is_followed_too() -> None:
    card = Script(("8050010200", "6120"), ("00C0000020", "6C10"), ("00C0000010", "AA9000"))
    assert TerminalChaining(card, extended=False).exchange(_COMMAND) == Response(b"\xaa", StatusWord.OK)
    card.assert_used_up()


def test_6c_for_ever_is_given_back_after_one_repetition() -> None:
    card = Counting(b"\x6c\x10")
    assert TerminalChaining(card, extended=True).exchange(_COMMAND).sw == 0x6C10
    assert card.asked == 2


@pytest.mark.attack("P2")
@pytest.mark.parametrize("piece", [0, 1, 255, 256])
@both_forms
def test_get_response_for_ever_is_a_transport_error(piece: int, extended: bool) -> None:  # P2
    card = Counting(bytes(piece) + b"\x61\x00")
    with pytest.raises(TransportError, match="more answer bytes"):
        TerminalChaining(card, extended=extended).exchange(_COMMAND)
    assert card.asked <= 1 + 65536 // 256 + 1


def test_endless_large_pieces_are_a_transport_error() -> None:  # P2
    card = Counting(bytes(65536) + b"\x61\x00")
    with pytest.raises(TransportError):
        TerminalChaining(card, extended=True).exchange(_COMMAND)
    assert card.asked == 2


def test_error_while_fetching_is_the_final_status() -> None:
    card = Script(("8050010200", "AA6110"), ("00C0000010", "6F00"))
    assert TerminalChaining(card, extended=False).exchange(_COMMAND).sw is StatusWord.NO_PRECISE_DIAGNOSIS


@pytest.mark.parametrize("answer", ["", "90"])
def test_answer_without_a_status_word_is_a_decode_error(answer: str) -> None:
    with pytest.raises(DecodeError):
        TerminalChaining(lambda _: bytes.fromhex(answer), extended=True).exchange(_COMMAND)


@pytest.mark.parametrize(("left", "announced"), [(1, "6101"), (255, "61FF"), (256, "6100"), (257, "6100")])
def test_card_announces_what_is_left(left: int, announced: str) -> None:
    card = CardChaining(lambda _: Response(bytes(256 + left), StatusWord.OK))
    assert card.process(bytes.fromhex("8050010200")) == bytes(256) + bytes.fromhex(announced)


def test_card_that_was_asked_for_nothing_announces_everything() -> None:
    card = CardChaining(lambda _: Response(b"\xaa\xbb", StatusWord.OK))
    assert card.process(bytes.fromhex("80500102")) == bytes.fromhex("6102")
    assert card.process(bytes.fromhex("00C0000002")) == bytes.fromhex("AABB9000")


def test_get_response_with_nothing_left_is_refused() -> None:
    card = CardChaining(lambda _: Response(b"\xaa", StatusWord.OK))
    assert card.process(_GET_RESPONSE) == bytes.fromhex("6985")
    assert card.process(bytes.fromhex("8050010200")) == bytes.fromhex("AA9000")
    assert card.process(_GET_RESPONSE) == bytes.fromhex("6985")


def test_another_command_drops_what_was_not_fetched() -> None:
    card = CardChaining(lambda command: Response(bytes(300 if command.ins == 0x50 else 1), StatusWord.OK))
    card.process(bytes.fromhex("8050010200"))
    assert card.process(bytes.fromhex("8052010200")) == bytes.fromhex("009000")
    assert card.process(_GET_RESPONSE) == bytes.fromhex("6985")


def test_reset_forgets_half_an_answer() -> None:
    card = CardChaining(lambda _: Response(bytes(300), StatusWord.OK))
    card.process(bytes.fromhex("8050010200"))
    card.reset()
    assert card.process(_GET_RESPONSE) == bytes.fromhex("6985")


def test_reset_forgets_half_a_command() -> None:
    seen: list[Command] = []
    card = CardChaining(_echo(seen))
    card.process(bytes.fromhex("90500102 01 AA"))
    card.reset()
    card.process(bytes.fromhex("80500102 01 BB 00"))
    assert [command.data for command in seen] == [b"\xbb"]


@pytest.mark.parametrize("other", ["80510102 01 BB 00", "80500202 01 BB 00", "80500103 01 BB 00", "00500102 01 BB 00"])
def test_chain_is_broken_by_another_header(other: str) -> None:
    seen: list[Command] = []
    card = CardChaining(_echo(seen))
    card.process(bytes.fromhex("90500102 01 AA"))
    assert card.process(bytes.fromhex(other)) == bytes.fromhex("6883")
    assert seen == []
    assert card.process(bytes.fromhex(other)) == bytes.fromhex("BB9000")


def test_malformed_command_breaks_the_chain() -> None:
    seen: list[Command] = []
    card = CardChaining(_echo(seen))
    card.process(bytes.fromhex("90500102 01 AA"))
    assert card.process(bytes.fromhex("80500102 05 AA")) == bytes.fromhex("6700")
    card.process(bytes.fromhex("80500102 01 BB 00"))
    assert [command.data for command in seen] == [b"\xbb"]


@pytest.mark.attack("P2")
@pytest.mark.parametrize("part", [64, 255, 4096])
def test_chain_never_ended_is_refused_once_it_is_longer_than_a_command(part: int) -> None:  # P2
    seen: list[Command] = []
    card = CardChaining(_echo(seen))
    link = Command(0x90, 0x50, 1, 2, bytes(part)).encode()
    answers = [card.process(link) for _ in range(65535 // part + 1)]
    assert set(answers[:-1]) == {bytes.fromhex("9000")}
    assert answers[-1] == bytes.fromhex("6883")
    assert seen == []


@given(st.lists(st.binary(max_size=300), max_size=12))
def test_card_answers_any_bytes_with_a_status_word(apdus: Iterable[bytes]) -> None:
    card = CardChaining(lambda command: Response(command.data, StatusWord.OK))
    for apdu in apdus:
        assert len(card.process(apdu)) >= 2
