# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Whoever carries the bytes attacks the channel. Where the attack is on one check, it works once that check is taken out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protocol import scp03, scp11
from protocol.apdu import Command, Response
from protocol.channel_certificate import read
from protocol.errors import Check, VerificationError
from protocol.scp03 import SecureMessaging
from protocol.scp11 import ControlReference, KeyAgreement, KeyAgreementAnswer, Variant
from protocol.status import StatusWord
from tests.trusted_key import certificates as made
from tests.trusted_key.certificates import NOW, Wanted, x509_of
from tests.trusted_key.small_key import COUNT, ECHO, HOST, IDENTITY, PAIRED, PAIRING, PEER, REFUSE, WHO, Bench
from wallet.tee import key_channel
from wallet.tee.key_channel import HostIdentity, KeyChannel, open_scp11a
from wallet.trusted_key import secure_channel
from wallet.trusted_key.module import Access
from wallet.trusted_key.secure_channel import pinned

pytestmark = pytest.mark.requirement("K1")
REFUSED = StatusWord.SECURITY_STATUS_NOT_SATISFIED
Alter = Callable[[Response], Response]


def _count(channel: KeyChannel) -> Command:
    return channel.wrap(Command(0x80, COUNT, 0, 0))


def _without_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the comparison of MACs out, at both ends."""
    monkeypatch.setattr(scp03, "_matching", lambda candidates, mac: candidates[0])


def _refuses(bench: Bench, command: Command) -> None:
    """Require that the Key refuses `command`, does nothing, and ends the channel."""
    counted = bench.key.counted
    assert bench.send(command) == Response(b"", REFUSED)
    assert (bench.key.counted, bench.channel.is_open, bench.channel.access) == (counted, False, Access())


def _ends(channel: KeyChannel, response: Response) -> None:
    """Require that the trusted world refuses `response`, and everything after it."""
    with pytest.raises(VerificationError) as caught:
        channel.unwrap(response)
    assert caught.value.check is Check.CHANNEL
    assert not channel.is_open
    with pytest.raises(VerificationError):
        channel.wrap(Command(0x80, ECHO, 0, 0))
    with pytest.raises(VerificationError):
        channel.unwrap(response)


# --- commands


COMMAND_ATTACKS = {
    "MAC removed": lambda command: command.with_data(command.data[:-8]),
    "MAC cut": lambda command: command.with_data(command.data[:-1]),
    "MAC of zeros": lambda command: command.with_data(command.data[:-8] + bytes(8)),
    "MAC alone": lambda command: command.with_data(command.data[-8:]),
    "data changed": lambda command: command.with_data(bytes([command.data[0] ^ 1]) + command.data[1:]),
    "data added": lambda command: command.with_data(bytes(16) + command.data),
    "instruction changed": lambda command: replace(command, ins=COUNT),
    "parameter changed": lambda command: replace(command, p1=1),
    "class changed": lambda command: replace(command, cla=0x04),
    "no data": lambda command: command.with_data(b""),
}


@pytest.mark.parametrize("attack", COMMAND_ATTACKS.values(), ids=COMMAND_ATTACKS)
def test_a_command_that_was_changed_is_not_done(bench: Bench, attack: Callable[[Command], Command]) -> None:
    channel = bench.opened()
    _refuses(bench, attack(channel.wrap(Command(0x80, ECHO, 0, 0, b"pay 10.00", 256))))


def test_an_instruction_that_was_changed_is_done_without_macs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_macs(monkeypatch)
    channel = bench.opened()
    bench.send(replace(channel.wrap(Command(0x80, ECHO, 0, 0)), ins=COUNT))
    assert bench.key.counted == 1


def test_the_secure_messaging_bit_taken_away_ends_the_channel(bench: Bench) -> None:
    channel = bench.opened()
    _refuses(bench, replace(_count(channel), cla=0x80))


def test_the_bit_taken_away_is_done_where_plain_commands_are(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.channel, "refuse_plain", lambda: None)
    channel = bench.opened()
    assert bench.send(replace(_count(channel), cla=0x80)).sw is StatusWord.OK
    assert bench.key.counted == 1


def test_a_command_that_is_replayed_is_not_done_again(bench: Bench) -> None:
    channel = bench.opened()
    command = _count(channel)
    channel.unwrap(bench.send(command))
    _refuses(bench, command)
    assert bench.key.counted == 1


def test_a_command_that_is_replayed_is_done_again_without_macs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_macs(monkeypatch)
    command = _count(bench.opened())
    bench.send(command)
    bench.send(command)
    assert bench.key.counted == 2


def test_commands_of_another_channel_are_not_done(bench: Bench) -> None:
    command = _count(bench.opened())
    bench.opened()
    _refuses(bench, command)


def test_commands_in_another_order_are_not_done(bench: Bench) -> None:
    channel = bench.opened()
    session = channel._session
    assert session is not None
    following, first = scp03.wrap_command(session, Command(0x80, ECHO, 0, 0, b"first"))
    _, second = scp03.wrap_command(following, Command(0x80, COUNT, 0, 0))
    _refuses(bench, second)
    _refuses(bench, first)


def test_a_command_that_was_lost_ends_the_channel_at_the_next_one(bench: Bench) -> None:
    channel = bench.opened()
    channel.wrap(Command(0x80, ECHO, 0, 0, b"lost", 256))
    assert channel.unwrap(Response(b"", StatusWord.CONDITIONS_NOT_SATISFIED)).sw is StatusWord.CONDITIONS_NOT_SATISFIED
    _refuses(bench, _count(channel))


@pytest.mark.parametrize("counter", [1, 2, 255])
def test_a_counter_that_was_set_back_or_forward_is_found(bench: Bench, counter: int) -> None:
    channel = bench.opened()
    assert channel._session is not None
    channel._session = replace(channel._session, counter=counter)
    _refuses(bench, channel.wrap(Command(0x80, ECHO, 0, 0, b"out of step", 256)))


def test_an_answer_sent_back_as_a_command_is_not_done(bench: Bench) -> None:
    channel = bench.opened()
    answer = bench.send(channel.wrap(Command(0x80, ECHO, 0, 0, b"mirror", 256)))
    _refuses(bench, Command(0x84, ECHO, 0, 0, answer.data, 256))


def test_a_handshake_inside_the_channel_ends_it(bench: Bench) -> None:
    channel = bench.opened()
    agreement = KeyAgreement(ControlReference(0), scp11.point_of(made.STRANGER_KEY.public_key()))
    inside = channel.wrap(scp11.authenticate(Variant.SCP11B, 1, agreement))
    _refuses(bench, inside)


def test_the_channel_does_not_come_back_after_a_failed_check(bench: Bench) -> None:
    channel = bench.opened()
    good = _count(channel)
    _refuses(bench, good.with_data(bytes(8)))
    _refuses(bench, good)


# --- answers


ANSWER_ATTACKS: dict[str, Alter] = {
    "MAC removed": lambda answer: Response(answer.data[:-8], answer.sw),
    "MAC cut": lambda answer: Response(answer.data[:-1], answer.sw),
    "MAC of zeros": lambda answer: Response(answer.data[:-8] + bytes(8), answer.sw),
    "MAC alone": lambda answer: Response(answer.data[-8:], answer.sw),
    "empty": lambda answer: Response(b"", answer.sw),
    "warning and empty": lambda answer: Response(b"", StatusWord(0x6300)),
    "data changed": lambda answer: Response(bytes([answer.data[0] ^ 1]) + answer.data[1:], answer.sw),
    "status word changed": lambda answer: Response(answer.data, StatusWord(0x6283)),
    "error with data": lambda answer: Response(answer.data, StatusWord.CONDITIONS_NOT_SATISFIED),
}


@pytest.mark.parametrize("attack", ANSWER_ATTACKS.values(), ids=ANSWER_ATTACKS)
def test_an_answer_that_was_changed_is_not_believed(bench: Bench, attack: Alter) -> None:
    channel = bench.opened()
    answer = bench.send(channel.wrap(Command(0x80, ECHO, 0, 0, b"balance 10.00", 256)))
    _ends(channel, attack(answer))


def test_an_empty_answer_without_a_mac_is_not_believed(bench: Bench) -> None:
    channel = bench.opened()
    _count(channel)
    _ends(channel, Response(b"", StatusWord.OK))
    assert bench.key.counted == 0


def test_an_empty_answer_is_believed_where_only_data_has_its_mac_checked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = scp03.unwrap_response

    def classic(state: SecureMessaging, response: Response) -> Response:
        return checked(state, response) if response.data else response

    monkeypatch.setattr(scp03, "unwrap_response", classic)
    channel = bench.opened()
    _count(channel)
    assert channel.unwrap(Response(b"", StatusWord.OK)).sw is StatusWord.OK
    assert bench.key.counted == 0, "the trusted world believes that it was done"


def test_an_answer_that_was_changed_is_believed_without_macs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_macs(monkeypatch)
    channel = bench.opened()
    answer = bench.send(channel.wrap(Command(0x80, WHO, 0, 0)))
    assert channel.unwrap(Response(answer.data, StatusWord(0x6283))).sw == 0x6283


def test_a_command_sent_back_as_an_answer_is_not_believed(bench: Bench) -> None:
    channel = bench.opened()
    _ends(channel, Response(channel.wrap(Command(0x80, ECHO, 0, 0, b"mirror", 256)).data, StatusWord.OK))


def test_a_command_sent_back_is_not_believed_even_with_one_mac_key(bench: Bench) -> None:
    """The header in the C-MAC and the status word in the R-MAC still tell one from the other."""
    session = bench.opened()._session
    assert session is not None
    one_key = replace(session, keys=replace(session.keys, rmac=session.keys.mac))
    state, secured = scp03.wrap_command(one_key, Command(0x80, ECHO, 0, 0, b"mirror", 256))
    with pytest.raises(VerificationError):
        scp03.unwrap_response(state, Response(secured.data, StatusWord.OK))


def test_an_answer_that_is_replayed_is_not_believed(bench: Bench) -> None:
    channel = bench.opened()
    first = bench.send(_count(channel))
    channel.unwrap(first)
    _count(channel)
    _ends(channel, first)


def test_an_answer_that_is_replayed_is_believed_without_macs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_macs(monkeypatch)
    channel = bench.opened()
    first = bench.send(_count(channel))
    channel.unwrap(first)
    _count(channel)
    assert channel.unwrap(first).sw is StatusWord.OK
    assert bench.key.counted == 1


def test_an_error_that_the_link_makes_up_is_no_success(bench: Bench) -> None:
    channel = bench.opened()
    channel.wrap(Command(0x80, COUNT, 0, 0))
    assert channel.unwrap(Response(b"", StatusWord.CONDITIONS_NOT_SATISFIED)) == Response(
        b"", StatusWord.CONDITIONS_NOT_SATISFIED
    )


def test_an_error_of_the_key_carries_nothing(bench: Bench) -> None:
    channel = bench.opened()
    assert bench.send(channel.wrap(Command(0x80, REFUSE, 0, 0))) == Response(b"", StatusWord.CONDITIONS_NOT_SATISFIED)


# --- who is who


@pytest.mark.parametrize("certificates", [(made.STRANGER,), (made.AUTHORITY, made.STRANGER)], ids=["leaf", "chain"])
def test_an_unknown_certificate_opens_nothing(bench: Bench, certificates: tuple[bytes, ...]) -> None:
    """That the same authority signed it does not help: pairing is by certificate."""
    assert _tried(bench, HostIdentity(made.STRANGER_KEY, certificates)) == [REFUSED]
    assert not bench.channel.is_open


def test_an_unknown_certificate_opens_a_channel_where_all_are_paired() -> None:
    bench = Bench(lambda certificate: PEER)
    channel = bench.opened(HostIdentity(made.STRANGER_KEY, (made.STRANGER,)))
    assert bench.ask(channel, WHO).data == b"\1" + PEER


def test_a_certificate_without_its_key_opens_a_channel_to_nobody(bench: Bench) -> None:
    """The Key answers, as it cannot know; the thief cannot derive the keys, so nothing is ever done."""
    channel = open_scp11a(HostIdentity(made.STRANGER_KEY, (made.HOST,)), PAIRED, NOW)
    with pytest.raises(VerificationError):
        bench.shake(channel)
    _refuses(bench, Command(0x84, COUNT, 0, 0, bytes(8)))


WRONG = {
    "usage": Wanted("Host", agreement=False),
    "no usage": Wanted("Host", with_usage=False),
    "an authority's": Wanted("Host", agreement=False, authority=True),
    "expired": Wanted("Host", ends=NOW - timedelta(seconds=1)),
    "not yet valid": Wanted("Host", begins=NOW + timedelta(seconds=1)),
}


@pytest.mark.parametrize("wanted", WRONG.values(), ids=WRONG)
def test_a_certificate_that_is_no_good_opens_nothing_although_it_is_paired(wanted: Wanted) -> None:
    bench, host = _paired_with(wanted)
    assert _tried(bench, host) == [REFUSED]
    assert not bench.channel.is_open


@pytest.mark.parametrize("wanted", WRONG.values(), ids=WRONG)
def test_a_certificate_that_is_no_good_opens_a_channel_where_it_is_not_looked_at(
    wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure_channel, "verify_chain", lambda chain, now: chain[-1])
    bench, host = _paired_with(wanted)
    assert bench.ask(bench.opened(host), WHO).data == b"\1" + PEER


def test_a_paired_leaf_under_another_authority_opens_nothing(bench: Bench) -> None:
    other = x509_of(
        Wanted("Authority", agreement=False, authority=True),
        made.STRANGE_AUTHORITY_KEY.public_key(),
        made.STRANGE_AUTHORITY_KEY,
    )
    assert _tried(bench, HostIdentity(made.HOST_KEY, (other, made.HOST))) == [REFUSED]


def _paired_with(wanted: Wanted) -> tuple[Bench, HostIdentity]:
    leaf = x509_of(wanted, made.HOST_KEY.public_key())
    return Bench(pinned({leaf: PEER})), HostIdentity(made.HOST_KEY, (leaf,))


def _tried(bench: Bench, host: HostIdentity) -> list[StatusWord]:
    """Send the certificates of a handshake and return the status words that are not 9000."""
    steps = open_scp11a(host, PAIRED, NOW)._steps[1:-1]
    return [response.sw for step in steps if (response := bench.send(step.command)).sw is not StatusWord.OK]


# --- a Key that is none


def _impostor(command: Command, response: Response) -> Response:
    """Answer as the Key does, with the Key's certificate and without its key."""
    if command.ins != Variant.SCP11A.ins:
        return response
    agreement = KeyAgreement.decode(command.data)
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    shared = scp11.exchange(ephemeral, agreement.point)
    keys = scp11.derive(shared, scp11.exchange(made.STRANGER_KEY, scp11.point_of(made.HOST_KEY.public_key())))
    point = scp11.point_of(ephemeral.public_key())
    return Response(KeyAgreementAnswer(point, scp11.receipt_of(keys, agreement, point)).encode(), StatusWord.OK)


def test_a_key_without_its_private_key_is_found_by_its_receipt(bench: Bench) -> None:
    channel = open_scp11a(HOST, PAIRED, NOW)
    with pytest.raises(VerificationError) as caught:
        bench.shake(channel, _impostor)
    assert caught.value.check is Check.CHANNEL
    assert not channel.is_open


def test_a_key_without_its_private_key_is_taken_for_it_where_the_receipt_is_not_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_channel, "bytes_eq", lambda ours, theirs: True)
    channel = open_scp11a(HOST, PAIRED, NOW)
    bench.shake(channel, _impostor)
    assert channel.is_open


@pytest.mark.parametrize("at", [3, 40, 68, 70, -1])
def test_an_answer_to_the_key_agreement_that_was_changed_opens_nothing(bench: Bench, at: int) -> None:
    def altered(command: Command, response: Response) -> Response:
        if command.ins != Variant.SCP11A.ins:
            return response
        data = bytearray(response.data)
        data[at] ^= 1
        return Response(bytes(data), response.sw)

    channel = open_scp11a(HOST, PAIRED, NOW)
    with pytest.raises(VerificationError):
        bench.shake(channel, altered)
    assert not channel.is_open


def test_a_key_agreement_that_was_changed_is_found_by_the_trusted_world(bench: Bench) -> None:
    """The link puts its own ephemeral point in: both ends then have other keys, and the receipt shows it."""
    channel = open_scp11a(HOST, PAIRED, NOW)
    own = KeyAgreement(ControlReference(1), scp11.point_of(made.STRANGER_KEY.public_key()))

    def altered(command: Command, response: Response) -> Response:
        if command.ins != Variant.SCP11A.ins:
            return response
        _tried(bench, HOST)
        return bench.send(command.with_data(own.encode()))

    with pytest.raises(VerificationError):
        bench.shake(channel, altered)
    assert not channel.is_open


# --- downgrade


LESS = {
    "C-MAC": replace(ControlReference(1), key_usage=0x14),
    "C-MAC and C-ENCRYPTION": replace(ControlReference(1), key_usage=0x1C),
    "C-MAC and R-MAC": replace(ControlReference(1), key_usage=0x34),
    "no usage": replace(ControlReference(1), key_usage=0),
    "SCP11b for SCP11a": ControlReference(0),
    "SCP11c": ControlReference(3),
    "with a host identifier": ControlReference(5),
    "3DES": replace(ControlReference(1), key_type=0x82),
    "AES-256": replace(ControlReference(1), key_length=32),
}


@pytest.mark.parametrize("control", LESS.values(), ids=LESS)
def test_less_than_full_security_opens_nothing(bench: Bench, control: ControlReference) -> None:
    assert _agreed(bench, control).sw is StatusWord.WRONG_DATA
    assert not bench.channel.is_open


@pytest.mark.parametrize("control", LESS.values(), ids=LESS)
def test_less_than_full_security_opens_a_channel_where_it_is_not_looked_at(
    bench: Bench, control: ControlReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scp11, "is_full", lambda control, variant: True)
    assert _agreed(bench, control).sw is StatusWord.OK
    assert bench.channel.access.peer == PEER


def _agreed(bench: Bench, control: ControlReference) -> Response:
    assert _tried(bench, HOST) == []
    point = scp11.point_of(made.key_of(77).public_key())
    return bench.send(scp11.authenticate(Variant.SCP11A, 1, KeyAgreement(control, point)))


def test_a_lower_level_on_the_way_is_found_by_the_key(bench: Bench) -> None:
    channel = open_scp11a(HOST, PAIRED, NOW)
    *_, agree = [step.command for step in channel._steps]
    lower = agree.with_data(agree.data.replace(bytes.fromhex("95013C"), bytes.fromhex("950114")))
    _tried(bench, HOST)
    assert lower != agree
    assert bench.send(lower).sw is StatusWord.WRONG_DATA


def test_pairings_are_of_whole_certificates() -> None:
    names = pinned({made.HOST: PEER})
    known = [read(one) for one in (made.HOST, made.GP_HOST, made.STRANGER)]
    assert [names(one) for one in known] == [PEER, None, None]
    assert (IDENTITY.version, PAIRING(known[1])) == (1, PEER)
