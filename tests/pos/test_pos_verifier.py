# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""S8 as a pure function: signatures first, then decryption, then the number; every failed check declines."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pos.verifier import Trust, VerifiedCard, verify
from protocol import envelope, tally
from protocol.card_number import CardNumber
from protocol.certificate import Authority, CredentialCertificate, Usage, issue
from protocol.errors import Check, VerificationError
from protocol.messages import NOTHING_OPEN, CardPlaintext
from protocol.secret import Secret
from protocol.signing import SIGNATURE_LENGTH, PrivateKey
from tests.end_to_end.parties import flip

TODAY = date(2026, 5, 15)
T2 = bytes(range(32))
NUMBER = CardNumber.from_index(42)
ISSUER = PrivateKey.from_scalar(b"\1" * 32)
CREDENTIAL = PrivateKey.from_scalar(b"\2" * 32)
STRANGER = PrivateKey.from_scalar(b"\3" * 32)
TAP_KEY = X25519PrivateKey.from_private_bytes(b"\4" * 32)
SECRET = Secret(b"\5" * 16)
TRUST = Trust(Authority(b"TLIS", ISSUER.public), TODAY, ())
UNSIGNED = CredentialCertificate(
    b"serial00",
    b"TLIS",
    Usage.CREDENTIAL,
    date(2026, 5, 1),
    date(2026, 6, 30),
    CREDENTIAL.public,
    bytes(SIGNATURE_LENGTH),
    100_000,
)
CERTIFICATE = issue(UNSIGNED, ISSUER)
CARD = CardPlaintext(NUMBER, 978, 1, SECRET, NOTHING_OPEN)


def answer(
    certificate: CredentialCertificate = CERTIFICATE,
    plaintext: bytes = CARD.encode(),
    key: PrivateKey = CREDENTIAL,
    t2: bytes = T2,
    tap_key: X25519PrivateKey = TAP_KEY,
) -> bytes:
    """Return an answer to GET VIRTUAL CARD: encrypted, then signed."""
    sealed = envelope.seal(plaintext, tap_key.public_key().public_bytes_raw(), envelope.card_info(t2))
    signature = key.sign(envelope.card_signature_input(t2, certificate.encode(), sealed))
    return sealed + signature + certificate.encode()


def judged(data: bytes, trust: Trust = TRUST, t2: bytes = T2) -> tuple[VerifiedCard | Check, int]:
    """Return what became of an answer, and how many ciphertexts were opened for it."""
    before = tally.snapshot()
    try:
        result: VerifiedCard | Check = verify(data, t2, TAP_KEY, trust)
    except VerificationError as error:
        result = error.check
    return result, tally.since(before)[tally.Operation.OPEN]


def test_a_good_card_is_verified() -> None:
    result, opened = judged(answer())
    assert isinstance(result, VerifiedCard)
    assert (result.card, result.credential, opened) == (CARD, CERTIFICATE, 1)


def test_two_answers_never_share_channel_keys() -> None:
    first, second = judged(answer())[0], judged(answer())[0]
    assert isinstance(first, VerifiedCard)
    assert isinstance(second, VerifiedCard)
    assert first.keys != second.keys
    assert first.keys.transaction_id != second.keys.transaction_id


@pytest.mark.attack("B6")
@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda: replace(UNSIGNED, usage=Usage.TERMINAL), Check.CERTIFICATE_USAGE),
        (lambda: replace(UNSIGNED, authority=b"ELSE"), Check.CERTIFICATE_ISSUER),
        (lambda: replace(UNSIGNED, valid_from=TODAY + timedelta(1)), Check.CERTIFICATE_NOT_YET_VALID),
        (lambda: replace(UNSIGNED, valid_until=TODAY - timedelta(1)), Check.CERTIFICATE_EXPIRED),
    ],
)
def test_a_certificate_that_does_not_fit_is_refused_unopened(
    change: Callable[[], CredentialCertificate], check: Check
) -> None:
    assert judged(answer(issue(change(), ISSUER))) == (check, 0)


def test_a_certificate_of_another_issuer_is_refused_unopened() -> None:
    assert judged(answer(issue(UNSIGNED, STRANGER))) == (Check.CERTIFICATE_SIGNATURE, 0)


def test_the_first_and_the_last_day_of_a_certificate_count() -> None:
    for today in (UNSIGNED.valid_from, UNSIGNED.valid_until):
        assert isinstance(judged(answer(), replace(TRUST, today=today))[0], VerifiedCard)


def test_an_answer_signed_with_another_key_is_refused_unopened() -> None:
    assert judged(answer(key=STRANGER)) == (Check.SIGNATURE, 0)


def test_an_answer_of_another_tap_is_refused_unopened() -> None:
    assert judged(answer(t2=bytes(32))) == (Check.SIGNATURE, 0)


def test_an_answer_sealed_to_another_key_is_refused() -> None:
    assert judged(answer(tap_key=X25519PrivateKey.generate())) == (Check.ENCRYPTION, 1)


def test_a_blocked_number_is_refused_after_it_was_opened() -> None:
    assert judged(answer(), replace(TRUST, blocked=(NUMBER,))) == (Check.CARD_BLOCKED, 1)


@pytest.mark.parametrize(
    "number",
    [
        bytes.fromhex("9999100000000420"),  # wrong check digit
        bytes.fromhex("4111111111111111"),  # of a real scheme's range
        bytes.fromhex("99991000000004AA"),  # no digits
    ],
)
def test_a_number_that_is_none_is_refused_after_it_was_opened(number: bytes) -> None:
    assert judged(answer(plaintext=number + CARD.encode()[8:])) == (Check.CARD_NUMBER, 1)


@pytest.mark.parametrize("plaintext", [CARD.encode() + b"\0", CARD.encode()[:-1], b""])
def test_a_plaintext_of_another_length_is_refused_unopened(plaintext: bytes) -> None:
    assert judged(answer(plaintext=plaintext)) == (Check.CERTIFICATE_FORMAT, 0)


@pytest.mark.attack("B6")
def test_a_change_at_any_byte_is_refused_and_nothing_is_opened() -> None:
    data = answer()
    kept = [
        position
        for position in range(len(data))
        for bit in (0x01, 0x80)
        if judged(flip(data, position, bit)) not in {(check, 0) for check in Check}
    ]
    assert kept == []


@pytest.mark.parametrize("count", [0, 1, 32, 91, 92, 155, 156, 157])
def test_an_answer_cut_short_is_refused_unopened(count: int) -> None:
    assert judged(answer()[:count]) == (Check.CERTIFICATE_FORMAT, 0)


def test_nothing_may_follow_the_answer() -> None:
    assert judged(answer() + b"\0") == (Check.CERTIFICATE_FORMAT, 0)


def test_random_bytes_are_refused_and_nothing_else_is_raised() -> None:
    for length in range(400):
        check, opened = judged(os.urandom(length))
        assert isinstance(check, Check)
        assert opened == 0


@pytest.mark.attack("V1")
def test_all_checks_are_made_even_when_the_first_fails() -> None:
    def verified(data: bytes) -> int:
        before = tally.snapshot()
        judged(data)
        return tally.since(before)[tally.Operation.VERIFY]

    bad_usage = answer(issue(replace(UNSIGNED, usage=Usage.TERMINAL), STRANGER), key=STRANGER)
    assert verified(bad_usage) == verified(answer()) == 2


def test_the_secret_is_not_shown() -> None:
    result = verify(answer(), T2, TAP_KEY, TRUST)
    shown = repr(result)
    assert NUMBER.digits not in shown
    assert bytes(SECRET).hex() not in shown
    assert repr(bytes(SECRET)) not in shown
    assert repr(bytes(result.keys.command_key)) not in shown
