# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The card: applications by name, commands in their order, any bytes at all, and the real TEE behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.fixtures import Laboratory
from protocol.apdu import MAX_DATA, MAX_NE, SHORT_MAX_NE, Command, Response
from protocol.commands import DEFAULT_NAME, VERSION_1, Ins, Occurrence, relay_check, select
from protocol.envelope import SUITE_1
from protocol.errors import UsageError
from protocol.fci import DIRECTORY_NAME, ApplicationFci, DirectoryEntry, decode_directory
from protocol.messages import RelayCheck
from protocol.status import StatusWord
from wallet.card import Card
from wallet.directory import Directory
from wallet.phone import PhoneOptions

_RELAY_CHECK = relay_check(RelayCheck(b"c" * 8))
_SECOND_NAME = DEFAULT_NAME[:-1] + b"\x02"
_THIRD_NAME = b"\xf0OTHER"


def _get_virtual_card(data: bytes = bytes(281), version: int = VERSION_1, suite: int = SUITE_1) -> Command:
    return Command(0x80, Ins.GET_VIRTUAL_CARD, version, suite, data, MAX_NE)


class Reader:
    """A field with this card in it; answers are decoded."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def send(self, command: Command) -> Response:
        return Response.decode(self.card.process(command.encode()))

    def status(self, command: Command) -> StatusWord:
        return self.send(command).sw

    def again(self) -> None:
        """The field goes off and on."""
        self.card.deactivate()
        self.card.activate()


@pytest.fixture
def reader(laboratory: Laboratory) -> Iterator[Reader]:
    made = Reader(laboratory.phone.card)
    made.card.activate()
    yield made
    made.card.deactivate()


@dataclass
class Named:
    """An application that answers its own name and counts how often it was left."""

    name: bytes
    resets: int = 0
    commands: list[Command] = field(default_factory=list)

    def select(self) -> Response:
        return Response(self.name, StatusWord.OK)

    def answer(self, command: Command, prefix: bytes) -> Response:
        self.commands.append(command)
        return Response(b"", StatusWord.OK)

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def named() -> Reader:
    """A card with three applications, two of whose names start alike."""
    return Reader(Card([Named(DEFAULT_NAME), Named(_SECOND_NAME), Named(_THIRD_NAME)]))


# --- SELECT


def test_select_answers_to_the_exact_name(reader: Reader) -> None:
    response = reader.send(select(DEFAULT_NAME))
    assert response.sw is StatusWord.OK
    assert ApplicationFci.decode(response.data) == ApplicationFci(DEFAULT_NAME, (VERSION_1,), (SUITE_1,))


@pytest.mark.parametrize("length", range(1, len(DEFAULT_NAME)))
def test_select_answers_to_a_right_truncated_name_with_the_whole_one(reader: Reader, length: int) -> None:
    response = reader.send(select(DEFAULT_NAME[:length]))
    assert ApplicationFci.decode(response.data).name == DEFAULT_NAME


@pytest.mark.parametrize(
    "name",
    [b"\0", _SECOND_NAME, DEFAULT_NAME + b"\0", DEFAULT_NAME[1:], bytes(16), bytes.fromhex("A0000000031010")],
)
def test_select_of_a_name_that_the_card_has_not_is_6a82(reader: Reader, name: bytes) -> None:
    assert reader.status(select(name)) is StatusWord.NOT_FOUND


def test_select_next_goes_through_all_that_fit_and_then_finds_no_more(named: Reader) -> None:
    start = DEFAULT_NAME[:4]
    assert named.send(select(start)).data == DEFAULT_NAME
    assert named.send(select(start, Occurrence.NEXT)).data == _SECOND_NAME
    assert named.status(select(start, Occurrence.NEXT)) is StatusWord.NOT_FOUND
    assert named.send(select(start)).data == DEFAULT_NAME


def test_select_next_without_a_first_is_the_first(named: Reader) -> None:
    assert named.send(select(DEFAULT_NAME[:4], Occurrence.NEXT)).data == DEFAULT_NAME


def test_select_next_after_another_name_is_the_first_that_fits(named: Reader) -> None:
    named.send(select(_THIRD_NAME))
    assert named.send(select(DEFAULT_NAME[:4], Occurrence.NEXT)).data == DEFAULT_NAME


def test_a_select_that_finds_nothing_leaves_the_current_application(named: Reader) -> None:
    named.send(select(_SECOND_NAME))
    assert named.status(select(b"nothing")) is StatusWord.NOT_FOUND
    assert named.status(Command(0x80, 0x01, 0, 0)) is StatusWord.OK


def test_the_field_going_off_leaves_the_current_application(named: Reader) -> None:
    named.send(select(_SECOND_NAME))
    named.again()
    assert named.status(Command(0x80, 0x01, 0, 0)) is StatusWord.CONDITIONS_NOT_SATISFIED


@pytest.mark.parametrize(("p1", "p2"), [(0, 0), (4, 1), (4, 3), (4, 0x0C), (5, 0), (0xFF, 0xFF)])
def test_select_with_other_parameters_is_6a86(reader: Reader, p1: int, p2: int) -> None:
    assert reader.status(Command(0x00, Ins.SELECT, p1, p2, DEFAULT_NAME, SHORT_MAX_NE)) is StatusWord.WRONG_P1_P2


@pytest.mark.parametrize("length", [0, 17, 255, 300])
def test_select_by_a_name_of_an_impossible_length_is_6700(reader: Reader, length: int) -> None:
    assert reader.status(Command(0x00, Ins.SELECT, 4, 0, bytes(length), SHORT_MAX_NE)) is StatusWord.WRONG_LENGTH


# --- unknown commands


@pytest.mark.parametrize("ins", [0x00, 0xB0, 0xB2, 0x50, 0xCA, 0xFE])
def test_an_unknown_interindustry_instruction_is_6d00(reader: Reader, ins: int) -> None:
    assert reader.status(Command(0x00, ins, 0, 0)) is StatusWord.INS_NOT_SUPPORTED


@pytest.mark.parametrize("ins", [0x00, 0x51, 0xA4, 0xFF])
def test_an_unknown_instruction_of_our_own_is_6d00(reader: Reader, ins: int) -> None:
    reader.send(select(DEFAULT_NAME))
    assert reader.status(Command(0x80, ins, 0, 0)) is StatusWord.INS_NOT_SUPPORTED


@pytest.mark.parametrize("cla", [0x01, 0x0C, 0x40, 0x81, 0x84, 0xC0, 0xE0, 0xFF & ~0x10])
def test_an_unknown_class_is_6e00(reader: Reader, cla: int) -> None:
    reader.send(select(DEFAULT_NAME))
    assert reader.status(Command(cla, Ins.RELAY_CHECK, 0, 0, bytes(8), 256)) is StatusWord.CLA_NOT_SUPPORTED


def test_the_directory_has_no_commands(reader: Reader) -> None:
    reader.send(select(DIRECTORY_NAME))
    assert reader.status(_RELAY_CHECK) is StatusWord.INS_NOT_SUPPORTED


@pytest.mark.parametrize("ins", [Ins.RELAY_CHECK, Ins.GET_VIRTUAL_CARD, Ins.DEBIT, Ins.CONFIRM, Ins.CANCEL])
def test_nothing_works_before_an_application_is_selected(reader: Reader, ins: Ins) -> None:
    assert reader.status(Command(0x80, ins, 0, 0, bytes(8), 256)) is StatusWord.CONDITIONS_NOT_SATISFIED


# --- the order of a tap


def test_relay_check_is_answered_with_a_nonce_once(reader: Reader) -> None:
    reader.send(select(DEFAULT_NAME))
    response = reader.send(_RELAY_CHECK)
    assert (len(response.data), response.sw) == (8, StatusWord.OK)
    assert reader.status(_RELAY_CHECK) is StatusWord.CONDITIONS_NOT_SATISFIED


@pytest.mark.parametrize("length", [0, 7, 9, 255])
def test_relay_check_of_another_length_is_6700(reader: Reader, length: int) -> None:
    reader.send(select(DEFAULT_NAME))
    command = Command(0x80, Ins.RELAY_CHECK, 0, 0, bytes(length), 256)
    assert reader.status(command) is StatusWord.WRONG_LENGTH
    assert reader.status(_RELAY_CHECK) is StatusWord.OK


@pytest.mark.parametrize(("p1", "p2"), [(1, 0), (0, 1)])
def test_relay_check_with_parameters_is_6a86(reader: Reader, p1: int, p2: int) -> None:
    reader.send(select(DEFAULT_NAME))
    assert reader.status(Command(0x80, Ins.RELAY_CHECK, p1, p2, bytes(8), 256)) is StatusWord.WRONG_P1_P2


def test_get_virtual_card_without_relay_check_is_6985(reader: Reader) -> None:
    reader.send(select(DEFAULT_NAME))
    assert reader.status(_get_virtual_card()) is StatusWord.CONDITIONS_NOT_SATISFIED


@pytest.mark.parametrize(("version", "suite"), [(0, 1), (2, 1), (1, 0), (1, 2), (0xFF, 0xFF)])
def test_a_version_or_suite_that_was_not_offered_is_refused(reader: Reader, version: int, suite: int) -> None:
    reader.send(select(DEFAULT_NAME))
    reader.send(_RELAY_CHECK)
    assert reader.status(_get_virtual_card(version=version, suite=suite)) is StatusWord.WRONG_P1_P2


@pytest.mark.parametrize("data", [b"", b"x", bytes(281), b"\x7f\x21" + bytes(300)])
def test_a_terminal_without_proof_is_refused_and_gets_no_second_try(reader: Reader, data: bytes) -> None:
    reader.send(select(DEFAULT_NAME))
    reader.send(_RELAY_CHECK)
    assert reader.send(_get_virtual_card(data)) == Response(b"", StatusWord.SECURITY_STATUS_NOT_SATISFIED)
    assert reader.status(_get_virtual_card(data)) is StatusWord.CONDITIONS_NOT_SATISFIED
    assert reader.status(_RELAY_CHECK) is StatusWord.CONDITIONS_NOT_SATISFIED


@pytest.mark.parametrize("ins", [Ins.DEBIT, Ins.CONFIRM, Ins.CANCEL])
def test_the_channel_is_closed_before_the_card_was_given(reader: Reader, ins: Ins) -> None:
    reader.send(select(DEFAULT_NAME))
    reader.send(_RELAY_CHECK)
    assert reader.status(Command(0x80, ins, 0, 0, bytes(32), 256)) is StatusWord.CONDITIONS_NOT_SATISFIED


def test_selecting_again_makes_another_nonce(reader: Reader) -> None:
    nonces = []
    for _ in range(20):
        reader.send(select(DEFAULT_NAME))
        nonces.append(reader.send(_RELAY_CHECK).data)
    assert len(set(nonces)) == 20


def test_a_nonce_is_gone_with_the_field(reader: Reader) -> None:
    reader.send(select(DEFAULT_NAME))
    reader.again()
    assert reader.status(_RELAY_CHECK) is StatusWord.CONDITIONS_NOT_SATISFIED


# --- the directory


def test_the_directory_lists_the_application(reader: Reader) -> None:
    response = reader.send(select(DIRECTORY_NAME))
    assert response.sw is StatusWord.OK
    assert decode_directory(response.data) == (DirectoryEntry(DEFAULT_NAME, "TAPLAB", 1),)


def test_the_directory_lists_several_applications_best_first() -> None:
    reader = Reader(Card([Directory((_SECOND_NAME, DEFAULT_NAME))]))
    listed = decode_directory(reader.send(select(DIRECTORY_NAME)).data)
    assert [(one.name, one.priority) for one in listed] == [(_SECOND_NAME, 1), (DEFAULT_NAME, 2)]


@pytest.mark.parametrize("rid", ["A000000003", "A000000004", "A000000025", "A000000065", "A000000333"])
@pytest.mark.parametrize("suffix", ["", "1010"])
def test_the_name_of_a_registered_scheme_is_refused_unless_allowed(rid: str, suffix: str) -> None:
    application = Named(bytes.fromhex(rid + suffix))
    with pytest.raises(UsageError, match="registered payment scheme"):
        Card([application])
    allowed = Reader(Card([application], allow_schemes=True))
    assert allowed.send(select(application.name)).data == application.name


# --- two wallets look alike


@pytest.fixture(scope="module")
def other_laboratory() -> Iterator[Laboratory]:
    with Laboratory(balance="7.00") as made:
        yield made


@pytest.mark.attack("N1")
@pytest.mark.parametrize("name", [DEFAULT_NAME, DEFAULT_NAME[:3], DIRECTORY_NAME, DIRECTORY_NAME[:2], b"none"])
def test_directory_and_fci_are_the_same_in_two_wallets(
    reader: Reader, other_laboratory: Laboratory, name: bytes
) -> None:
    other = Reader(other_laboratory.phone.card)
    other.card.activate()
    assert reader.send(select(name)) == other.send(select(name))
    other.card.deactivate()


# --- any bytes

_WELL_FORMED: st.SearchStrategy[Command] = st.builds(
    Command,
    st.sampled_from([0x00, 0x80, 0x90, 0x10, 0x84]),
    st.sampled_from([*Ins, 0xFF]),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([b"", DEFAULT_NAME, DIRECTORY_NAME, bytes(8), bytes(32)]) | st.binary(max_size=300),
    st.sampled_from([None, 1, SHORT_MAX_NE, MAX_NE]),
)
_APDUS = st.lists(
    st.binary(max_size=300) | _WELL_FORMED.map(Command.encode) | st.just(select(DEFAULT_NAME).encode()),
    min_size=1,
    max_size=8,
)
_LONG = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(apdus=_APDUS)
@_LONG
def test_any_bytes_are_answered_with_a_status_word(reader: Reader, apdus: list[bytes]) -> None:
    for apdu in apdus:
        assert len(reader.card.process(apdu)) >= 2
    reader.again()
    assert reader.status(select(DEFAULT_NAME)) is StatusWord.OK


@pytest.mark.attack("N3")
@given(apdus=_APDUS)
@_LONG
def test_a_terminal_without_proof_gets_the_directory_the_fci_and_a_nonce_and_no_more(
    reader: Reader, apdus: list[bytes]
) -> None:
    reader.again()
    directory, fci = reader.send(select(DIRECTORY_NAME)).data, reader.send(select(DEFAULT_NAME)).data
    reader.again()
    nonces = 0
    for apdu in apdus:
        said = Response.decode(reader.card.process(apdu)).data
        if said in fci or said in directory:  # whole, or a piece of a short answer
            continue
        nonces += 1
        assert len(said) == 8
        assert apdu[1] in (Ins.RELAY_CHECK, Ins.GET_RESPONSE)
    assert nonces <= len(apdus)


def test_after_all_that_the_wallet_still_pays(laboratory: Laboratory) -> None:
    assert laboratory.charge("1.00").approved


_STUFFINGS: dict[str, Callable[[int], list[Command]]] = {
    "one long command": lambda room: [Command(0x80, 0xFF, 0, 0, bytes(room - 16))],
    "many short commands": lambda room: [Command(0x80, 0xFF, 0, 0)] * (room // 16),
}


@pytest.mark.parametrize("stuffing", _STUFFINGS)
@pytest.mark.parametrize("left", [0, 1, 200, 70_000])
def test_a_stuffed_transcript_and_a_long_command_harm_nobody_but_their_terminal(
    laboratory: Laboratory, reader: Reader, stuffing: str, left: int
) -> None:
    """The transcript grows up to its bound, and then the longest GET VIRTUAL CARD comes."""
    reader.send(select(DEFAULT_NAME))
    reader.send(_RELAY_CHECK)
    said = 2 * (5 + 4 + 2) + len(DEFAULT_NAME) + 8 + 8 + 20
    for command in _STUFFINGS[stuffing](max(65_536 - said - left, 16)):
        assert reader.status(command) is StatusWord.INS_NOT_SUPPORTED
    assert reader.send(_get_virtual_card(bytes(MAX_DATA))).data == b""
    reader.again()
    assert laboratory.charge("1.00").approved


def test_a_card_that_is_never_asked_to_stop_keeps_no_endless_transcript(laboratory: Laboratory, reader: Reader) -> None:
    reader.send(select(DEFAULT_NAME))
    for _ in range(40):
        reader.send(Command(0x80, 0xFF, 0, 0, bytes(60_000)))
    assert reader.status(_RELAY_CHECK) is StatusWord.CONDITIONS_NOT_SATISFIED
    reader.again()
    assert laboratory.charge("1.00").approved


# --- several names


def test_a_wallet_answers_to_each_of_its_names(laboratory: Laboratory) -> None:
    laboratory.phone.tee.close()
    with Laboratory(options=PhoneOptions(names=(DEFAULT_NAME, _SECOND_NAME))) as two:
        reader = Reader(two.phone.card)
        reader.card.activate()
        assert ApplicationFci.decode(reader.send(select(DEFAULT_NAME[:7])).data).name == DEFAULT_NAME
        following = reader.send(select(DEFAULT_NAME[:7], Occurrence.NEXT))
        assert ApplicationFci.decode(following.data).name == _SECOND_NAME
        assert len(decode_directory(reader.send(select(DIRECTORY_NAME)).data)) == 2
        reader.card.deactivate()
        assert two.charge("1.00").approved
