# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Key and the trusted world: they open a channel, know each other, and say everything through it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import scp11
from protocol.apdu import MAX_DATA, MAX_NE, Command, Response
from protocol.commands import select
from protocol.errors import Check, DecodeError, VerificationError
from protocol.scp11 import Variant
from protocol.status import StatusError, StatusWord
from tests.trusted_key import certificates as made
from tests.trusted_key.certificates import NOW, Wanted, x509_of
from tests.trusted_key.small_key import (
    BREAK,
    COUNT,
    ECHO,
    GIVE,
    HOST,
    IDENTITY,
    NAME,
    PAIRED,
    PAIRING,
    PEER,
    REFUSE,
    WARN,
    WHO,
    Bench,
)
from wallet.tee.key_channel import HostIdentity, KeyChannel, PairedKey, open_scp11a, open_scp11b
from wallet.trusted_key.module import Access
from wallet.trusted_key.secure_channel import KeyIdentity, SecureChannel

pytestmark = pytest.mark.requirement("K1")
GP_HOST = HostIdentity(made.HOST_KEY, (made.GP_AUTHORITY, made.GP_HOST))


@pytest.mark.parametrize("paired", [PAIRED, PairedKey(made.GP_KEY)], ids=["x509", "7F21"])
@pytest.mark.parametrize(
    "host", [HOST, GP_HOST, HostIdentity(made.HOST_KEY, (made.HOST,))], ids=["x509", "7F21", "leaf"]
)
def test_a_paired_trusted_world_is_known_by_name(bench: Bench, host: HostIdentity, paired: PairedKey) -> None:
    channel = bench.opened(host, paired)
    assert bench.channel.access == Access(secure=True, peer=PEER)
    assert bench.ask(channel, WHO).data == b"\1" + PEER


def test_anybody_may_open_scp11b_and_is_nobody(bench: Bench) -> None:
    channel = bench.opened(None)
    assert bench.channel.access == Access(secure=True, peer=b"")
    assert bench.ask(channel, WHO).data == b"\1"


def test_without_a_channel_a_command_is_neither_secure_nor_anybodys(bench: Bench) -> None:
    assert bench.send(Command(0x80, WHO, 0, 0, b"", MAX_NE)).data == b"\0"


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "chained"])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 231, 232, 239, 240, 255, 256, 300, 5000])
def test_data_of_every_length_goes_both_ways(length: int, extended: bool) -> None:
    bench = Bench(extended=extended)
    channel = bench.opened()
    for ne in (256, MAX_NE):
        data = bytes(at % 251 for at in range(length))
        answer = bench.ask(channel, ECHO, data, ne)
        assert (answer.data, answer.sw) == (data, StatusWord.OK)


@given(
    st.lists(st.tuples(st.sampled_from([ECHO, COUNT, WARN, REFUSE, WHO, BREAK]), st.binary(max_size=40)), max_size=8)
)
def test_a_channel_lives_through_whatever_the_modules_answer(said: list[tuple[int, bytes]]) -> None:
    bench = Bench()
    channel = bench.opened()
    expected = {COUNT: (b"", 0x9000), WARN: (b"warned", 0x6300), REFUSE: (b"", 0x6985), BREAK: (b"", 0x6F00)}
    for ins, data in said:
        answer = bench.ask(channel, ins, data)
        assert (answer.data, answer.sw) == {**expected, ECHO: (data, 0x9000), WHO: (b"\1" + PEER, 0x9000)}[ins]
    assert bench.key.counted == [ins for ins, _ in said].count(COUNT)


def test_a_session_longer_than_any_tap_goes_on(bench: Bench) -> None:
    channel = bench.opened()
    for _ in range(8):
        secured = channel.wrap(Command(0x80, GIVE, 0x40, 0, b"", MAX_NE))
        assert len(channel.unwrap(bench.send(secured)).data) == 0x4000


def test_each_channel_has_keys_of_its_own(bench: Bench) -> None:
    first, second = bench.opened(), bench.opened()
    assert first._session != second._session
    assert bench.ask(second, ECHO, b"again").data == b"again"


def test_certificates_are_read_through_the_channel_too(bench: Bench) -> None:
    channel = bench.opened()
    secured = channel.wrap(scp11.get_certificates(Variant.SCP11A, 1))
    assert channel.unwrap(bench.send(secured)).data == made.AUTHORITY + made.KEY


@pytest.mark.parametrize(
    "command",
    [select(NAME), Command(0x80, ECHO, 0, 0, b"plain", 256), scp11.get_certificates(Variant.SCP11A, 1)],
    ids=["SELECT", "command", "GET DATA"],
)
def test_what_is_not_in_the_channel_ends_it(bench: Bench, command: Command) -> None:
    channel = bench.opened()
    bench.send(command)
    assert not bench.channel.is_open
    assert bench.channel.access == Access()
    assert bench.send(channel.wrap(Command(0x80, COUNT, 0, 0))).sw is StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert bench.key.counted == 0


def test_a_plain_command_is_not_done_while_a_channel_is_open(bench: Bench) -> None:
    bench.opened()
    assert bench.send(Command(0x80, COUNT, 0, 0)).sw is StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert bench.key.counted == 0


def test_the_field_going_off_ends_the_channel(bench: Bench) -> None:
    bench.opened()
    bench.card.deactivate()
    assert not bench.channel.is_open


def test_an_answer_without_a_channel_says_nothing(bench: Bench) -> None:
    secured = bench.opened().wrap(Command(0x80, ECHO, 0, 0, b"secret", 256))
    bench.channel.unwrap(secured)
    bench.channel.reset()
    assert bench.channel.wrap(Response(b"secret", StatusWord.OK)) == Response(
        b"", StatusWord.SECURITY_STATUS_NOT_SATISFIED
    )


# --- what the Key refuses in a handshake


def _statuses(bench: Bench, *commands: Command) -> list[StatusWord]:
    return [bench.send(command).sw for command in commands]


def _introduction(host: HostIdentity = HOST) -> list[Command]:
    channel = open_scp11a(host, PAIRED, NOW)
    return [step.command for step in channel._steps[1:]]


def test_scp11a_needs_a_certificate_first(bench: Bench) -> None:
    *_, agree = _introduction()
    assert _statuses(bench, agree) == [StatusWord.CONDITIONS_NOT_SATISFIED]


def test_a_certificate_is_good_for_one_channel(bench: Bench) -> None:
    bench.opened()
    *_, agree = _introduction()
    assert _statuses(bench, agree) == [StatusWord.CONDITIONS_NOT_SATISFIED]


def test_a_certificate_does_not_make_scp11b_somebody(bench: Bench) -> None:
    first, leaf, _ = _introduction()
    assert _statuses(bench, first, leaf) == [StatusWord.OK, StatusWord.OK]
    bench.opened(None)
    assert bench.channel.access.peer == b""


def test_an_authority_alone_is_nobody(bench: Bench) -> None:
    first, _, agree = _introduction()
    assert _statuses(bench, first, agree) == [StatusWord.OK, StatusWord.CONDITIONS_NOT_SATISFIED]


def test_a_chain_has_an_end(bench: Bench) -> None:
    first, *_ = _introduction()
    statuses = _statuses(bench, *[first] * (scp11.MAX_CERTIFICATES + 1))
    assert statuses == [StatusWord.OK] * scp11.MAX_CERTIFICATES + [StatusWord.WRONG_DATA]


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        (Command(0x80, 0x2A, 0, 0x20, made.HOST), 0x6A88),
        (Command(0x80, 0x2A, 0, 0x10, b"no certificate"), 0x6A80),
        (Command(0x80, 0x88, 1, 0x13, b"no agreement", 256), 0x6A80),
        (Command(0x80, 0x88, 1, 0x11, b"", 256), 0x6A88),
        (Command(0x80, 0x88, 2, 0x13, b"", 256), 0x6A88),
        (Command(0x80, 0x82, 1, 0x13, b"", 256), 0x6A88),
        (Command(0x00, 0x88, 1, 0x13, b"", 256), 0x6E00),
        (Command(0x80, 0xCA, 0xBF, 0x21, b"", 256), 0x6E00),
        (Command(0x00, 0xCA, 0xBF, 0x21, b"", 256), 0x6A88),
        (Command(0x00, 0xCA, 0xBF, 0x22, scp11.certificate_request(0x11, 1), 256), 0x6A88),
        (Command(0x00, 0xCA, 0xBF, 0x21, scp11.certificate_request(0x11, 2), 256), 0x6A88),
        (Command(0x00, 0xCA, 0xBF, 0x21, scp11.certificate_request(0x15, 1), 256), 0x6A88),
        (Command(0x84, 0x10, 0, 0, bytes(8), 256), 0x6982),
        (Command(0x04, 0x88, 1, 0x13, bytes(8), 256), 0x6982),
    ],
)
def test_what_the_key_does_not_take_has_its_status_word(bench: Bench, command: Command, sw: int) -> None:
    assert bench.send(command).sw == sw
    assert not bench.channel.is_open


@pytest.mark.parametrize("point", [bytes(65), b"\x04" + bytes(64)])
def test_a_point_beside_the_curve_opens_nothing(bench: Bench, point: bytes) -> None:
    agreement = scp11.KeyAgreement(scp11.ControlReference(0), point)
    assert bench.send(scp11.authenticate(Variant.SCP11B, 1, agreement)).sw is StatusWord.WRONG_DATA
    assert not bench.channel.is_open


def test_a_key_without_a_card_verifiable_certificate_has_none() -> None:
    bench = Bench(identity=KeyIdentity(made.KEY_KEY, (made.KEY,)))
    assert bench.send(scp11.get_certificates(Variant.SCP11A, 1, 0x7F21)).sw is StatusWord.REFERENCED_DATA_NOT_FOUND


def test_a_key_of_another_version_is_named_by_it() -> None:
    bench = Bench(identity=KeyIdentity(made.KEY_KEY, (made.KEY,), version=3))
    channel = bench.opened(paired=PairedKey(made.KEY, 3))
    assert bench.ask(channel, WHO).data == b"\1" + PEER


def test_a_peers_name_has_eight_bytes() -> None:
    bench = Bench(lambda certificate: b"short")
    assert _statuses(bench, *_introduction()[:2]) == [StatusWord.OK, StatusWord.NO_PRECISE_DIAGNOSIS]


# --- what the trusted world refuses


def test_the_trusted_world_names_the_command_that_was_refused(bench: Bench) -> None:
    channel = open_scp11a(HostIdentity(made.STRANGER_KEY, (made.STRANGER,)), PAIRED, NOW)
    with pytest.raises(StatusError, match="PERFORM SECURITY OPERATION"):
        bench.shake(channel)
    assert channel.next_command() is None
    _is_ended(channel)


def _is_ended(channel: KeyChannel) -> None:
    assert not channel.is_open
    with pytest.raises(VerificationError):
        channel.wrap(Command(0x80, ECHO, 0, 0))


def test_another_key_is_told_from_the_paired_one() -> None:
    other = Bench(identity=KeyIdentity(made.STRANGER_KEY, (made.STRANGER,)))
    channel = open_scp11a(HOST, PAIRED, NOW)
    with pytest.raises(VerificationError) as caught:
        other.shake(channel)
    assert caught.value.check is Check.CERTIFICATE_ISSUER
    _is_ended(channel)


@pytest.mark.parametrize(
    ("wanted", "check"),
    [
        (Wanted("Key", agreement=False), Check.CERTIFICATE_USAGE),
        (Wanted("Key", ends=NOW - timedelta(days=1)), Check.CERTIFICATE_EXPIRED),
        (Wanted("Key", begins=NOW + timedelta(days=1)), Check.CERTIFICATE_NOT_YET_VALID),
    ],
)
def test_a_paired_certificate_that_is_no_good_opens_nothing(wanted: Wanted, check: Check) -> None:
    with pytest.raises(VerificationError) as caught:
        open_scp11b(PairedKey(x509_of(wanted, made.KEY_KEY.public_key())), NOW)
    assert caught.value.check is check


def test_a_paired_certificate_that_is_none_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        open_scp11a(HOST, PairedKey(b"no certificate"))


def test_nothing_is_wrapped_before_the_channel_is_open(bench: Bench) -> None:
    channel = open_scp11a(HOST, PAIRED, NOW)
    _is_ended(channel)
    assert channel.next_command() is None


def test_a_command_that_cannot_be_secured_leaves_the_channel_open(bench: Bench) -> None:
    channel = bench.opened()
    for command in (Command(0x90, ECHO, 0, 0), Command(0x80, ECHO, 0, 0, bytes(MAX_DATA))):
        with pytest.raises(ValueError, match=r"class|more than"):
            channel.wrap(command)
    assert bench.ask(channel, ECHO, b"still here").data == b"still here"


@pytest.mark.parametrize("shown", [b"", b"\x30", made.KEY[:-1], made.AUTHORITY, made.KEY + made.AUTHORITY])
def test_certificates_that_are_not_the_paired_ones_end_the_channel(bench: Bench, shown: bytes) -> None:
    channel = open_scp11a(HOST, PAIRED, NOW)
    with pytest.raises(VerificationError):
        bench.shake(channel, lambda command, response: Response(shown, StatusWord.OK))
    _is_ended(channel)


def test_an_answer_that_nobody_asked_for_ends_the_channel(bench: Bench) -> None:
    channel = bench.opened()
    answer = bench.send(channel.wrap(Command(0x80, ECHO, 0, 0, b"one", 256)))
    channel.unwrap(answer)
    with pytest.raises(VerificationError):
        channel.unwrap(answer)
    _is_ended(channel)


def test_a_second_command_before_the_answer_ends_the_channel(bench: Bench) -> None:
    channel = bench.opened()
    channel.wrap(Command(0x80, ECHO, 0, 0))
    _is_ended(channel)


def test_an_answer_after_the_handshake_is_over_ends_the_channel(bench: Bench) -> None:
    channel = bench.opened()
    with pytest.raises(VerificationError):
        channel.take(bench.send(scp11.get_certificates(Variant.SCP11A, 1)))
    _is_ended(channel)


def test_private_keys_are_in_no_repr(bench: Bench) -> None:
    scalar = made.HOST_KEY.private_numbers().private_value
    shown = repr(HOST) + repr(IDENTITY) + repr(bench.channel) + repr(bench.opened())
    assert "EllipticCurvePrivateKey" not in shown
    assert str(scalar) not in shown


def test_certificates_are_judged_by_todays_date_unless_told_otherwise() -> None:
    channel = SecureChannel(IDENTITY, PAIRING)
    assert abs(channel._now() - NOW.now(NOW.tzinfo)) < timedelta(days=1)
