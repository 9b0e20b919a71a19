# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Certificates: nothing but what the right authority signed for the right use and day passes (B6)."""

from __future__ import annotations

import calendar
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.certificate import (
    Authority,
    CredentialCertificate,
    Merchant,
    TerminalCertificate,
    Usage,
    failed_checks,
    issue,
    whole_months,
)
from protocol.errors import Check, DecodeError
from protocol.signing import PrivateKey

_CHANGES = [1 << bit for bit in range(8)] + [0xFF]
_DATES = st.dates(date(2000, 1, 1), date(2090, 12, 31))


def _failed(
    kind: type[TerminalCertificate | CredentialCertificate], data: bytes, authority: Authority, today: date
) -> bool:
    """Tell whether `data` is refused as a certificate of that kind, by its form or by a check."""
    usage = Usage.TERMINAL if kind is TerminalCertificate else Usage.CREDENTIAL
    try:
        certificate = kind.decode(data)
    except DecodeError:
        return True
    return bool(failed_checks(certificate, usage, authority, today))


def _changed(data: bytes, position: int, change: int) -> bytes:
    return data[:position] + bytes([data[position] ^ change]) + data[position + 1 :]


def test_good_terminal_certificate_passes(
    terminal_certificate: TerminalCertificate, acquirer: Authority, today: date
) -> None:
    decoded = TerminalCertificate.decode(terminal_certificate.encode())
    assert failed_checks(decoded, Usage.TERMINAL, acquirer, today) == []


def test_good_credential_certificate_passes(
    credential_certificate: CredentialCertificate, issuer: Authority, today: date
) -> None:
    decoded = CredentialCertificate.decode(credential_certificate.encode())
    assert failed_checks(decoded, Usage.CREDENTIAL, issuer, today) == []


def test_changed_byte_at_every_position_of_a_terminal_certificate_fails(
    terminal_certificate: TerminalCertificate, acquirer: Authority, today: date
) -> None:  # B6
    data = terminal_certificate.encode()
    passed = [
        (position, change)
        for position in range(len(data))
        for change in _CHANGES
        if not _failed(TerminalCertificate, _changed(data, position, change), acquirer, today)
    ]
    assert passed == []


def test_changed_byte_at_every_position_of_a_credential_certificate_fails(
    credential_certificate: CredentialCertificate, issuer: Authority, today: date
) -> None:  # B6
    data = credential_certificate.encode()
    passed = [
        (position, change)
        for position in range(len(data))
        for change in _CHANGES
        if not _failed(CredentialCertificate, _changed(data, position, change), issuer, today)
    ]
    assert passed == []


def test_every_field_is_signed(terminal_certificate: TerminalCertificate, acquirer: Authority, today: date) -> None:
    merchant = terminal_certificate.merchant
    altered = [
        replace(terminal_certificate, serial=bytes(8)),
        replace(terminal_certificate, valid_from=date(2026, 7, 2)),
        replace(terminal_certificate, valid_until=date(2027, 7, 1)),
        replace(terminal_certificate, public_key=acquirer.public_key),
        replace(terminal_certificate, terminal_id="TERM0002"),
        replace(terminal_certificate, merchant=replace(merchant, name="Corner Bakerz")),
        replace(terminal_certificate, merchant=replace(merchant, category=5411)),
        replace(terminal_certificate, merchant=replace(merchant, currency=392)),
    ]
    for certificate in altered:
        assert failed_checks(certificate, Usage.TERMINAL, acquirer, today) == [Check.CERTIFICATE_SIGNATURE]


def test_offline_ceiling_is_signed(
    credential_certificate: CredentialCertificate, issuer: Authority, today: date
) -> None:
    raised = replace(credential_certificate, offline_ceiling=credential_certificate.offline_ceiling + 1)
    assert failed_checks(raised, Usage.CREDENTIAL, issuer, today) == [Check.CERTIFICATE_SIGNATURE]


def test_certificate_of_another_use_fails_though_its_signature_is_good(
    terminal_certificate: TerminalCertificate, acquirer: Authority, acquirer_key: PrivateKey, today: date
) -> None:  # B6
    other = issue(replace(terminal_certificate, usage=Usage.CREDENTIAL), acquirer_key)
    assert failed_checks(other, Usage.TERMINAL, acquirer, today) == [Check.CERTIFICATE_USAGE]


def test_credential_presented_as_terminal_is_refused(
    credential_certificate: CredentialCertificate, acquirer: Authority, issuer: Authority, today: date
) -> None:  # B6
    for authority in (acquirer, issuer):
        assert _failed(TerminalCertificate, credential_certificate.encode(), authority, today)
        assert Check.CERTIFICATE_USAGE in failed_checks(credential_certificate, Usage.TERMINAL, authority, today)


def test_terminal_presented_as_credential_is_refused(
    terminal_certificate: TerminalCertificate, acquirer: Authority, issuer: Authority, today: date
) -> None:  # B6
    for authority in (acquirer, issuer):
        assert _failed(CredentialCertificate, terminal_certificate.encode(), authority, today)
        assert Check.CERTIFICATE_USAGE in failed_checks(terminal_certificate, Usage.CREDENTIAL, authority, today)


def test_unknown_authority_fails_by_name_and_by_signature(
    terminal_certificate: TerminalCertificate, acquirer: Authority, today: date
) -> None:  # B6
    stranger = PrivateKey.from_scalar(bytes([9]) * 32)
    renamed = issue(replace(terminal_certificate, authority=b"NONE"), stranger)
    assert failed_checks(renamed, Usage.TERMINAL, acquirer, today) == [
        Check.CERTIFICATE_ISSUER,
        Check.CERTIFICATE_SIGNATURE,
    ]
    posing = issue(terminal_certificate, stranger)
    assert failed_checks(posing, Usage.TERMINAL, acquirer, today) == [Check.CERTIFICATE_SIGNATURE]


def test_authority_under_another_name_fails(
    terminal_certificate: TerminalCertificate, acquirer: Authority, acquirer_key: PrivateKey, today: date
) -> None:
    renamed = issue(replace(terminal_certificate, authority=b"ACQ2"), acquirer_key)
    assert failed_checks(renamed, Usage.TERMINAL, acquirer, today) == [Check.CERTIFICATE_ISSUER]


def test_issuer_cannot_certify_terminals(
    terminal_certificate: TerminalCertificate, acquirer: Authority, issuer_key: PrivateKey, today: date
) -> None:  # B6
    by_issuer = issue(terminal_certificate, issuer_key)
    assert failed_checks(by_issuer, Usage.TERMINAL, acquirer, today) == [Check.CERTIFICATE_SIGNATURE]


@pytest.mark.parametrize("scalar", [1, 2], ids=["acquirer", "issuer"])
def test_certificate_signed_by_its_own_key_fails(
    credential_certificate: CredentialCertificate, issuer: Authority, today: date, scalar: int
) -> None:
    key = PrivateKey.from_scalar(bytes([scalar + 10]) * 32)
    own = issue(replace(credential_certificate, public_key=key.public), key)
    assert failed_checks(own, Usage.CREDENTIAL, issuer, today) == [Check.CERTIFICATE_SIGNATURE]


@pytest.mark.parametrize(
    ("day", "failed"),
    [
        (date(2026, 6, 30), [Check.CERTIFICATE_NOT_YET_VALID]),
        (date(2026, 7, 1), []),
        (date(2027, 6, 30), []),
        (date(2027, 7, 1), [Check.CERTIFICATE_EXPIRED]),
        (date(1970, 1, 1), [Check.CERTIFICATE_NOT_YET_VALID]),
    ],
)
def test_certificate_is_valid_from_its_first_day_to_its_last(
    terminal_certificate: TerminalCertificate, acquirer: Authority, day: date, failed: list[Check]
) -> None:  # B6
    assert failed_checks(terminal_certificate, Usage.TERMINAL, acquirer, day) == failed


def test_every_failed_check_is_told(terminal_certificate: TerminalCertificate, issuer: Authority) -> None:
    assert failed_checks(terminal_certificate, Usage.CREDENTIAL, issuer, date(2030, 1, 1)) == [
        Check.CERTIFICATE_USAGE,
        Check.CERTIFICATE_ISSUER,
        Check.CERTIFICATE_SIGNATURE,
        Check.CERTIFICATE_EXPIRED,
    ]


def test_signed_part_is_everything_between_the_head_and_the_signature(
    terminal_certificate: TerminalCertificate, credential_certificate: CredentialCertificate
) -> None:
    for certificate in (terminal_certificate, credential_certificate):
        data = certificate.encode()
        assert data[:3] == bytes.fromhex("7F2181")
        assert data[3] == len(data) - 4
        assert data == data[:4] + certificate.signed_part() + bytes.fromhex("5F3740") + certificate.signature


def test_issuing_changes_nothing_but_the_signature(
    terminal_certificate: TerminalCertificate, acquirer_key: PrivateKey
) -> None:
    unsigned = replace(terminal_certificate, signature=bytes(64))
    assert issue(unsigned, acquirer_key) == terminal_certificate
    assert issue(terminal_certificate, acquirer_key) == terminal_certificate


@pytest.mark.parametrize("name", ["", "seventeen letters", "tab\t", "café", "null\0", "\x7f"])
def test_name_of_a_merchant_is_printable_ascii(name: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        Merchant(name, 5462, 978).encode()


@pytest.mark.parametrize("name", ["", "736576656E7465656E206C657474657273", "746162 09", "636166C3A9", "7F"])
def test_name_of_a_merchant_is_refused_unless_printable_ascii(name: str) -> None:
    encoded = bytes.fromhex(name)
    with pytest.raises(DecodeError, match="Merchant"):
        Merchant.decode(bytes.fromhex("9F4E") + bytes([len(encoded)]) + encoded + bytes.fromhex("9F150254625F2A020978"))


@pytest.mark.parametrize("number", [-1, 10000])
def test_category_has_four_digits(number: int) -> None:
    with pytest.raises(ValueError, match="4 digits"):
        Merchant("Corner Bakery", number, 978).encode()


@given(_DATES)
def test_credential_lives_a_whole_month_more_and_at_most_30_days_longer(today: date) -> None:
    first, last = whole_months(today)
    next_month = last.replace(day=1)
    left = (last - today).days
    month = calendar.monthrange(last.year, last.month)[1]
    assert first <= today < next_month
    assert last.day == month
    assert month <= left <= month + 30


@given(_DATES)
def test_all_credentials_of_a_month_share_their_dates(today: date) -> None:
    days = calendar.monthrange(today.year, today.month)[1]
    assert len({whole_months(today.replace(day=day)) for day in range(1, days + 1)}) == 1
    assert whole_months(today)[0] == today.replace(day=1)


@pytest.mark.parametrize(
    ("today", "last"),
    [
        (date(2026, 1, 31), date(2026, 2, 28)),
        (date(2028, 1, 1), date(2028, 2, 29)),
        (date(2026, 12, 31), date(2027, 1, 31)),
        (date(2026, 7, 1), date(2026, 8, 31)),
    ],
)
def test_whole_months_by_hand(today: date, last: date) -> None:
    assert whole_months(today) == (today.replace(day=1), last)
