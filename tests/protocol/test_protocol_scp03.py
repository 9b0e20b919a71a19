# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Secure messaging: a real card's trace, another implementation's bytes, and only the message that is due opens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import given
from hypothesis import strategies as st
from yubikit.core.smartcard.scp import ScpState, StaticKeys
from yubikit.core.smartcard.scp import SessionKeys as ForeignKeys

from protocol import scp03
from protocol.apdu import CHAINING_BIT, MAX_DATA, MAX_NE, SHORT_MAX_NE, Command, Response
from protocol.errors import Check, VerificationError
from protocol.scp03 import SecureMessaging, SessionKeys
from protocol.secret import Secret
from protocol.status import StatusWord

_KEYS = SessionKeys(Secret(b"e" * 16), Secret(b"m" * 16), Secret(b"r" * 16))
_START = SecureMessaging(_KEYS, Secret(b"c" * 16))
_COMMAND = Command(0x80, 0x10, 1, 2, b"deposit 100.00", SHORT_MAX_NE)
_ANSWER = Response(b"done", StatusWord.OK)

commands = st.builds(
    Command,
    cla=st.sampled_from([0x00, 0x80]),
    ins=st.integers(0, 255),
    p1=st.integers(0, 255),
    p2=st.integers(0, 255),
    data=st.binary(max_size=600),
    ne=st.none() | st.integers(1, MAX_NE),
)
good_responses = st.builds(
    Response, data=st.binary(max_size=600), sw=st.sampled_from([StatusWord(sw) for sw in (0x9000, 0x6283, 0x63C2)])
)


def _fails(action: object, *arguments: object) -> bool:
    assert callable(action)
    with pytest.raises(VerificationError) as caught:
        action(*arguments)
    return caught.value.check is Check.CHANNEL


# --- what others made of the same keys


def _trace() -> SecureMessaging:
    """The channel that an eUICC opened at level 33: a trace among the tests of osmocom's pySim, static keys 00 01 02 …"""
    static = StaticKeys(bytes(range(16)), bytes(range(0x10, 0x20)), bytes(range(0x20, 0x30)))
    derived = static.derive(bytes.fromhex("FDF38259A1E0DE44 3B1ACA81E821F219"))
    cmac = CMAC(AES(derived.key_smac))
    cmac.update(bytes(16) + bytes.fromhex("8482330010 8C36F96BCC00724A"))
    chaining = cmac.finalize()
    assert chaining[:8] == bytes.fromhex("4E13AD591D7DA3F0"), "EXTERNAL AUTHENTICATE as it stands in the trace"
    keys = SessionKeys(Secret(derived.key_senc), Secret(derived.key_smac), Secret(derived.key_srmac))
    return SecureMessaging(keys, Secret(chaining))


_TRACED = (
    ("80E2910006BF3E035C015A00", "84E2910018267A85DFE4A98FCA6FB0527E0DFECCE4914E40401433C87F"),
    ("80F22002", "84F2200208AC6A59024BED84CC"),
    ("80CA006600", "84CA006608409912AD8FB7AED0"),
    ("80F220020A4F0212345C054F9F70C5", "84F22002185F3DAFC3AC14C381536A488BF44E06D056DF9D74DBD21E5A"),
    ("80F28002024F0000", "84F280021865165105BE3373347D0424D4400AF2AC393F569EC779389E"),
)
_TRACED_ANSWER = "F3BA2B1013AA6224F5E1C138D71805C569E5439B47576260B75FC021B25097CB2E68F8A0144975B9"


def test_commands_are_those_of_a_real_trace() -> None:
    state, made = _trace(), []
    for plain, _ in _TRACED:
        state, secured = scp03.wrap_command(state, Command.decode(bytes.fromhex(plain)))
        made.append(replace(secured, ne=None).encode().hex().upper())
    assert made == [secured for _, secured in _TRACED]


def test_a_real_trace_is_read() -> None:
    state, read = _trace(), []
    for _, secured in _TRACED:
        state, plain = scp03.unwrap_command(state, Command.decode(bytes.fromhex(secured)))
        read.append(plain)
    assert read == [replace(Command.decode(bytes.fromhex(plain)), ne=None) for plain, _ in _TRACED]


def test_the_answer_of_a_real_card_is_read_and_made() -> None:
    state, _ = scp03.wrap_command(_trace(), Command.decode(bytes.fromhex(_TRACED[0][0])))
    secured = Response(bytes.fromhex(_TRACED_ANSWER), StatusWord.OK)
    plain = Response(bytes.fromhex("BF3E125A1089882119900000000000000000000005"), StatusWord.OK)
    assert scp03.unwrap_response(state, secured) == plain
    assert scp03.wrap_response(state, plain) == secured


def _foreign() -> ScpState:
    return ScpState(ForeignKeys(_KEYS.enc, _KEYS.mac, _KEYS.rmac), bytes(_START.chaining))


@given(st.binary(min_size=1, max_size=600), st.binary(min_size=1, max_size=600))
def test_bytes_are_those_of_another_implementation(data: bytes, answer: bytes) -> None:
    state, secured = scp03.wrap_command(_START, replace(_COMMAND, data=data, ne=None))
    other = _foreign()
    assert secured.data[:-8] == other.encrypt(data)
    assert secured.data[-8:] == other.mac(replace(secured, ne=None).encode()[:-8])
    response = scp03.wrap_response(state, Response(answer, StatusWord.OK))
    assert other.decrypt(other.unmac(response.data, 0x9000)) == answer


def test_an_extended_length_for_short_data_is_accepted_as_it_was_sent() -> None:
    other = _foreign()
    body = other.encrypt(b"short")
    mac = other.mac(bytes.fromhex("84100102 00 0018") + body)
    state, plain = scp03.unwrap_command(_START, Command(0x84, 0x10, 1, 2, body + mac))
    assert plain.data == b"short"
    _, following = scp03.wrap_command(state, replace(_COMMAND, ne=None))
    assert following.data[-8:] == other.mac(bytes.fromhex("84100102 18") + other.encrypt(_COMMAND.data))


def test_encrypted_emptiness_is_no_data() -> None:
    other = _foreign()
    body = other.encrypt(b"")
    secured = Command(0x84, 0x10, 1, 2, body + other.mac(bytes.fromhex("84100102 18") + body))
    assert scp03.unwrap_command(_START, secured)[1] == Command(0x80, 0x10, 1, 2)


# --- round trips


@given(st.lists(st.tuples(commands, good_responses), min_size=1, max_size=4))
def test_what_one_end_says_the_other_hears(said: list[tuple[Command, Response]]) -> None:
    host = card = _START
    for command, response in said:
        host, secured = scp03.wrap_command(host, command)
        assert secured.cla == command.cla | 0x04
        card, heard = scp03.unwrap_command(card, Command.decode(secured.encode()))
        assert replace(heard, ne=command.ne) == command
        assert scp03.unwrap_response(host, scp03.wrap_response(card, response)) == response
    assert host == card
    assert host.counter == len(said)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 239, 240, 255, 256, scp03.MAX_PLAIN_DATA])
def test_every_length_goes_both_ways(length: int) -> None:
    data = bytes(length)
    host, secured = scp03.wrap_command(_START, replace(_COMMAND, data=data, ne=MAX_NE))
    card, heard = scp03.unwrap_command(_START, Command.decode(secured.encode()))
    answer = Response.decode(scp03.wrap_response(card, Response(data, StatusWord.OK)).encode())
    assert (heard.data, scp03.unwrap_response(host, answer).data) == (data, data)


def test_the_longest_data_is_the_longest_that_fits() -> None:
    _, secured = scp03.wrap_command(_START, replace(_COMMAND, data=bytes(scp03.MAX_PLAIN_DATA)))
    assert MAX_DATA - 16 < len(secured.data) <= MAX_DATA
    with pytest.raises(ValueError, match="more than"):
        scp03.wrap_command(_START, replace(_COMMAND, data=bytes(scp03.MAX_PLAIN_DATA + 1)))
    answer = scp03.wrap_response(_START, Response(bytes(scp03.MAX_PLAIN_ANSWER), StatusWord.OK))
    assert MAX_NE - 16 < len(answer.data) <= MAX_NE
    with pytest.raises(ValueError, match="more than"):
        scp03.wrap_response(_START, Response(bytes(scp03.MAX_PLAIN_ANSWER + 1), StatusWord.OK))


@pytest.mark.parametrize(("ne", "secured"), [(None, 256), (1, 256), (256, 256), (257, MAX_NE), (MAX_NE, MAX_NE)])
def test_an_answer_is_expected_in_any_case_and_in_the_same_form(ne: int | None, secured: int) -> None:
    assert scp03.wrap_command(_START, replace(_COMMAND, ne=ne))[1].ne == secured


@pytest.mark.parametrize("cla", [0x04, 0x84, 0x90, 0x40, 0xFF])
def test_a_class_that_cannot_be_secured_is_not_wrapped(cla: int) -> None:
    with pytest.raises(ValueError, match="class"):
        scp03.wrap_command(_START, replace(_COMMAND, cla=cla))


@pytest.mark.parametrize(("cla", "secured"), [(0x04, True), (0x84, True), (0x94, True), (0x00, False), (0xC4, False)])
def test_the_class_tells_what_is_secured(cla: int, secured: bool) -> None:
    assert scp03.is_secured(replace(_COMMAND, cla=cla)) is secured


def test_the_chaining_bit_is_no_part_of_the_message() -> None:
    _, secured = scp03.wrap_command(_START, _COMMAND)
    chained = replace(secured, cla=secured.cla | CHAINING_BIT)
    assert scp03.unwrap_command(_START, chained) == scp03.unwrap_command(_START, secured)


def test_the_same_data_is_never_the_same_bytes() -> None:
    state, first = scp03.wrap_command(_START, _COMMAND)
    following, second = scp03.wrap_command(state, _COMMAND)
    answers = [scp03.wrap_response(one, Response(_COMMAND.data, StatusWord.OK)).data for one in (state, following)]
    assert len({first.data[:16], second.data[:16], *(answer[:16] for answer in answers)}) == 4


def test_keys_are_not_printed() -> None:
    for hidden in (b"e", b"m", b"r", b"c"):
        assert str(hidden * 16) not in repr(_START)


# --- what must not open


@given(commands, st.data())
def test_a_changed_command_does_not_open(command: Command, data: st.DataObject) -> None:
    _, secured = scp03.wrap_command(_START, command)
    body = bytearray(secured.header + secured.data)
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    cla, ins, p1, p2 = body[:4]
    changed = Command(cla, ins, p1, p2, bytes(body[4:]), secured.ne)
    if changed.unchained_header != secured.unchained_header or changed.data != secured.data:
        assert _fails(scp03.unwrap_command, _START, changed)


@given(good_responses, st.data())
def test_a_changed_answer_does_not_open(response: Response, data: st.DataObject) -> None:
    encoded = bytearray(scp03.wrap_response(_START, response).encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    changed = Response.decode(bytes(encoded))
    assert _fails(scp03.unwrap_response, _START, changed)


@given(good_responses, st.integers(1, 40))
def test_a_cut_answer_does_not_open(response: Response, cut: int) -> None:
    secured = scp03.wrap_response(_START, response)
    assert _fails(scp03.unwrap_response, _START, Response(secured.data[:-cut], secured.sw))


@pytest.mark.parametrize("sw", [StatusWord(0x9000), StatusWord(0x6200), StatusWord(0x63C0)])
def test_a_good_answer_without_a_mac_is_refused(sw: StatusWord) -> None:
    assert _fails(scp03.unwrap_response, _START, Response(b"", sw))
    assert len(scp03.wrap_response(_START, Response(b"", sw)).data) == 8


@pytest.mark.parametrize("sw", [StatusWord(0x6A80), StatusWord(0x6982), StatusWord(0x9100), StatusWord(0x6400)])
def test_an_error_is_a_status_word_and_nothing_else(sw: StatusWord) -> None:
    assert scp03.wrap_response(_START, Response(b"never sent", sw)) == Response(b"", sw)
    assert scp03.unwrap_response(_START, Response(b"", sw)) == Response(b"", sw)
    assert _fails(scp03.unwrap_response, _START, Response(b"unasked", sw))


def test_a_command_is_no_answer_and_an_answer_no_command() -> None:
    state, secured = scp03.wrap_command(_START, _COMMAND)
    assert _fails(scp03.unwrap_response, state, Response(secured.data, StatusWord.OK))
    answer = scp03.wrap_response(state, _ANSWER)
    assert _fails(scp03.unwrap_command, state, replace(secured, data=answer.data))


def test_a_command_opens_once_and_in_its_turn() -> None:
    state, first = scp03.wrap_command(_START, _COMMAND)
    _, second = scp03.wrap_command(state, _COMMAND)
    assert _fails(scp03.unwrap_command, _START, second)
    assert _fails(scp03.unwrap_command, state, first)
    assert scp03.unwrap_command(state, second)[1].data == _COMMAND.data


def test_an_answer_belongs_to_its_command() -> None:
    state, _ = scp03.wrap_command(_START, _COMMAND)
    following, _ = scp03.wrap_command(state, _COMMAND)
    assert _fails(scp03.unwrap_response, following, scp03.wrap_response(state, _ANSWER))


def test_a_counter_that_differs_is_found_although_the_mac_is_good() -> None:
    _, secured = scp03.wrap_command(replace(_START, counter=7), _COMMAND)
    assert _fails(scp03.unwrap_command, _START, secured)


@pytest.mark.parametrize(
    "padded", [bytes(16), b"\x80" + bytes(31), b"data" + bytes(12), b"\x01" * 16, b"\x81" + bytes(15)]
)
def test_wrong_padding_is_refused_although_the_mac_is_good(padded: bytes) -> None:
    body = scp03._cbc(_KEYS.enc, scp03._icv(_KEYS.enc, 1), padded)
    mac = scp03._mac(_KEYS.mac, _START.chaining, bytes.fromhex("84100102"), bytes([len(body) + 8]), body)[:8]
    assert _fails(scp03.unwrap_command, _START, Command(0x84, 0x10, 1, 2, body + mac))


def test_a_command_that_does_not_say_that_it_is_secured_is_refused() -> None:
    _, secured = scp03.wrap_command(_START, _COMMAND)
    assert _fails(scp03.unwrap_command, _START, replace(secured, cla=0x80))
