# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Certificates of a channel: both forms say the same, and what is malformed, expired, of another use or unsigned is found."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from protocol.channel_certificate import MAX_LENGTH, KeyUse, failed_checks, is_signed_by, read, verify_chain
from protocol.errors import Check, DecodeError, VerificationError
from protocol.scp11 import point_of
from tests.trusted_key import certificates as made
from tests.trusted_key.certificates import BEGINS, ENDS, NOW, Wanted, x509_of

FORMS = pytest.mark.parametrize(
    ("authority", "leaf"), [(made.AUTHORITY, made.HOST), (made.GP_AUTHORITY, made.GP_HOST)], ids=["x509", "7F21"]
)


@FORMS
def test_both_forms_are_read(authority: bytes, leaf: bytes) -> None:
    known = read(leaf)
    assert known.encoded == leaf
    assert known.point == point_of(made.HOST_KEY.public_key())
    assert known.uses == {KeyUse.KEY_AGREEMENT}
    assert known.valid_from == BEGINS
    assert known.valid_until.date() == ENDS.date()
    assert read(authority).uses == {KeyUse.SIGNATURE_VERIFICATION}


@FORMS
def test_a_chain_of_both_forms_is_verified(authority: bytes, leaf: bytes) -> None:
    assert verify_chain([read(authority), read(leaf)], NOW) == read(leaf)
    assert verify_chain([read(leaf)], NOW) == read(leaf)


@FORMS
def test_a_chain_in_the_wrong_order_is_refused(authority: bytes, leaf: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_chain([read(leaf), read(authority)], NOW)
    assert caught.value.check is Check.CERTIFICATE_USAGE


def test_a_leaf_that_another_authority_signed_is_refused() -> None:
    other = x509_of(Wanted("Host"), made.HOST_KEY.public_key(), made.STRANGE_AUTHORITY_KEY)
    with pytest.raises(VerificationError) as caught:
        verify_chain([read(made.AUTHORITY), read(other)], NOW)
    assert caught.value.check is Check.CERTIFICATE_SIGNATURE


@pytest.mark.parametrize(
    "leaf",
    [
        made.card_verifiable_of(b"HOST", made.HOST_KEY.public_key(), signer=made.STRANGE_AUTHORITY_KEY),
        made.card_verifiable_of(b"HOST", made.HOST_KEY.public_key(), authority=b"ANOTHER"),
        made.HOST,
    ],
    ids=["signature", "name", "form"],
)
def test_a_card_verifiable_authority_signs_what_it_signed(leaf: bytes) -> None:
    assert is_signed_by(read(made.GP_HOST), read(made.GP_AUTHORITY))
    assert not is_signed_by(read(leaf), read(made.GP_AUTHORITY))


@pytest.mark.parametrize(
    ("wanted", "check"),
    [
        (Wanted("Host", agreement=False), Check.CERTIFICATE_USAGE),
        (Wanted("Host", with_usage=False), Check.CERTIFICATE_USAGE),
        (Wanted("Host", agreement=False, authority=True), Check.CERTIFICATE_USAGE),
        (Wanted("Host", begins=NOW + timedelta(seconds=1)), Check.CERTIFICATE_NOT_YET_VALID),
        (Wanted("Host", ends=NOW - timedelta(seconds=1)), Check.CERTIFICATE_EXPIRED),
    ],
)
def test_what_a_certificate_fails_is_named(wanted: Wanted, check: Check) -> None:
    known = read(x509_of(wanted, made.HOST_KEY.public_key()))
    assert failed_checks(known, KeyUse.KEY_AGREEMENT, NOW) == [check]


@pytest.mark.parametrize("leaf", [made.HOST, made.GP_HOST], ids=["x509", "7F21"])
def test_a_certificate_is_valid_from_its_first_moment_to_its_last(leaf: bytes) -> None:
    known = read(leaf)
    second = timedelta(seconds=1)
    days = [known.valid_from - second, known.valid_from, known.valid_until, known.valid_until + second]
    assert [bool(failed_checks(known, KeyUse.KEY_AGREEMENT, day)) for day in days] == [True, False, False, True]


def test_a_key_of_another_curve_is_refused() -> None:
    other = ec.derive_private_key(7, ec.SECP384R1()).public_key()
    with pytest.raises(DecodeError, match="P-256"):
        read(x509_of(Wanted("Host"), other))


def test_a_point_beside_the_curve_is_refused() -> None:
    point = point_of(made.HOST_KEY.public_key())
    with pytest.raises(DecodeError, match="curve"):
        read(made.GP_HOST.replace(point, point[:-1] + bytes([point[-1] ^ 1])))


def test_a_signature_whose_last_bits_are_said_to_be_unused_is_refused() -> None:
    """The signature would still be right: two encodings of one certificate, of which only one was signed so."""
    assert not made.AUTHORITY[-1] & 1  # else the last bit could not be called unused
    at = made.AUTHORITY.rindex(b"\x03\x47\x00\x30\x44") + 2
    changed = made.AUTHORITY[:at] + b"\x01" + made.AUTHORITY[at + 1 :]
    read(made.AUTHORITY)
    with pytest.raises(DecodeError, match="one canonical form"):
        read(changed)


@given(st.sampled_from([made.HOST, made.GP_HOST]), st.data())
def test_a_cut_certificate_is_refused(encoded: bytes, data: st.DataObject) -> None:
    with pytest.raises(DecodeError):
        read(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@pytest.mark.parametrize("encoded", [b"", b"\x30", b"\x30\x00", b"text", bytes(MAX_LENGTH + 1), made.HOST + b"\0"])
def test_what_is_no_certificate_is_a_decode_error(encoded: bytes) -> None:
    with pytest.raises(DecodeError):
        read(encoded)
