# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The channel: only the message that is due, in its direction, under its header, with its status word, opens."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from protocol import channel
from protocol.apdu import CHAINING_BIT, Command
from protocol.commands import Ins, in_channel
from protocol.errors import Check, VerificationError
from protocol.labels import Label
from protocol.status import StatusWord

_SECRET, _T2, _SEALED, _CREDENTIAL = bytes(range(16)), bytes([1]) * 32, bytes([2]) * 92, bytes([3]) * 152
_KEYS = channel.derive(_SECRET, _T2, _SEALED, _CREDENTIAL)
_BODY = bytes(range(14))
_DEBIT = in_channel(Ins.DEBIT, _BODY)


def _expanded(label: Label, length: int) -> bytes:
    """RFC 5869 with nothing but HMAC; one block is enough for every length here."""
    salt = hashlib.sha256(_T2 + _SEALED + _CREDENTIAL).digest()
    key = hmac.digest(salt, _SECRET, "sha256")
    name = label.value.encode()
    return hmac.digest(key, bytes([len(name)]) + name + b"\x01", "sha256")[:length]


def _refused(opening: Callable[[], bytes]) -> bool:
    try:
        opening()
    except VerificationError as error:
        return error.check is Check.CHANNEL
    return False


def _changes(data: bytes) -> list[bytes]:
    return [
        data[:position] + bytes([data[position] ^ change]) + data[position + 1 :]
        for position in range(len(data))
        for change in (0x01, 0x80, 0xFF)
    ]


def test_keys_are_those_of_rfc_5869() -> None:
    assert _KEYS.command_key == _expanded(Label.CHANNEL_COMMAND_KEY, 16)
    assert _KEYS.command_iv == _expanded(Label.CHANNEL_COMMAND_IV, 12)
    assert _KEYS.response_key == _expanded(Label.CHANNEL_RESPONSE_KEY, 16)
    assert _KEYS.response_iv == _expanded(Label.CHANNEL_RESPONSE_IV, 12)
    assert _KEYS.transaction_id == _expanded(Label.TRANSACTION_ID, 16)


def test_command_is_sealed_with_its_direction_and_header_bound() -> None:
    sealed = channel.seal_command(_KEYS, 0, _DEBIT)
    assert sealed.header == _DEBIT.header
    assert AESGCM(_KEYS.command_key).decrypt(_KEYS.command_iv, sealed.data, bytes.fromhex("0180520000")) == _BODY


def test_answer_is_sealed_with_its_direction_instruction_and_status_bound() -> None:
    sealed = channel.seal_response(_KEYS, 0, Ins.DEBIT, _BODY)
    assert AESGCM(_KEYS.response_key).decrypt(_KEYS.response_iv, sealed, bytes.fromhex("02529000")) == _BODY


def test_number_of_a_message_is_xored_into_the_iv() -> None:
    sealed = channel.seal_response(_KEYS, 0x0102, Ins.DEBIT, _BODY)
    nonce = _KEYS.response_iv[:10] + bytes([_KEYS.response_iv[10] ^ 1, _KEYS.response_iv[11] ^ 2])
    assert AESGCM(_KEYS.response_key).decrypt(nonce, sealed, bytes.fromhex("02529000")) == _BODY


@pytest.mark.parametrize("part", range(4))
def test_everything_that_is_bound_changes_every_key(part: int) -> None:
    parts = [_SECRET, _T2, _SEALED, _CREDENTIAL]
    parts[part] = parts[part][:-1] + bytes([parts[part][-1] ^ 1])
    other = channel.derive(*parts)
    assert other.command_key != _KEYS.command_key
    assert other.command_iv != _KEYS.command_iv
    assert other.response_key != _KEYS.response_key
    assert other.response_iv != _KEYS.response_iv
    assert other.transaction_id != _KEYS.transaction_id


def test_keys_of_the_directions_differ() -> None:
    assert len({_KEYS.command_key, _KEYS.response_key, _KEYS.transaction_id}) == 3
    assert _KEYS.command_iv != _KEYS.response_iv


@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_any_message_goes_both_ways(body: bytes, number: int) -> None:
    sealed = channel.seal_command(_KEYS, number, in_channel(Ins.CONFIRM, body))
    assert len(sealed.data) == len(body) + 16
    assert channel.open_command(_KEYS, number, sealed) == body
    answer = channel.seal_response(_KEYS, number, Ins.CONFIRM, body)
    assert len(answer) == len(body) + 16
    assert channel.open_response(_KEYS, number, Ins.CONFIRM, answer, StatusWord.OK) == body


def test_chaining_bit_is_not_bound() -> None:
    sealed = channel.seal_command(_KEYS, 0, _DEBIT)
    chained = replace(sealed, cla=sealed.cla | CHAINING_BIT)
    assert channel.open_command(_KEYS, 0, chained) == _BODY


def test_changed_byte_of_a_command_is_refused() -> None:
    sealed = channel.seal_command(_KEYS, 0, _DEBIT)
    for data in _changes(sealed.data):
        assert _refused(lambda: channel.open_command(_KEYS, 0, sealed.with_data(data)))  # noqa: B023


def test_changed_byte_of_an_answer_is_refused() -> None:
    sealed = channel.seal_response(_KEYS, 0, Ins.DEBIT, _BODY)
    for data in _changes(sealed):
        assert _refused(lambda: channel.open_response(_KEYS, 0, Ins.DEBIT, data, StatusWord.OK))  # noqa: B023


@pytest.mark.parametrize("length", range(14 + 16))
def test_cut_message_is_refused(length: int) -> None:  # B8: no data at all is refused like a wrong tag
    sealed = channel.seal_command(_KEYS, 0, _DEBIT)
    answer = channel.seal_response(_KEYS, 0, Ins.DEBIT, _BODY)
    assert _refused(lambda: channel.open_command(_KEYS, 0, sealed.with_data(sealed.data[:length])))
    assert _refused(lambda: channel.open_response(_KEYS, 0, Ins.DEBIT, answer[:length], StatusWord.OK))


def test_longer_message_is_refused() -> None:
    sealed = channel.seal_command(_KEYS, 0, _DEBIT)
    answer = channel.seal_response(_KEYS, 0, Ins.DEBIT, _BODY)
    assert _refused(lambda: channel.open_command(_KEYS, 0, sealed.with_data(sealed.data + b"\0")))
    assert _refused(lambda: channel.open_response(_KEYS, 0, Ins.DEBIT, answer + b"\0", StatusWord.OK))


@pytest.mark.parametrize(("made", "expected"), [(0, 1), (1, 0), (1, 2), (0, 256), (255, 256), (0, 2**32)])
def test_message_out_of_turn_is_refused(made: int, expected: int) -> None:
    sealed = channel.seal_command(_KEYS, made, _DEBIT)
    answer = channel.seal_response(_KEYS, made, Ins.DEBIT, _BODY)
    assert _refused(lambda: channel.open_command(_KEYS, expected, sealed))
    assert _refused(lambda: channel.open_response(_KEYS, expected, Ins.DEBIT, answer, StatusWord.OK))


@pytest.mark.parametrize("header", [(0x00, 0x52, 0, 0), (0x80, 0x54, 0, 0), (0x80, 0x52, 1, 0), (0x80, 0x52, 0, 1)])
def test_command_under_another_header_is_refused(header: tuple[int, int, int, int]) -> None:
    sealed = channel.seal_command(_KEYS, 0, _DEBIT)
    assert _refused(lambda: channel.open_command(_KEYS, 0, Command(*header, sealed.data)))


def test_answer_to_another_command_is_refused() -> None:
    answer = channel.seal_response(_KEYS, 0, Ins.DEBIT, _BODY)
    assert _refused(lambda: channel.open_response(_KEYS, 0, Ins.CANCEL, answer, StatusWord.OK))


@pytest.mark.parametrize("status", [0x6283, 0x6985, 0x6F00, 0x9001, 0x0090, 0x6100])
def test_answer_with_another_status_word_is_refused(status: int) -> None:
    answer = channel.seal_response(_KEYS, 0, Ins.DEBIT, _BODY)
    assert _refused(lambda: channel.open_response(_KEYS, 0, Ins.DEBIT, answer, StatusWord(status)))


def test_reflected_message_is_refused() -> None:
    sealed = channel.seal_command(_KEYS, 0, _DEBIT)
    answer = channel.seal_response(_KEYS, 0, Ins.DEBIT, _BODY)
    assert _refused(lambda: channel.open_response(_KEYS, 0, Ins.DEBIT, sealed.data, StatusWord.OK))
    assert _refused(lambda: channel.open_command(_KEYS, 0, _DEBIT.with_data(answer)))


def test_message_of_another_session_is_refused() -> None:
    other = channel.derive(_SECRET, bytes(32), _SEALED, _CREDENTIAL)
    sealed = channel.seal_command(_KEYS, 0, _DEBIT)
    assert _refused(lambda: channel.open_command(other, 0, sealed))


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=64), st.integers(0, 300))
def test_transaction_id_is_in_nothing_that_is_sealed(secret: bytes, body: bytes, number: int) -> None:
    keys = channel.derive(secret, _T2, _SEALED, _CREDENTIAL)
    for plaintext in (body, keys.transaction_id, keys.transaction_id + body):
        assert keys.transaction_id not in channel.seal_command(keys, number, in_channel(Ins.CANCEL, plaintext)).data
        assert keys.transaction_id not in channel.seal_response(keys, number, Ins.CANCEL, plaintext)


def test_transaction_id_is_no_key_and_no_secret() -> None:
    material = _SECRET + _KEYS.command_key + _KEYS.command_iv + _KEYS.response_key + _KEYS.response_iv
    assert _KEYS.transaction_id not in material


def test_same_message_under_another_number_shares_no_bytes() -> None:
    first, second = (channel.seal_command(_KEYS, number, _DEBIT).data for number in (0, 1))
    assert not {first[i : i + 4] for i in range(27)} & {second[i : i + 4] for i in range(27)}


def test_keys_are_not_shown() -> None:
    shown = repr(_KEYS) + str(_KEYS)
    for secret in (_KEYS.command_key, _KEYS.command_iv, _KEYS.response_key, _KEYS.response_iv):
        assert bytes(secret).hex() not in shown
        assert repr(bytes(secret)) not in shown
