# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The typed client of the card application: what it sends, what it believes, and when its channel ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, time

import pytest

from pos.session import CardSession
from protocol import channel
from protocol.apdu import Command
from protocol.channel import ChannelKeys
from protocol.commands import DEFAULT_NAME, Ins
from protocol.errors import DecodeError, TransportError, VerificationError
from protocol.fci import ApplicationFci
from protocol.messages import Debit, DebitResult, Result
from protocol.status import StatusError, StatusWord
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink, card_historical, contactless_atr

KEYS = channel.derive(bytes(16), bytes(32), b"sealed", b"certificate")
DEBIT = Debit(1250, 978, date(2026, 1, 2), time(3, 4, 5))
APPROVED = DebitResult(Result.APPROVED, bytes(64))
OK = b"\x90\x00"


@dataclass
class ScriptedLink(CardLink):
    """Gives prepared answers; all of them must be used."""

    answers: Sequence[bytes]
    sent: list[bytes] = field(default_factory=list)

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        return Activation(contactless_atr(card_historical(extended=True)))

    def transceive(self, apdu: bytes) -> bytes:
        self.sent.append(apdu)
        return self.answers[len(self.sent) - 1]

    def deactivate(self) -> None:
        pass

    def close(self) -> None:
        pass


def session(*answers: bytes) -> tuple[CardSession, ScriptedLink]:
    link = ScriptedLink(answers)
    return CardSession(link, link.activate()), link


def in_channel(*answers: bytes) -> tuple[CardSession, ScriptedLink]:
    opened, link = session(*answers)
    opened.open_channel(KEYS)
    return opened, link


def result(number: int = 0, keys: ChannelKeys = KEYS, body: bytes = APPROVED.encode(), ins: int = Ins.DEBIT) -> bytes:
    return channel.seal_response(keys, number, ins, body)


def test_select_sends_the_name_and_reads_the_offer() -> None:
    fci = ApplicationFci(DEFAULT_NAME, (1,), (1,))
    opened, link = session(fci.encode() + OK)
    assert opened.select(DEFAULT_NAME) == fci
    assert link.sent == [bytes.fromhex("00A4040008") + DEFAULT_NAME + b"\0"]


def test_select_tells_an_unknown_name_from_a_refusal() -> None:
    opened, _ = session(bytes.fromhex("6A82"), bytes.fromhex("6D00"))
    assert opened.select(DEFAULT_NAME) is None
    with pytest.raises(StatusError) as refused:
        opened.select(DEFAULT_NAME)
    assert refused.value.status is StatusWord.INS_NOT_SUPPORTED


@pytest.mark.parametrize("nonce", [b"", bytes(7), bytes(9)])
def test_a_nonce_of_another_length_is_refused(nonce: bytes) -> None:
    opened, _ = session(nonce + OK)
    with pytest.raises(DecodeError):
        opened.relay_check(bytes(8))


def test_relay_check_measures_the_round_trip() -> None:
    opened, link = session(bytes(8) + OK)
    assert 0 < opened.relay_check(b"12345678") < 1
    assert Command.decode(link.sent[0]).data == b"12345678"


def test_nothing_goes_into_a_channel_that_is_not_open() -> None:
    opened, link = session()
    with pytest.raises(ValueError, match="not open"):
        opened.debit(DEBIT)
    assert link.sent == []


def test_debit_travels_encrypted_and_its_answer_is_believed() -> None:
    opened, link = in_channel(result() + OK)
    assert opened.debit(DEBIT) == APPROVED
    assert DEBIT.encode() not in link.sent[0]
    assert channel.open_command(KEYS, 0, Command.decode(link.sent[0])) == DEBIT.encode()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK, id="success without data"),
        pytest.param(APPROVED.encode() + OK, id="approval in clear"),
        pytest.param(result(1) + OK, id="answer of another place in the order"),
        pytest.param(result(ins=Ins.CONFIRM) + OK, id="answer to another command"),
        pytest.param(result(keys=channel.derive(b"x" * 16, bytes(32), b"", b"")) + OK, id="answer of another channel"),
        pytest.param(result()[:-1] + OK, id="tag cut short"),
        pytest.param(result() + bytes.fromhex("6283"), id="another status word"),
        pytest.param(bytes.fromhex("6985"), id="refusal in clear"),
        pytest.param(bytes.fromhex("6A80"), id="refusal in clear"),
        pytest.param(result(body=b"") + OK, id="empty answer in the channel"),
        pytest.param(result(body=APPROVED.encode() + b"\0") + OK, id="longer answer in the channel"),
        pytest.param(result(body=b"\x77" + bytes(64)) + OK, id="a result that is none"),
    ],
)
def test_no_answer_without_a_valid_tag_is_believed(answer: bytes) -> None:
    opened, _ = in_channel(answer)
    with pytest.raises((StatusError, VerificationError, DecodeError)):
        opened.debit(DEBIT)


@pytest.mark.parametrize("answer", [bytes.fromhex("6985"), OK, result()[:-1] + OK])
def test_a_bad_answer_ends_the_channel(answer: bytes) -> None:
    opened, link = in_channel(answer)
    with pytest.raises((StatusError, VerificationError)):
        opened.debit(DEBIT)
    with pytest.raises(ValueError, match="not open"):
        opened.debit(DEBIT)
    assert len(link.sent) == 1


def test_each_command_in_the_channel_has_its_own_number() -> None:
    confirmed = channel.seal_response(KEYS, 1, Ins.CONFIRM, bytes(16))
    opened, link = in_channel(result() + OK, confirmed + OK)
    opened.debit(DEBIT)
    opened.confirm()
    assert channel.open_command(KEYS, 1, Command.decode(link.sent[1])) == b""


def test_an_answer_too_short_for_a_status_word_is_an_error_of_its_own() -> None:
    opened, _ = session(b"\x90")
    with pytest.raises(DecodeError):
        opened.select(DEFAULT_NAME)


def test_a_card_that_never_stops_answering_is_a_link_error() -> None:
    opened, link = session(*[b"x" + bytes.fromhex("6101")] * 70_000)
    with pytest.raises(TransportError, match="keeps announcing"):
        opened.select(DEFAULT_NAME)
    assert len(link.sent) < 1000
