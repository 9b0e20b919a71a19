# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the messages of the tap allow beyond their layouts, and what the parties sign of them."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from datetime import date, time
from typing import Any

import pytest

from protocol import signing
from protocol.certificate import CredentialCertificate, TerminalCertificate
from protocol.errors import DecodeError
from protocol.labels import Label, labelled
from protocol.messages import (
    SEALED_LENGTH,
    Confirm,
    Debit,
    DebitResult,
    GetVirtualCard,
    Receipt,
    Result,
    Settled,
    VirtualCard,
    certificate_hash,
)
from protocol.signing import PrivateKey

_DEBIT = Debit(1250, 978, date(2026, 7, 15), time(10, 11, 12))


@pytest.fixture
def receipt(terminal_certificate: TerminalCertificate, credential_certificate: CredentialCertificate) -> Receipt:
    hashes = certificate_hash(credential_certificate), certificate_hash(terminal_certificate)
    return Receipt(1, 1, *hashes, 7, bytes(range(16)), _DEBIT, Result.APPROVED)


@pytest.mark.parametrize("amount", [0, -1])
def test_payment_is_greater_than_zero(amount: int) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        replace(_DEBIT, amount=amount)


def test_payment_of_zero_on_the_wire_is_refused() -> None:
    with pytest.raises(DecodeError, match="greater than 0"):
        Debit.decode(bytes.fromhex("000000000000 0978 260715 101112"))


def test_payment_of_more_than_twelve_digits_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="12 digits"):
        replace(_DEBIT, amount=10**12).encode()


@pytest.mark.parametrize("day", [date(1999, 12, 31), date(2100, 1, 1)])
def test_date_outside_the_century_of_two_digits_is_not_encoded(day: date) -> None:
    with pytest.raises(ValueError, match="2000 to 2099"):
        replace(_DEBIT, date=day).encode()


@pytest.mark.parametrize(
    "data",
    [
        "00000000125A 0978 260715 101112",  # amount with a digit A
        "000000001250 097A 260715 101112",
        "000000001250 0978 260732 101112",  # 32 July
        "000000001250 0978 260229 101112",  # no leap year
        "000000001250 0978 260015 101112",
        "000000001250 0978 260715 240000",
        "000000001250 0978 260715 106000",
        "000000001250 0978 260715 101160",
    ],
)
def test_payment_with_an_impossible_field_is_refused(data: str) -> None:
    with pytest.raises(DecodeError, match="Debit"):
        Debit.decode(bytes.fromhex(data))


@pytest.mark.parametrize("length", [1, 15, 17, 32])
def test_confirmation_names_no_or_one_transaction(length: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Confirm(bytes(length))
    with pytest.raises(DecodeError, match="16 bytes"):
        Confirm.decode(bytes(length))


def test_every_result_has_one_length_on_the_wire() -> None:
    assert {len(DebitResult(result, bytes(64)).encode()) for result in Result} == {65}


def test_unknown_result_is_refused() -> None:
    for code in set(range(256)) - set(Result):
        with pytest.raises(DecodeError):
            DebitResult.decode(bytes([code]) + bytes(64))


def test_storage_failure_says_that_nothing_was_deducted() -> None:
    assert Result.STORAGE_FAILURE.words == "storage failure, nothing deducted"
    assert Result.SEE_PHONE.words == "see phone"


def test_value_that_was_encoded_is_replaced_by_one_that_encodes_anew(receipt: Receipt) -> None:
    before = receipt.encode()
    refused = replace(receipt, result=Result.OVER_LIMIT)
    assert refused.encode() == before[:-1] + b"\x02"
    assert receipt.encode() == before


def test_encoding_is_no_part_of_a_value(receipt: Receipt) -> None:
    other = replace(receipt)
    other.encode()
    assert other == receipt
    assert hash(other) == hash(receipt)
    assert repr(other) == repr(receipt)


def test_receipt_is_signed_over_label_and_everything(receipt: Receipt) -> None:
    assert receipt.signature_input() == labelled(Label.RECEIPT, receipt.encode())


def test_receipt_is_valid_as_signed_and_in_no_other_form(
    receipt: Receipt, credential_key: PrivateKey, credential_certificate: CredentialCertificate
) -> None:  # B2, B5
    signature = credential_key.sign(receipt.signature_input())
    assert receipt.is_shown_by(signature, credential_certificate)
    changed: dict[str, Any] = {
        "version": 2,
        "suite": 2,
        "credential_hash": bytes(32),
        "terminal_hash": bytes(32),
        "counter": 8,
        "transaction_id": bytes(16),
        "result": Result.OVER_LIMIT,
    }
    debits = [
        replace(_DEBIT, amount=1251),
        replace(_DEBIT, currency=392),
        replace(_DEBIT, date=date(2026, 7, 16)),
        replace(_DEBIT, time=time(10, 11, 13)),
    ]
    assert {*changed, "debit"} == {field.name for field in fields(Receipt)}
    for name, value in [*changed.items(), *(("debit", debit) for debit in debits)]:
        assert not replace(receipt, **{name: value}).is_shown_by(signature, credential_certificate), name


def test_receipt_is_not_valid_under_another_key(
    receipt: Receipt,
    credential_key: PrivateKey,
    terminal_key: PrivateKey,
    credential_certificate: CredentialCertificate,
) -> None:
    signature = credential_key.sign(receipt.signature_input())
    assert not receipt.is_shown_by(signature, replace(credential_certificate, public_key=terminal_key.public))


@pytest.fixture
def key_backed(credential_certificate: CredentialCertificate, terminal_key: PrivateKey) -> CredentialCertificate:
    """A credential that needs a Trusted Key, whose key is the terminal's here."""
    return replace(credential_certificate, co_signing_key=terminal_key.public)


@pytest.mark.requirement("K3")
def test_a_key_backed_receipt_needs_both_signatures(
    receipt: Receipt, credential_key: PrivateKey, terminal_key: PrivateKey, key_backed: CredentialCertificate
) -> None:
    own, other = credential_key.sign(receipt.signature_input()), terminal_key.sign(receipt.co_signature_input())
    assert receipt.is_shown_by(own + other, key_backed)
    for evidence in (
        own,
        other,
        other + own,
        own + own,
        own + bytes(64),
        bytes(64) + other,
        own + terminal_key.sign(receipt.signature_input()),  # signed under the other label
        own + credential_key.sign(receipt.co_signature_input()),  # signed by another key
        own + terminal_key.sign(replace(receipt, counter=99).co_signature_input()),
        own + other + bytes(1),
    ):
        assert not receipt.is_shown_by(evidence, key_backed)


@pytest.mark.requirement("K3")
def test_a_plain_receipt_and_a_refusal_have_no_second_signature(
    receipt: Receipt,
    credential_key: PrivateKey,
    terminal_key: PrivateKey,
    credential_certificate: CredentialCertificate,
    key_backed: CredentialCertificate,
) -> None:
    own, other = credential_key.sign(receipt.signature_input()), terminal_key.sign(receipt.co_signature_input())
    assert not receipt.is_shown_by(own + other, credential_certificate)
    refusal = replace(receipt, result=Result.SEE_PHONE)
    refused = credential_key.sign(refusal.signature_input())
    assert refusal.is_shown_by(refused, key_backed)
    assert not refusal.is_shown_by(refused + terminal_key.sign(refusal.co_signature_input()), key_backed)


@pytest.mark.parametrize("length", [0, 63, 65, 127, 129, 192])
def test_evidence_is_one_signature_or_two(length: int) -> None:
    for build in (
        lambda: DebitResult(Result.APPROVED, bytes(length)),
        lambda: Settled(Result.APPROVED, bytes(16), bytes(length)),
    ):
        with pytest.raises(ValueError, match="one signature of 64 bytes, or two"):
            build()


def test_certificates_are_named_by_the_hash_of_their_bytes(terminal_certificate: TerminalCertificate) -> None:
    assert certificate_hash(terminal_certificate) == hashlib.sha256(terminal_certificate.encode()).digest()


def test_terminal_signs_label_and_first_digest(terminal_hello: GetVirtualCard, terminal_key: PrivateKey) -> None:
    signed = GetVirtualCard.signature_input(bytes(32))
    assert signed == labelled(Label.POS_SIGNATURE, bytes(32))
    assert signing.is_valid(terminal_key.public, terminal_hello.signature, signed)


def test_card_answer_has_one_length(credential_certificate: CredentialCertificate) -> None:
    answer = VirtualCard(bytes(SEALED_LENGTH), bytes(64), credential_certificate)
    assert SEALED_LENGTH == 32 + 44 + 16
    assert len(answer.encode()) == SEALED_LENGTH + 64 + len(credential_certificate.encode())
