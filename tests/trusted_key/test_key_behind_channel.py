# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A whole Key behind its real channel: what anybody may who opens one, and what a peer may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.apdu import MAX_NE, Command, Response
from protocol.commands import KEY_NAME, select
from protocol.key_commands import KeyEvent, KeyFci, KeyIns, KeyModule, Question, Rule, WriteObject, key_command
from protocol.status import StatusWord
from protocol.transport.chaining import TerminalChaining
from protocol.wire import Wire
from tests.trusted_key.certificates import NOW
from tests.trusted_key.small_key import HOST, IDENTITY, PAIRED, PAIRING
from tests.trusted_key.talk import OK
from wallet.tee.key_channel import KeyChannel, open_scp11a, open_scp11b
from wallet.trusted_key.key import TrustedKey
from wallet.trusted_key.secure_channel import SecureChannel

pytestmark = pytest.mark.requirement("K1")


class Carrier:
    """Carries a channel's commands to a Key."""

    def __init__(self, key: TrustedKey) -> None:
        self.key = key
        key.card.activate()
        self.link = TerminalChaining(key.card.process, extended=True)
        self.fci = KeyFci.decode(self.link.exchange(select(KEY_NAME)).data)

    def shake(self, channel: KeyChannel) -> KeyChannel:
        while (command := channel.next_command()) is not None:
            channel.take(self.link.exchange(command))
        return channel

    def send(self, channel: KeyChannel, ins: KeyIns, body: Wire | bytes = b"", *, p2: int = 0) -> Response:
        return channel.unwrap(self.link.exchange(channel.wrap(key_command(ins, body, p2=p2, ne=MAX_NE))))


@pytest.fixture
def carrier(tmp_path: Path) -> Iterator[Carrier]:
    with TrustedKey(tmp_path / "key", channel=lambda _: SecureChannel(IDENTITY, PAIRING, lambda: NOW)) as key:
        yield Carrier(key)


def meet(carrier: Carrier) -> KeyChannel:
    """Open the channel of the Key and the trusted world that it knows."""
    return carrier.shake(open_scp11a(HOST, PAIRED, NOW))


def test_every_module_is_announced(carrier: Carrier) -> None:
    assert carrier.fci.offer.modules == tuple(KeyModule)
    assert carrier.key.modules == ("channel", "storage", "computing", "interaction")


def test_anybody_may_have_a_channel_but_not_the_screen(carrier: Carrier) -> None:
    channel = carrier.shake(open_scp11b(PAIRED, NOW))
    assert carrier.send(channel, KeyIns.WRITE, WriteObject(b"a", Rule.CHANNEL, b"x" * 9000)).sw is OK
    refused = carrier.send(channel, KeyIns.ASK, Question(30, "Sure?")).sw
    assert refused is StatusWord.SECURITY_STATUS_NOT_SATISFIED
    refused = carrier.send(channel, KeyIns.WRITE, WriteObject(b"b", Rule.PEER, b"")).sw
    assert refused is StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert carrier.send(channel, KeyIns.RANDOM, p2=8).sw is OK


@pytest.mark.requirement("K4")
def test_a_peer_asks_and_is_told_what_the_user_begins(carrier: Carrier) -> None:
    channel = meet(carrier)
    carrier.key.press("down")
    carrier.key.press("ok")
    drawn = carrier.send(channel, KeyIns.RANDOM, p2=8)
    assert (drawn.sw, len(drawn.data)) == (0x620B, 8)
    event = carrier.send(channel, KeyIns.FETCH)
    assert event.sw is OK
    assert KeyEvent.decode(event.data).details.number == 1
    assert carrier.send(channel, KeyIns.ASK, Question(30, "Sure?")).sw is OK
    assert carrier.key.screen.text == "Sure?"
    assert carrier.key.press("ok") == "confirmed"


def test_a_plain_command_takes_the_question_off_the_screen(carrier: Carrier) -> None:
    channel = meet(carrier)
    carrier.send(channel, KeyIns.ASK, Question(30, "Sure?"))
    answer = carrier.link.exchange(key_command(KeyIns.LIST))
    assert answer.sw is StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert carrier.key.screen.showing == "idle"
    assert carrier.key.press("ok") == "nothing"


@pytest.mark.parametrize("ins", [0x88, 0xCA])
def test_a_new_handshake_takes_the_question_off_the_screen(carrier: Carrier, ins: int) -> None:
    channel = meet(carrier)
    carrier.send(channel, KeyIns.ASK, Question(30, "Sure?"))
    carrier.link.exchange(Command(0x00 if ins == 0xCA else 0x80, ins, 0, 0, b"", 256))
    assert carrier.key.screen.showing == "idle"
