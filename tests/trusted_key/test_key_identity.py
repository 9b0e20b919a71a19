# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A whole Key behind its real channel: who it says it is, whom it knows, and what each of them may."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.apdu import MAX_NE, Command, Response
from protocol.channel_certificate import KeyUse, failed_checks, read
from protocol.commands import KEY_NAME, select
from protocol.key_commands import KeyEvent, KeyFci, KeyIns, KeyModule, Question, Rule, WriteObject, key_command
from protocol.status import StatusError, StatusWord
from protocol.transport.chaining import TerminalChaining
from protocol.wire import Wire
from tests.trusted_key import certificates
from tests.trusted_key.talk import OK, PEER
from wallet.tee.key_channel import HostIdentity, KeyChannel, PairedKey, open_scp11a, open_scp11b
from wallet.trusted_key import identity
from wallet.trusted_key.identity import identity_of
from wallet.trusted_key.key import TrustedKey

pytestmark = pytest.mark.requirement("K1")

NOW = datetime.now(UTC)  # the Key judges its peers by the machine's clock
_LEAF = certificates.x509_of(
    certificates.Wanted("Host", NOW - timedelta(days=1), NOW + timedelta(days=1)), certificates.HOST_KEY.public_key()
)
HOST = HostIdentity(certificates.HOST_KEY, (_LEAF,))


class Carrier:
    """Carries a channel's commands to a Key."""

    def __init__(self, key: TrustedKey) -> None:
        self.key = key
        key.card.activate()
        self.link = TerminalChaining(key.card.process, extended=True)
        self.paired = PairedKey(identity_of(key.cells).certificate)
        self.fci = KeyFci.decode(self.link.exchange(select(KEY_NAME)).data)

    def shake(self, channel: KeyChannel) -> KeyChannel:
        while (command := channel.next_command()) is not None:
            channel.take(self.link.exchange(command))
        return channel

    def send(self, channel: KeyChannel, ins: KeyIns, body: Wire | bytes = b"", *, p2: int = 0) -> Response:
        return channel.unwrap(self.link.exchange(channel.wrap(key_command(ins, body, p2=p2, ne=MAX_NE))))


@pytest.fixture
def carrier(tmp_path: Path) -> Iterator[Carrier]:
    with TrustedKey(tmp_path / "key") as key:
        yield Carrier(key)


def meet(carrier: Carrier) -> KeyChannel:
    """Let the Key know the trusted world, and open the channel of both."""
    carrier.key.cells.commit({identity.PEER + PEER: _LEAF})
    return carrier.shake(open_scp11a(HOST, carrier.paired))


def test_the_key_says_who_it_is_and_stays_the_same(tmp_path: Path) -> None:
    certificates_seen = []
    for _ in range(2):
        with TrustedKey(tmp_path / "key") as key:
            certificates_seen.append(identity_of(key.cells).certificate)
    assert len(set(certificates_seen)) == 1
    assert failed_checks(read(certificates_seen[0]), KeyUse.KEY_AGREEMENT, NOW) == []


def test_the_keys_own_key_is_not_shown_by_repr(carrier: Carrier) -> None:
    own = identity_of(carrier.key.cells)
    assert "Secret(32 bytes)" in repr(own)
    assert own.scalar.hex() not in repr(own)


def test_every_module_is_announced(carrier: Carrier) -> None:
    assert carrier.fci.offer.modules == tuple(KeyModule)
    assert carrier.key.modules == ("channel", "storage", "computing", "interaction")


def test_anybody_may_have_a_channel_but_not_the_screen(carrier: Carrier) -> None:
    channel = carrier.shake(open_scp11b(carrier.paired))
    assert carrier.send(channel, KeyIns.WRITE, WriteObject(b"a", Rule.CHANNEL, b"x" * 9000)).sw is OK
    refused = carrier.send(channel, KeyIns.ASK, Question(30, "Sure?")).sw
    assert refused is StatusWord.SECURITY_STATUS_NOT_SATISFIED
    refused = carrier.send(channel, KeyIns.WRITE, WriteObject(b"b", Rule.PEER, b"")).sw
    assert refused is StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert carrier.send(channel, KeyIns.RANDOM, p2=8).sw is OK


@pytest.mark.attack("D5")
def test_a_trusted_world_that_the_key_does_not_know_has_no_channel(carrier: Carrier) -> None:
    with pytest.raises(StatusError, match="6982"):
        carrier.shake(open_scp11a(HOST, carrier.paired))


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
