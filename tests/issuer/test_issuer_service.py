# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The issuer's answers: the same one to the same question, and none to a question that is not its asker's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from console.home import Home
from issuer import keys
from issuer.keys import SchemeKeys
from issuer.register import Register
from issuer.service import Issuer
from lab.fixtures import Laboratory, set_up_issuer
from pos import identity
from pos.outcome import OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol import signing
from protocol.certificate import Authority, Merchant, Usage, failed_checks
from protocol.errors import UsageError
from protocol.issuing import (
    Anchors,
    AnchorsRequest,
    BlockList,
    BlockListRequest,
    Issuance,
    IssuerRefusedError,
    Refusal,
    RefusalReason,
    TerminalApplication,
    TerminalIssuance,
    decode_message,
    encode_message,
    expect,
)
from protocol.signing import PrivateKey
from protocol.transport.issuer import IssuerLink
from protocol.vouchers import LoadRequest, Voucher
from protocol.wire import Wire
from tests.issuer.device import EUR, Device

_JPY, _NO_CURRENCY = 392, 1
_BAKERY = Merchant("Corner Bakery", 5462, EUR)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    set_up_issuer(made)
    return made


@pytest.fixture(scope="module")
def scheme(home: Home) -> SchemeKeys:
    return keys.load(home.issuer)


@pytest.fixture(scope="module")
def issuer(home: Home) -> Iterator[Issuer]:
    with closing(Issuer(home.issuer)) as made:
        yield made


@pytest.fixture
def device() -> Device:
    return Device()


def _ask(issuer: Issuer, request: Wire) -> bytes:
    return issuer.handle(encode_message(request))


def _refusal(issuer: Issuer, request: Wire) -> RefusalReason:
    with pytest.raises(IssuerRefusedError) as refused:
        expect(_ask(issuer, request), Refusal)
    return refused.value.reason


# --- anchors


def test_the_anchors_are_the_public_halves_of_the_keys(issuer: Issuer, scheme: SchemeKeys) -> None:
    anchors = expect(_ask(issuer, AnchorsRequest()), Anchors)
    assert anchors == scheme.anchors
    assert len({anchors.issuer_key, anchors.operations_key, anchors.acquirer_key}) == 3


# --- applications


def test_an_application_brings_a_certificate_and_a_number_for_each_key(
    issuer: Issuer, scheme: SchemeKeys, device: Device
) -> None:
    credentials = [PrivateKey.generate() for _ in range(3)]
    application = device.application(*credentials)
    issuance = expect(_ask(issuer, application), Issuance)
    today = datetime.now(UTC).date()
    authority = Authority(keys.ISSUER_ID, scheme.issuer.public)
    assert [one.public_key for one in issuance.certificates] == [one.public for one in credentials]
    for certificate in issuance.certificates:
        assert failed_checks(certificate, Usage.CREDENTIAL, authority, today) == []
        assert certificate.offline_ceiling == 1000_00
    assert len(set(device.numbers(application, issuance))) == 3
    signed = issuance.signature_input(application.digest())
    assert signing.is_valid(scheme.operations.public, issuance.signature, signed)


def test_the_ceiling_is_in_the_minor_units_of_the_currency(issuer: Issuer, device: Device) -> None:
    issuance = expect(_ask(issuer, device.application(currency=_JPY)), Issuance)
    assert issuance.certificates[0].offline_ceiling == 1000


def test_serials_and_numbers_are_never_given_twice_and_say_nothing(issuer: Issuer) -> None:
    serials, numbers = set(), set()
    for _ in range(3):
        device = Device()
        application = device.application(*[PrivateKey.generate() for _ in range(20)])
        issuance = expect(_ask(issuer, application), Issuance)
        serials |= {one.serial for one in issuance.certificates}
        numbers |= set(device.numbers(application, issuance))
    assert (len(serials), len(numbers)) == (60, 60)
    assert len({serial[:2] for serial in serials}) > 50  # random, not counted


def test_the_same_application_brings_the_same_certificates_and_numbers(issuer: Issuer, device: Device) -> None:
    application = device.application(*[PrivateKey.generate() for _ in range(3)])
    first, second = (expect(_ask(issuer, application), Issuance) for _ in range(2))
    assert first.certificates == second.certificates
    assert device.numbers(application, first) == device.numbers(application, second)


def test_a_key_keeps_its_certificate_in_another_application_of_the_same_wallet(issuer: Issuer, device: Device) -> None:
    old, new = PrivateKey.generate(), PrivateKey.generate()
    first = expect(_ask(issuer, device.application(old)), Issuance)
    second = expect(_ask(issuer, device.application(new, old)), Issuance)
    assert second.certificates[1] == first.certificates[0]
    assert second.certificates[0] != first.certificates[0]


def test_an_application_that_its_device_did_not_sign_is_refused(issuer: Issuer, device: Device) -> None:
    application = device.application()
    forged = replace(application, signature=PrivateKey.generate().sign(application.signature_input()))
    assert _refusal(issuer, forged) is RefusalReason.SIGNATURE
    assert _refusal(issuer, replace(application, currency=_JPY)) is RefusalReason.SIGNATURE
    assert _refusal(issuer, replace(application, sealing_key=bytes(32))) is RefusalReason.SIGNATURE
    assert _refusal(issuer, device.load_request(1)) is RefusalReason.UNKNOWN_DEVICE  # nothing was remembered


def test_a_key_of_another_wallet_is_refused_and_nothing_else_of_that_application_counts(
    issuer: Issuer, device: Device
) -> None:
    theirs, mine = PrivateKey.generate(), PrivateKey.generate()
    _ask(issuer, Device().application(theirs))
    assert _refusal(issuer, device.application(mine, theirs)) is RefusalReason.KEY_TAKEN
    assert _refusal(issuer, device.load_request(1)) is RefusalReason.UNKNOWN_DEVICE
    assert expect(_ask(issuer, Device().application(mine)), Issuance).certificates


def test_a_currency_that_is_none_or_another_than_before_is_refused(issuer: Issuer, device: Device) -> None:
    assert _refusal(issuer, device.application(currency=_NO_CURRENCY)) is RefusalReason.UNKNOWN_CURRENCY
    _ask(issuer, device.application())
    assert _refusal(issuer, device.application(currency=_JPY)) is RefusalReason.CURRENCY


def test_a_sealing_key_that_is_none_is_refused_and_nothing_is_remembered(issuer: Issuer, device: Device) -> None:
    unsigned = replace(device.application(), sealing_key=bytes(32))  # of low order
    application = replace(unsigned, signature=device.key.sign(unsigned.signature_input()))
    assert _refusal(issuer, application) is RefusalReason.MALFORMED
    assert _refusal(issuer, device.load_request(1)) is RefusalReason.UNKNOWN_DEVICE


# --- loads


@pytest.fixture
def enrolled(issuer: Issuer, device: Device) -> Device:
    _ask(issuer, device.application())
    return device


def test_a_load_brings_a_voucher_that_the_operations_key_signed(
    issuer: Issuer, scheme: SchemeKeys, enrolled: Device
) -> None:
    voucher = expect(_ask(issuer, enrolled.load_request(1)), Voucher)
    assert (voucher.device, voucher.number, voucher.amount, voucher.currency) == (enrolled.id, 1, 10_00, EUR)
    assert signing.is_valid(scheme.operations.public, voucher.signature, voucher.signature_input())


def test_the_same_load_brings_the_same_voucher_and_costs_once(issuer: Issuer, home: Home, enrolled: Device) -> None:
    request = enrolled.load_request(1)
    assert _ask(issuer, request) == _ask(issuer, request)
    assert _ask(issuer, enrolled.load_request(1, amount=99_00)) == _ask(issuer, request)
    with closing(Register(home.issuer)) as register:
        (mine,) = [one for one in register.wallets() if one.device == enrolled.id.hex()]
    assert mine.loaded.minor == 10_00


@pytest.mark.parametrize("number", [0, 2, 3, 2**32 - 1])
def test_a_first_load_of_another_number_is_refused(issuer: Issuer, enrolled: Device, number: int) -> None:
    assert _refusal(issuer, enrolled.load_request(number)) is RefusalReason.LOAD_NUMBER


def test_loads_go_up_by_one(issuer: Issuer, enrolled: Device) -> None:
    for number in (1, 2, 3):
        assert expect(_ask(issuer, enrolled.load_request(number)), Voucher).number == number
    for number in (0, 5):
        assert _refusal(issuer, enrolled.load_request(number)) is RefusalReason.LOAD_NUMBER


def test_every_load_can_be_repeated_and_brings_the_same_voucher(issuer: Issuer, enrolled: Device) -> None:
    first, second = (_ask(issuer, enrolled.load_request(number)) for number in (1, 2))
    assert [_ask(issuer, enrolled.load_request(number)) for number in (1, 2)] == [first, second]


def test_a_load_that_another_wallet_signed_is_refused(issuer: Issuer, enrolled: Device) -> None:
    request = enrolled.load_request(1)
    other = Device()
    _ask(issuer, other.application())
    forged = replace(request, signature=other.key.sign(request.signature_input()))
    assert _refusal(issuer, forged) is RefusalReason.SIGNATURE
    assert _refusal(issuer, replace(request, amount=99_00)) is RefusalReason.SIGNATURE
    assert _refusal(issuer, replace(request, device=other.id)) is RefusalReason.SIGNATURE


def test_a_voucher_is_no_request_for_another(issuer: Issuer, enrolled: Device) -> None:
    voucher = expect(_ask(issuer, enrolled.load_request(1)), Voucher)
    assert _refusal(issuer, LoadRequest.decode(voucher.encode())) is RefusalReason.SIGNATURE


def test_a_load_in_another_currency_is_refused(issuer: Issuer, enrolled: Device) -> None:
    assert _refusal(issuer, enrolled.load_request(1, currency=_JPY)) is RefusalReason.CURRENCY


# --- terminals


def _terminal(key: PrivateKey, terminal_id: str, merchant: Merchant = _BAKERY) -> TerminalApplication:
    unsigned = TerminalApplication(key.public, terminal_id, merchant, bytes(64))
    return replace(unsigned, signature=key.sign(unsigned.signature_input()))


def test_a_terminal_is_certified_by_the_acquirer_for_two_years(issuer: Issuer, scheme: SchemeKeys) -> None:
    key = PrivateKey.generate()
    certificate = expect(_ask(issuer, _terminal(key, "TERM0100")), TerminalIssuance).certificate
    today = datetime.now(UTC).date()
    authority = Authority(keys.ACQUIRER_ID, scheme.acquirer.public)
    assert failed_checks(certificate, Usage.TERMINAL, authority, today) == []
    assert (certificate.public_key, certificate.terminal_id, certificate.merchant) == (key.public, "TERM0100", _BAKERY)
    assert certificate.valid_until.year == today.year + 2


@pytest.mark.parametrize(
    ("today", "until"),
    [(date(2028, 2, 29), date(2030, 2, 28)), (date(2026, 12, 31), date(2028, 12, 28))],
)
def test_a_terminal_is_certified_on_every_day_of_the_calendar(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, today: date, until: date
) -> None:
    monkeypatch.setattr(issuer, "_today", lambda: today)
    request = _terminal(PrivateKey.generate(), f"D{today:%y%m%d}")
    certificate = expect(_ask(issuer, request), TerminalIssuance).certificate
    assert (certificate.valid_from, certificate.valid_until) == (today, until)


def test_the_same_terminal_gets_the_same_certificate(issuer: Issuer) -> None:
    request = _terminal(PrivateKey.generate(), "TERM0101")
    assert _ask(issuer, request) == _ask(issuer, request)


def test_a_terminal_id_belongs_to_one_key(issuer: Issuer) -> None:
    _ask(issuer, _terminal(PrivateKey.generate(), "TERM0102"))
    assert _refusal(issuer, _terminal(PrivateKey.generate(), "TERM0102")) is RefusalReason.TERMINAL_ID_TAKEN


def test_a_terminal_that_does_not_hold_its_key_is_refused(issuer: Issuer) -> None:
    request = _terminal(PrivateKey.generate(), "TERM0103")
    forged = replace(request, signature=PrivateKey.generate().sign(request.signature_input()))
    assert _refusal(issuer, forged) is RefusalReason.SIGNATURE
    assert _refusal(issuer, replace(request, merchant=replace(_BAKERY, name="Somebody"))) is RefusalReason.SIGNATURE


def test_a_merchant_with_a_currency_that_is_none_is_refused_and_nothing_is_remembered(
    issuer: Issuer, home: Home
) -> None:
    request = _terminal(PrivateKey.generate(), "TERM0106", replace(_BAKERY, currency=_NO_CURRENCY))
    assert _refusal(issuer, request) is RefusalReason.UNKNOWN_CURRENCY
    with closing(Register(home.issuer)) as register:
        assert "TERM0106" not in [one.terminal_id for one in register.terminals()]


# --- lists


def test_the_list_is_signed_and_names_what_was_blocked(
    issuer: Issuer, home: Home, scheme: SchemeKeys, device: Device
) -> None:
    application = device.application()
    issuance = expect(_ask(issuer, application), Issuance)
    terminal = expect(_ask(issuer, _terminal(PrivateKey.generate(), "TERM0104")), TerminalIssuance).certificate
    with closing(Register(home.issuer)) as register:
        register.block_terminal("TERM0104")
        register.block_card(issuance.certificates[0].serial.hex())
    listed = expect(_ask(issuer, BlockListRequest()), BlockList)
    assert signing.is_valid(scheme.operations.public, listed.signature, listed.signature_input())
    assert listed.terminals == (terminal.serial,)
    assert [one.digits for one in listed.numbers] == device.numbers(application, issuance)
    assert abs(listed.time - datetime.now(UTC).timestamp()) < 60


def test_a_blocked_card_is_listed_until_its_certificate_expires(
    issuer: Issuer, home: Home, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = device.application()
    issuance = expect(_ask(issuer, application), Issuance)
    with closing(Register(home.issuer)) as register:
        register.block_card(issuance.certificates[0].serial.hex())
    (number,) = device.numbers(application, issuance)
    last = datetime.combine(issuance.certificates[0].valid_until, time.max, UTC)
    for now, listed in ((last, True), (last + timedelta(seconds=1), False)):
        monkeypatch.setattr(issuer, "_clock", now.timestamp)
        numbers = expect(_ask(issuer, BlockListRequest()), BlockList).numbers
        assert (number in [one.digits for one in numbers]) is listed


def test_a_blocked_terminal_is_listed_until_its_certificate_expires(
    issuer: Issuer, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = expect(_ask(issuer, _terminal(PrivateKey.generate(), "TERM0107")), TerminalIssuance).certificate
    with closing(Register(home.issuer)) as register:
        register.block_terminal("TERM0107")
    last = datetime.combine(terminal.valid_until, time.max, UTC)
    for now, listed in ((last, True), (last + timedelta(seconds=1), False)):
        monkeypatch.setattr(issuer, "_clock", now.timestamp)
        assert (terminal.serial in expect(_ask(issuer, BlockListRequest()), BlockList).terminals) is listed


def test_blocking_what_is_not_known_is_said_in_a_sentence(home: Home) -> None:
    with closing(Register(home.issuer)) as register:
        for block, name, sentence in (
            (register.block_terminal, "NOBODY", "no terminal NOBODY was ever certified"),
            (register.block_card, "00" * 8, "no card has the serial"),
            (register.block_card, "not hex", "is no serial"),
        ):
            with pytest.raises(UsageError, match=sentence):
                block(name)


def test_a_blocked_card_is_refused_by_a_terminal_that_has_the_list() -> None:
    with Laboratory(balance="20.00") as laboratory:
        with closing(Register(laboratory.home.issuer)) as register:
            for card in register.cards():
                register.block_card(card.serial)
        assert laboratory.charge("1.00").approved
        own = identity.load(laboratory.home.pos)
        with IssuerLink(laboratory.home.issuer_url) as link:
            identity.fetch_list(laboratory.home.pos, own.anchors, link)
        laboratory.terminal.close()
        laboratory.terminal = Terminal.open(laboratory.home.path, TerminalOptions(timeout=1.0))
        outcome = laboratory.charge("1.00")
        assert (outcome.kind, outcome.charged) == (OutcomeKind.NOT_VERIFIED, False)
        assert outcome.reason == "virtual card number on the blocked list"
        assert laboratory.balance.minor == 19_00


# --- what nobody may see


def test_the_register_shows_masked_numbers_only(issuer: Issuer, home: Home, device: Device) -> None:
    application = device.application()
    (number,) = device.numbers(application, expect(_ask(issuer, application), Issuance))
    with closing(Register(home.issuer)) as register:
        cards = register.cards()
    assert number not in repr(cards)
    assert f"{number[:6]}••••••{number[-4:]}" in {one.masked_number for one in cards}


# --- anything at all


@given(request=st.binary(max_size=400) | st.builds(lambda kind, body: bytes([kind]) + body, st.integers(0, 255),
                                                   st.binary(max_size=400)))  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_answered(issuer: Issuer, request: bytes) -> None:
    answer = decode_message(issuer.handle(request))
    assert isinstance(answer, Refusal | Anchors | BlockList)


@given(data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_request_with_a_byte_changed_is_refused(issuer: Issuer, enrolled: Device, data: st.DataObject) -> None:
    good = encode_message(
        data.draw(
            st.sampled_from(
                [enrolled.application(), enrolled.load_request(1), _terminal(PrivateKey.generate(), "TERM0105")]
            )
        )
    )
    at = data.draw(st.integers(1, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    assert isinstance(decode_message(issuer.handle(bad)), Refusal)


@pytest.mark.parametrize("answer", [Refusal(RefusalReason.BLOCKED), Voucher(bytes(8), 1, 1, EUR, bytes(64))])
def test_an_answer_is_no_request(issuer: Issuer, answer: Wire) -> None:
    assert _refusal(issuer, answer) is RefusalReason.MALFORMED


def test_an_issuer_that_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make one with `tap-issuer init`"):
        Issuer(tmp_path)
