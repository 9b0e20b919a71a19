# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Somebody else's client opens a channel to the Key: yubikit, with the keys and certificates that it sends."""

from __future__ import annotations

import pytest
from cryptography import x509
from yubikit.core import TRANSPORT, Version
from yubikit.core.smartcard import ApduError, SmartCardConnection, SmartCardProtocol
from yubikit.core.smartcard.scp import KeyRef, Scp11KeyParams, ScpKid
from yubikit.securitydomain import SecurityDomainSession

from protocol.status import StatusWord
from tests.trusted_key import certificates as made
from tests.trusted_key.small_key import COUNT, ECHO, GIVE, NAME, PEER, REFUSE, WHO, Bench
from wallet.card import Card

pytestmark = pytest.mark.requirement("K1")

TRANSPORTS = pytest.mark.parametrize("transport", [TRANSPORT.NFC, TRANSPORT.USB], ids=["short", "extended"])
CHAIN = [x509.load_der_x509_certificate(one) for one in (made.AUTHORITY, made.HOST)]
SCP11A = Scp11KeyParams(
    KeyRef(ScpKid.SCP11a, 1),
    made.KEY_KEY.public_key(),
    oce_ref=KeyRef(0x10, 3),
    sk_oce_ecka=made.HOST_KEY,
    certificates=CHAIN,
)
SCP11B = Scp11KeyParams(KeyRef(ScpKid.SCP11b, 1), made.KEY_KEY.public_key())
BOTH = pytest.mark.parametrize(("params", "peer"), [(SCP11A, PEER), (SCP11B, b"")], ids=["SCP11a", "SCP11b"])


class Reader(SmartCardConnection):
    """A reader of yubikit's with our card on it; it keeps the commands that it carried."""

    def __init__(self, card: Card, transport: TRANSPORT) -> None:
        self.card = card
        self._transport = transport
        self.carried: list[bytes] = []

    @property
    def transport(self) -> TRANSPORT:
        return self._transport

    def send_and_receive(self, apdu: bytes) -> tuple[bytes, int]:
        self.carried.append(bytes(apdu))
        answer = self.card.process(bytes(apdu))
        return answer[:-2], int.from_bytes(answer[-2:], "big")


def _client(bench: Bench, transport: TRANSPORT, params: Scp11KeyParams) -> SmartCardProtocol:
    client = SmartCardProtocol(Reader(bench.card, transport))
    client.select(NAME)
    client.configure(Version(5, 7, 2))
    client.init_scp(params)
    return client


@TRANSPORTS
@BOTH
def test_it_opens_a_channel_and_is_who_it_is(
    bench: Bench, transport: TRANSPORT, params: Scp11KeyParams, peer: bytes
) -> None:
    client = _client(bench, transport, params)
    assert client.send_apdu(0x80, WHO, 0, 0) == b"\1" + peer


@TRANSPORTS
@BOTH
@pytest.mark.parametrize("length", [0, 1, 15, 16, 231, 232, 255, 256, 300, 2000])
def test_data_goes_both_ways(
    bench: Bench, transport: TRANSPORT, params: Scp11KeyParams, peer: bytes, length: int
) -> None:
    client = _client(bench, transport, params)
    data = bytes(at % 251 for at in range(length))
    assert [client.send_apdu(0x80, ECHO, 0, 0, data) for _ in range(3)] == [data] * 3
    assert len(client.send_apdu(0x80, GIVE, length >> 8, length & 0xFF)) == length


@TRANSPORTS
def test_nothing_of_the_data_is_on_the_link(bench: Bench, transport: TRANSPORT) -> None:
    client = _client(bench, transport, SCP11A)
    reader = client.connection
    assert isinstance(reader, Reader)
    assert client.send_apdu(0x80, ECHO, 0, 0, b"a secret of the user") == b"a secret of the user"
    assert not any(b"secret" in apdu for apdu in reader.carried)
    assert any(apdu[0] & 0x10 for apdu in reader.carried) is (transport is TRANSPORT.NFC), (
        "the certificates are chained"
    )


@TRANSPORTS
def test_empty_answers_and_errors_leave_the_channel_as_it_is(bench: Bench, transport: TRANSPORT) -> None:
    client = _client(bench, transport, SCP11A)
    for _ in range(3):
        assert client.send_apdu(0x80, COUNT, 0, 0) == b""
        with pytest.raises(ApduError) as caught:
            client.send_apdu(0x80, REFUSE, 0, 0)
        assert caught.value.sw == StatusWord.CONDITIONS_NOT_SATISFIED
    assert bench.key.counted == 3
    assert client.send_apdu(0x80, ECHO, 0, 0, b"still here") == b"still here"


@TRANSPORTS
@pytest.mark.parametrize("kid", [ScpKid.SCP11a, ScpKid.SCP11b])
def test_it_reads_the_certificates_and_opens_a_channel_with_what_they_say(
    bench: Bench, transport: TRANSPORT, kid: ScpKid
) -> None:
    session = SecurityDomainSession(Reader(bench.card, transport))
    bundle = session.get_certificate_bundle(KeyRef(kid, 1))
    assert [one.subject.rfc4514_string() for one in bundle] == ["CN=Authority", "CN=Key"]
    bundle[1].verify_directly_issued_by(bundle[0])
    public = bundle[-1].public_key()
    assert public == made.KEY_KEY.public_key()
    session.authenticate(Scp11KeyParams(KeyRef(ScpKid.SCP11b, 1), made.KEY_KEY.public_key()))
    assert session.get_certificate_bundle(KeyRef(kid, 1)) == bundle
    assert bench.channel.is_open


def test_it_finds_no_certificates_of_a_key_that_there_is_not(bench: Bench) -> None:
    session = SecurityDomainSession(Reader(bench.card, TRANSPORT.USB))
    assert session.get_certificate_bundle(KeyRef(ScpKid.SCP11a, 9)) == []


@TRANSPORTS
def test_it_opens_one_channel_after_another(bench: Bench, transport: TRANSPORT) -> None:
    client = _client(bench, transport, SCP11A)
    for params in (SCP11B, SCP11A, SCP11A):
        client.init_scp(params)
        assert client.send_apdu(0x80, ECHO, 0, 0, b"anew") == b"anew"


def test_it_may_send_a_single_certificate(bench: Bench) -> None:
    params = Scp11KeyParams(
        KeyRef(ScpKid.SCP11a, 1), made.KEY_KEY.public_key(), sk_oce_ecka=made.HOST_KEY, certificates=CHAIN[1:]
    )
    assert _client(bench, TRANSPORT.NFC, params).send_apdu(0x80, WHO, 0, 0) == b"\1" + PEER


@pytest.mark.parametrize(
    ("params", "error"),
    [
        (
            Scp11KeyParams(
                KeyRef(ScpKid.SCP11a, 1),
                made.KEY_KEY.public_key(),
                sk_oce_ecka=made.STRANGER_KEY,
                certificates=[x509.load_der_x509_certificate(made.STRANGER)],
            ),
            ApduError,
        ),
        (Scp11KeyParams(KeyRef(ScpKid.SCP11b, 2), made.KEY_KEY.public_key()), ValueError),
        (
            Scp11KeyParams(
                KeyRef(ScpKid.SCP11c, 1), made.KEY_KEY.public_key(), sk_oce_ecka=made.HOST_KEY, certificates=CHAIN
            ),
            ValueError,
        ),
    ],
    ids=["unknown certificate", "unknown version", "SCP11c"],
)
def test_it_is_refused(bench: Bench, params: Scp11KeyParams, error: type[Exception]) -> None:
    with pytest.raises(error):
        _client(bench, TRANSPORT.USB, params)
    assert not bench.channel.is_open
