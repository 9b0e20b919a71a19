# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The envelope against a second implementation of RFC 9180, both ways, and against whatever is not what was sealed."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey

from protocol import envelope
from protocol.errors import Check, VerificationError
from protocol.labels import Label
from protocol.secret import Secret

_OTHER = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES128_GCM)
_KEY = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"a tap key").digest())
_PUBLIC = _KEY.public_key().public_bytes_raw()
_INFO = envelope.card_info(bytes(range(32)))
_PLAINTEXT = bytes(range(44))

# Every u-coordinate of low order, and those that only reduce to one (RFC 7748 §6.1; the list of the curve's author).
_LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "E0EB7A7C3B41B8AE1656E3FAF19FC46ADA098DEB9C32B1FD866205165F49B800",
    "5F9C95BCA3508C24B1D0B1559C83EF5B04445CC4581C8E86D8224EDDD09F1157",
    "ECFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF7F",
    "EDFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF7F",
    "EEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF7F",
    "00" * 31 + "80",
    "01" + "00" * 30 + "80",
    "ECFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF",
    "EDFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF",
]


def _fails(sealed: bytes, key: X25519PrivateKey = _KEY, info: bytes = _INFO) -> bool:
    try:
        envelope.unseal(sealed, key, info)
    except VerificationError as error:
        return error.check is Check.ENCRYPTION
    return False


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_what_we_seal_the_other_implementation_opens(plaintext: bytes, info: bytes) -> None:
    sealed = envelope.seal(plaintext, _PUBLIC, info)
    context = _OTHER.create_recipient_context(sealed[:32], KEMKey.from_pyca_cryptography_key(_KEY), info)
    assert context.open(sealed[32:]) == plaintext


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_what_the_other_implementation_seals_we_open(plaintext: bytes, info: bytes) -> None:
    encapsulation, context = _OTHER.create_sender_context(
        KEMKey.from_pyca_cryptography_key(_KEY.public_key()), info=info
    )
    assert envelope.unseal(encapsulation + context.seal(plaintext), _KEY, info) == plaintext


def test_what_was_sealed_is_opened_as_a_secret() -> None:
    opened = envelope.unseal(envelope.seal(_PLAINTEXT, _PUBLIC, _INFO), _KEY, _INFO)
    assert opened == _PLAINTEXT
    assert isinstance(opened, Secret)


def test_sealed_length_is_plaintext_encapsulation_and_tag() -> None:
    assert len(envelope.seal(_PLAINTEXT, _PUBLIC, _INFO)) == len(_PLAINTEXT) + 32 + 16


def test_sealing_twice_shares_no_bytes() -> None:
    first, second = (envelope.seal(_PLAINTEXT, _PUBLIC, _INFO) for _ in range(2))
    windows = {first[i : i + 4] for i in range(len(first) - 3)}
    assert not windows & {second[i : i + 4] for i in range(len(second) - 3)}


def test_plaintext_is_not_in_what_is_sealed() -> None:
    sealed = envelope.seal(_PLAINTEXT, _PUBLIC, _INFO)
    assert not any(_PLAINTEXT[i : i + 8] in sealed for i in range(len(_PLAINTEXT) - 7))


def test_changed_byte_anywhere_fails() -> None:
    sealed = envelope.seal(_PLAINTEXT, _PUBLIC, _INFO)
    for position in range(len(sealed)):
        for change in (0x01, 0x40, 0xFF):
            changed = bytearray(sealed)
            changed[position] ^= change
            assert _fails(bytes(changed)), (position, change)


def test_second_form_of_the_encapsulated_point_fails() -> None:
    """The top bit does not change the point (RFC 7748 §5), but HPKE binds the bytes."""
    sealed = bytearray(envelope.seal(_PLAINTEXT, _PUBLIC, _INFO))
    sealed[31] ^= 0x80
    assert _fails(bytes(sealed))


def test_cut_or_longer_output_fails() -> None:
    sealed = envelope.seal(_PLAINTEXT, _PUBLIC, _INFO)
    assert all(_fails(sealed[:length]) for length in range(len(sealed)))
    assert _fails(sealed + b"\0")
    assert _fails(b"\0" + sealed)


def test_another_key_fails() -> None:
    sealed = envelope.seal(_PLAINTEXT, _PUBLIC, _INFO)
    assert _fails(sealed, key=X25519PrivateKey.from_private_bytes(bytes([7]) * 32))


@pytest.mark.parametrize("info", [b"", _INFO[:-1], _INFO + b"\0", envelope.card_info(bytes(32))])
def test_another_info_fails(info: bytes) -> None:
    assert _fails(envelope.seal(_PLAINTEXT, _PUBLIC, _INFO), info=info)


@pytest.mark.parametrize("point", _LOW_ORDER)
def test_sealing_to_a_low_order_key_is_a_verification_error(point: str) -> None:
    with pytest.raises(VerificationError) as caught:
        envelope.seal(_PLAINTEXT, bytes.fromhex(point), _INFO)
    assert caught.value.check is Check.ENCRYPTION


@pytest.mark.parametrize("point", _LOW_ORDER)
def test_low_order_encapsulation_fails(point: str) -> None:
    assert _fails(bytes.fromhex(point) + bytes(60))


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_sealing_to_a_malformed_key_is_a_verification_error(length: int) -> None:
    with pytest.raises(VerificationError):
        envelope.seal(_PLAINTEXT, bytes([9]) * length, _INFO)


@given(st.binary(max_size=120))
def test_any_bytes_fail(data: bytes) -> None:
    assert _fails(data)


def test_info_and_signature_input_start_with_their_own_labels() -> None:
    t2, credential, sealed = bytes([1]) * 32, b"certificate", b"sealed"
    card, answer = Label.CARD_ENCRYPTION.encode(), Label.CARD_SIGNATURE.encode()
    assert envelope.card_info(t2) == bytes([len(card)]) + card + t2
    signed = envelope.card_signature_input(t2, credential, sealed)
    assert signed == bytes([len(answer)]) + answer + t2 + credential + sealed
