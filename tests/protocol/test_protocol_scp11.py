# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Key agreement: the numbers of the specification, another implementation's key agreement, and fixed bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from yubikit.core.smartcard.scp import KeyRef, Scp11KeyParams, ScpState

from protocol import scp11
from protocol.errors import Check, DecodeError, VerificationError
from protocol.scp11 import AgreedKeys, ChannelIns, ControlReference, KeyAgreement, KeyAgreementAnswer, Variant
from tests.trusted_key import certificates as made
from tests.trusted_key.certificates import key_of

_HOST_EPHEMERAL, _CARD_EPHEMERAL, _HOST, _CARD = (key_of(number) for number in (7, 8, 5, 6))
_AGREEMENT = KeyAgreement(ControlReference(1), scp11.point_of(_HOST_EPHEMERAL.public_key()))
_CARD_POINT = scp11.point_of(_CARD_EPHEMERAL.public_key())


def _card_keys() -> AgreedKeys:
    shared = scp11.exchange(_CARD_EPHEMERAL, _AGREEMENT.point)
    return scp11.derive(shared, scp11.exchange(_CARD, scp11.point_of(_HOST.public_key())))


def test_both_ends_derive_the_same_and_always_the_same() -> None:
    shared = scp11.exchange(_HOST_EPHEMERAL, _CARD_POINT)
    keys = scp11.derive(shared, scp11.exchange(_HOST, scp11.point_of(_CARD.public_key())))
    assert keys == _card_keys()
    assert scp11.receipt_of(keys, _AGREEMENT, _CARD_POINT).hex() == "b5e557cc5b5db50c4e55dd4dadab6aa6"
    derived = [bytes(key).hex() for key in (keys.session.enc, keys.session.mac, keys.session.rmac)]
    assert derived == [
        "9056d1119e1b9ec8e97eda08bea5a064",
        "fb890a8d5685587f86bff5f4a1c375b8",
        "c15a2bf1b89a17ee820e4a2a78f23841",
    ]


def test_keys_are_hashes_of_secret_counter_and_shared_info() -> None:
    keys = scp11.derive(b"e" * 32, b"s" * 32)
    counted = b"".join(
        hashlib.sha256(b"e" * 32 + b"s" * 32 + number.to_bytes(4, "big") + bytes.fromhex("3C8810")).digest()
        for number in (1, 2, 3)
    )
    derived = [keys.receipt, keys.session.enc, keys.session.mac, keys.session.rmac]
    assert [bytes(key) for key in derived] == [counted[at : at + 16] for at in range(0, 64, 16)]


def test_the_receipt_is_a_cmac_over_the_body_and_the_point() -> None:
    keys = _card_keys()
    cmac = CMAC(AES(keys.receipt))
    cmac.update(bytes.fromhex("A60D 90021101 95013C 800188 810110 5F4941") + _AGREEMENT.point)
    cmac.update(bytes.fromhex("5F4941") + _CARD_POINT)
    assert scp11.receipt_of(keys, _AGREEMENT, _CARD_POINT) == cmac.finalize()


def test_the_receipt_is_the_first_chaining_value() -> None:
    state = scp11.start(_card_keys(), b"r" * 16)
    assert (bytes(state.chaining), state.counter) == (b"r" * 16, 0)


# --- another implementation


class _ForeignHost:
    """yubikit's key agreement, whose commands are answered by our functions."""

    def __init__(self, variant: Variant, *, receipt: bytes | None = None) -> None:
        self.variant = variant
        self.receipt = receipt
        self.sent: list[tuple[int, int, int, int, bytes]] = []
        self.keys: AgreedKeys | None = None

    def agree(self) -> ScpState:
        mutual = self.variant is Variant.SCP11A
        own = (
            {"sk_oce_ecka": made.HOST_KEY, "certificates": [x509.load_der_x509_certificate(made.HOST)]}
            if mutual
            else {}
        )
        params = Scp11KeyParams(KeyRef(self.variant, 1), made.KEY_KEY.public_key(), **own)  # type: ignore[arg-type]
        return ScpState.scp11_init(self._answer, params)

    def _answer(self, cla: int, ins: int, p1: int, p2: int, data: bytes) -> bytes:
        self.sent.append((cla, ins, p1, p2, data))
        if ins == ChannelIns.PERFORM_SECURITY_OPERATION:
            return b""
        agreement = KeyAgreement.decode(data)
        static = scp11.point_of(made.HOST_KEY.public_key()) if self.variant is Variant.SCP11A else agreement.point
        shared = scp11.exchange(_CARD_EPHEMERAL, agreement.point)
        self.keys = scp11.derive(shared, scp11.exchange(made.KEY_KEY, static))
        receipt = self.receipt or scp11.receipt_of(self.keys, agreement, _CARD_POINT)
        return KeyAgreementAnswer(_CARD_POINT, receipt).encode()


@pytest.mark.parametrize("variant", Variant)
def test_another_implementation_agrees_on_the_same_keys(variant: Variant) -> None:
    host = _ForeignHost(variant)
    foreign = host.agree()
    assert host.keys is not None
    derived = host.keys.session
    assert foreign._keys[:3] == (bytes(derived.enc), bytes(derived.mac), bytes(derived.rmac))


@pytest.mark.parametrize("variant", Variant)
def test_commands_are_those_of_another_implementation(variant: Variant) -> None:
    host = _ForeignHost(variant)
    host.agree()
    *introduction, last = host.sent
    agreement = KeyAgreement.decode(last[4])
    command = scp11.authenticate(variant, 1, agreement)
    assert (command.cla, command.ins, command.p1, command.p2, command.data) == last
    assert scp11.is_full(agreement.control, variant)
    assert [one[:2] + one[4:] for one in introduction] == (
        [(0x80, 0x2A, made.HOST)] if variant is Variant.SCP11A else []
    )


def test_another_implementation_refuses_a_receipt_that_is_not_ours() -> None:
    with pytest.raises(InvalidSignature):
        _ForeignHost(Variant.SCP11B, receipt=bytes(16)).agree()


# --- what is refused


@pytest.mark.parametrize("point", [bytes(65), b"\x04" + bytes(64), _CARD_POINT[:-1] + b"\0", b"\x04" + b"\xff" * 64])
def test_a_point_beside_the_curve_is_refused(point: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        scp11.exchange(_CARD, point)
    assert caught.value.check is Check.CHANNEL


@pytest.mark.parametrize("variant", Variant)
def test_only_the_full_security_level_is_full(variant: Variant) -> None:
    full = ControlReference(variant.parameters)
    assert scp11.is_full(full, variant)
    other = [variant.parameters ^ 1, variant.parameters | 2, variant.parameters | 4]
    assert not any(scp11.is_full(replace(full, parameters=parameters), variant) for parameters in other)
    assert not any(scp11.is_full(replace(full, key_usage=usage), variant) for usage in range(256) if usage != 0x3C)
    assert not scp11.is_full(replace(full, key_type=0x80), variant)
    assert not any(scp11.is_full(replace(full, key_length=length), variant) for length in (0, 8, 24, 32))


def test_another_protocol_than_scp11_is_refused() -> None:
    with pytest.raises(DecodeError):
        KeyAgreement.decode(_AGREEMENT.encode().replace(bytes.fromhex("90021101"), bytes.fromhex("90020301")))


def test_certificates_in_an_answer_are_taken_apart() -> None:
    assert scp11.split_certificates(made.AUTHORITY + made.KEY) == [made.AUTHORITY, made.KEY]
    assert scp11.split_certificates(made.GP_KEY) == [made.GP_KEY]
    with pytest.raises(DecodeError):
        scp11.split_certificates(made.KEY[:-1])


def test_private_keys_and_derived_ones_are_not_printed() -> None:
    keys = _card_keys()
    assert "bytes)" in repr(keys)
    assert all(bytes(key).hex() not in repr(keys) and str(bytes(key)) not in repr(keys) for key in (keys.receipt,))
