# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Signatures against published vectors and against P-256 written out as arithmetic."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from protocol import signing
from protocol.signing import PrivateKey

_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_Point = tuple[int, int] | None

_SCALAR = bytes.fromhex("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721")  # RFC 6979 A.2.5
_PUBLIC = bytes.fromhex("0360FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6")
_UNCOMPRESSED = bytes.fromhex(
    "0460FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6"
    "7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299"
)
_RFC_6979 = {
    b"sample": "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
    "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
    b"test": "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367"
    "019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083",
}


def _add(first: _Point, second: _Point) -> _Point:
    if first is None or second is None:
        return first or second
    (x1, y1), (x2, y2) = first, second
    if x1 == x2 and (y1 + y2) % _P == 0:
        return None
    slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, _P) if first == second else (y2 - y1) * pow(x2 - x1, -1, _P)
    x3 = (slope * slope - x1 - x2) % _P
    return x3, (slope * (x1 - x3) - y1) % _P


def _times(scalar: int, point: _Point) -> _Point:
    total: _Point = None
    for bit in bin(scalar)[2:]:
        total = _add(total, total)
        if bit == "1":
            total = _add(total, point)
    return total


def _decompressed(public: bytes) -> tuple[int, int]:
    x = int.from_bytes(public[1:], "big")
    y = pow(x**3 - 3 * x + _B, (_P + 1) // 4, _P)
    return x, y if y % 2 == public[0] % 2 else _P - y


def _verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """FIPS 186-5 §6.4.2, step by step."""
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < _N and 0 < s < _N):
        return False
    digest, inverse = int.from_bytes(hashlib.sha256(message).digest(), "big"), pow(s, -1, _N)
    point = _add(_times(digest * inverse % _N, _G), _times(r * inverse % _N, _decompressed(public)))
    return point is not None and point[0] % _N == r


def _other_form(signature: bytes) -> bytes:
    return signature[:32] + (_N - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")


@pytest.mark.parametrize("message", sorted(_RFC_6979))
def test_signature_is_that_of_rfc_6979(message: bytes) -> None:
    key = PrivateKey.from_scalar(_SCALAR)
    assert key.public == _PUBLIC
    assert key.sign(message).hex().upper() == _RFC_6979[message]
    assert signing.is_valid(_PUBLIC, key.sign(message), message)


@pytest.mark.parametrize("message", sorted(_RFC_6979))
def test_written_out_arithmetic_agrees_with_rfc_6979(message: bytes) -> None:
    signature = bytes.fromhex(_RFC_6979[message])
    assert _verifies(_PUBLIC, signature, message)
    assert not _verifies(_PUBLIC, signature, message + b"!")


@pytest.mark.parametrize("number", range(1, 6))
def test_signature_verifies_by_written_out_arithmetic(number: int) -> None:
    key = PrivateKey.from_scalar(hashlib.sha256(bytes([number])).digest())
    message = bytes(number * 40)
    assert _verifies(key.public, key.sign(message), message)


def test_signature_verifies_as_der_with_the_library() -> None:
    signature = PrivateKey.from_scalar(_SCALAR).sign(b"message")
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), _PUBLIC)
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    public.verify(der, b"message", ec.ECDSA(hashes.SHA256()))


def test_signature_made_by_the_library_is_valid() -> None:
    key = ec.derive_private_key(int.from_bytes(_SCALAR, "big"), ec.SECP256R1())
    der = key.sign(b"message", ec.ECDSA(hashes.SHA256()))
    r_length = der[3]
    r, s = der[4 : 4 + r_length], der[6 + r_length :]
    signature = r.lstrip(b"\0").rjust(32, b"\0") + s.lstrip(b"\0").rjust(32, b"\0")
    assert signing.is_valid(_PUBLIC, signature, b"message")


@given(st.binary(max_size=200))
def test_signing_twice_gives_the_same_bytes(message: bytes) -> None:
    key = PrivateKey.from_scalar(_SCALAR)
    signature = key.sign(message)
    assert signature == key.sign(message)
    assert len(signature) == signing.SIGNATURE_LENGTH


def test_both_forms_of_a_signature_are_valid() -> None:  # M4: hence receipts are never told apart by their bytes
    signature = PrivateKey.from_scalar(_SCALAR).sign(b"message")
    assert _other_form(signature) != signature
    assert signing.is_valid(_PUBLIC, _other_form(signature), b"message")


def test_changed_byte_of_a_signature_is_not_valid() -> None:
    signature = PrivateKey.from_scalar(_SCALAR).sign(b"message")
    for position in range(64):
        for change in (0x01, 0x80, 0xFF):
            changed = bytearray(signature)
            changed[position] ^= change
            assert not signing.is_valid(_PUBLIC, bytes(changed), b"message")


def test_changed_byte_of_a_message_or_key_is_not_valid() -> None:
    signature = PrivateKey.from_scalar(_SCALAR).sign(b"message")
    assert not signing.is_valid(_PUBLIC, signature, b"messagf")
    for position in range(33):
        changed = bytearray(_PUBLIC)
        changed[position] ^= 0x01
        assert not signing.is_valid(bytes(changed), signature, b"message")


@pytest.mark.parametrize("r", [0, 1, _N - 1, _N, _N + 1, 2**256 - 1])
@pytest.mark.parametrize("s", [0, 1, _N - 1, _N, _N + 1, 2**256 - 1])
def test_number_at_the_border_is_no_signature(r: int, s: int) -> None:
    assert not signing.is_valid(_PUBLIC, r.to_bytes(32, "big") + s.to_bytes(32, "big"), b"message")


@pytest.mark.parametrize("length", [0, 1, 63, 65, 72])
def test_signature_of_another_length_is_not_valid(length: int) -> None:
    signature = PrivateKey.from_scalar(_SCALAR).sign(b"message")
    assert not signing.is_valid(_PUBLIC, (signature + signature)[:length], b"message")


@pytest.mark.parametrize(
    "public",
    [
        b"",
        b"\x00",
        bytes(33),
        b"\x02" + bytes([0xFF]) * 32,  # x beyond the field
        b"\x02" + (5).to_bytes(32, "big")[:31],
        b"\x04" + _PUBLIC[1:],
        b"\x05" + _PUBLIC[1:],
        _UNCOMPRESSED,
    ],
)
def test_malformed_key_makes_nothing_valid_and_raises_nothing(public: bytes) -> None:
    signature = PrivateKey.from_scalar(_SCALAR).sign(b"message")
    assert not signing.is_valid(public, signature, b"message")


@given(st.binary(min_size=33, max_size=33), st.binary(min_size=64, max_size=64), st.binary(max_size=20))
def test_any_key_and_signature_are_judged_without_an_exception(public: bytes, signature: bytes, message: bytes) -> None:
    assert signing.is_valid(public, signature, message) in (True, False)


@pytest.mark.parametrize("scalar", [0, _N, _N + 1, 2**256 - 1])
def test_scalar_out_of_range_is_no_key(scalar: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the library words it
        PrivateKey.from_scalar(scalar.to_bytes(32, "big"))


@pytest.mark.parametrize("scalar", [1, 2, _N - 1])
def test_scalar_in_range_is_a_key(scalar: int) -> None:
    key = PrivateKey.from_scalar(scalar.to_bytes(32, "big"))
    assert key.scalar() == scalar.to_bytes(32, "big")
    assert _decompressed(key.public) == _times(scalar, _G)


def test_generated_keys_differ_and_survive_as_scalars() -> None:
    first, second = PrivateKey.generate(), PrivateKey.generate()
    assert first.public != second.public
    assert PrivateKey.from_scalar(first.scalar()).public == first.public
