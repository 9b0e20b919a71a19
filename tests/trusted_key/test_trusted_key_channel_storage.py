# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The whole Key behind the channel: who opened it decides which objects may be used, and yubikit uses them too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from yubikit.core import TRANSPORT, Version
from yubikit.core.smartcard import ApduError, SmartCardProtocol
from yubikit.core.smartcard.scp import KeyRef, Scp11KeyParams, ScpKid

from protocol import scp11
from protocol.apdu import MAX_NE, Command, Response
from protocol.commands import KEY_NAME, select
from protocol.key_commands import KeyIns, Named, ReadObject, Rule, WriteObject, key_command
from protocol.scp11 import Variant
from protocol.status import StatusWord
from protocol.transport.chaining import TerminalChaining
from tests.trusted_key import certificates as made
from tests.trusted_key.certificates import NOW
from tests.trusted_key.small_key import HOST, IDENTITY, PAIRED, PEER
from tests.trusted_key.test_trusted_key_yubikit import SCP11A, SCP11B, Reader
from wallet.tee.key_channel import HostIdentity, KeyChannel, PairedKey, open_scp11a, open_scp11b
from wallet.trusted_key.key import TrustedKey
from wallet.trusted_key.secure_channel import SecureChannel, pinned

pytestmark = pytest.mark.requirement("K1")

_OTHER = HostIdentity(made.STRANGER_KEY, (made.STRANGER,))
_REFUSED = StatusWord.SECURITY_STATUS_NOT_SATISFIED
_READ = key_command(KeyIns.READ, ReadObject(b"secret", 0, 0), ne=MAX_NE)
_VALUE = bytes(at % 251 for at in range(700))


class Desk:
    """A whole Key, and trusted worlds that come to it one after another."""

    def __init__(self, folder: Path) -> None:
        pairing = pinned({made.HOST: PEER, made.STRANGER: b"phone 02"})
        self.channel = SecureChannel(IDENTITY, pairing, lambda: NOW)
        self.key = TrustedKey(folder, ("channel", "storage", "computing"), channel=lambda cells: self.channel)
        self.key.card.activate()
        self._link = TerminalChaining(self.key.card.process, extended=True)
        self.send(select(KEY_NAME))

    def send(self, command: Command) -> Response:
        return self._link.exchange(command)

    def opened(self, host: HostIdentity | None, paired: PairedKey = PAIRED) -> KeyChannel:
        channel = open_scp11a(host, paired, NOW) if host else open_scp11b(paired, NOW)
        while (command := channel.next_command()) is not None:
            channel.take(self.send(command))
        return channel

    def ask(self, channel: KeyChannel, command: Command) -> Response:
        return channel.unwrap(self.send(channel.wrap(command)))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made_here = Desk(tmp_path / "key")
    yield made_here
    made_here.key.close()


def _keep(desk: Desk, rule: Rule) -> KeyChannel:
    channel = desk.opened(HOST)
    kept = desk.ask(channel, key_command(KeyIns.WRITE, WriteObject(b"secret", rule, _VALUE)))
    assert kept.sw is StatusWord.OK
    return channel


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        (Rule.OPEN, ["plain", "SCP11b", "another", "same"]),
        (Rule.CHANNEL, ["SCP11b", "another", "same"]),
        (Rule.PEER, ["another", "same"]),
        (Rule.CREATOR, ["same"]),
    ],
)
def test_who_opened_the_channel_decides(desk: Desk, rule: Rule, allowed: list[str]) -> None:
    _keep(desk, rule)
    desk.send(select(KEY_NAME))
    answers = {"plain": desk.send(_READ)}
    for name, host in {"SCP11b": None, "another": _OTHER, "same": HOST}.items():
        answers[name] = desk.ask(desk.opened(host), _READ)
    assert [name for name, answer in answers.items() if answer == Response(_VALUE, StatusWord.OK)] == allowed
    assert {answer.sw for name, answer in answers.items() if name not in allowed} <= {_REFUSED}


@pytest.mark.parametrize(
    "plain",
    [_READ, scp11.get_certificates(Variant.SCP11A, 1), Command(0x80, 0x88, 1, 0x13)],
    ids=["READ", "GET DATA", "88"],
)
def test_whatever_is_sent_plain_ends_the_channel(desk: Desk, plain: Command) -> None:
    channel = _keep(desk, Rule.CREATOR)
    desk.send(plain)
    assert not desk.channel.is_open
    assert desk.send(channel.wrap(_READ)) == Response(b"", _REFUSED)


def test_a_command_that_was_cut_ends_the_channel(desk: Desk) -> None:
    channel = _keep(desk, Rule.CREATOR)
    secured = channel.wrap(key_command(KeyIns.DELETE, Named(b"secret")))
    assert desk.send(secured.with_data(secured.data[:-8])) == Response(b"", _REFUSED)
    assert desk.ask(desk.opened(HOST), _READ).data == _VALUE


@pytest.mark.parametrize("transport", [TRANSPORT.NFC, TRANSPORT.USB], ids=["short", "extended"])
def test_yubikit_keeps_and_reads_objects(desk: Desk, transport: TRANSPORT) -> None:
    client = _client(desk, transport, SCP11A)
    for length in (0, 1, 255, 300, 700):
        kept = WriteObject(b"secret", Rule.CREATOR, _VALUE[:length])
        assert client.send_apdu(0x80, KeyIns.WRITE, 0, 0, kept.encode()) == b""
        assert client.send_apdu(0x80, KeyIns.READ, 0, 0, _READ.data) == _VALUE[:length]


def test_yubikit_is_refused_what_its_channel_is_not_for(desk: Desk) -> None:
    _keep(desk, Rule.CREATOR)
    other = Scp11KeyParams(
        KeyRef(ScpKid.SCP11a, 1),
        made.KEY_KEY.public_key(),
        sk_oce_ecka=made.STRANGER_KEY,
        certificates=[x509.load_der_x509_certificate(made.STRANGER)],
    )
    for params in (SCP11B, other):
        client = _client(desk, TRANSPORT.USB, params)
        with pytest.raises(ApduError) as caught:
            client.send_apdu(0x80, KeyIns.READ, 0, 0, _READ.data)
        assert caught.value.sw == _REFUSED
    assert _client(desk, TRANSPORT.USB, SCP11A).send_apdu(0x80, KeyIns.READ, 0, 0, _READ.data) == _VALUE


def _client(desk: Desk, transport: TRANSPORT, params: Scp11KeyParams) -> SmartCardProtocol:
    client = SmartCardProtocol(Reader(desk.key.card, transport))
    client.select(KEY_NAME)
    client.configure(Version(5, 7, 2))
    client.init_scp(params)
    return client
