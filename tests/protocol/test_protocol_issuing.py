# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Messages to and from the issuer: one kind byte and one exact body, each signed for its own purpose."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import issuing, signing
from protocol.card_number import CardNumber
from protocol.certificate import CredentialCertificate, Merchant, TerminalCertificate
from protocol.errors import DecodeError
from protocol.issuing import (
    MAX_CREDENTIALS,
    Anchors,
    AnchorsRequest,
    Application,
    BlockList,
    BlockListRequest,
    Issuance,
    IssuedNumbers,
    IssuerRefusedError,
    Refusal,
    RefusalReason,
    TerminalApplication,
    TerminalIssuance,
    Unblocking,
    UnblockRequest,
    decode_message,
    encode_message,
)
from protocol.settlement import (
    IssuerNonce,
    NonceRequest,
    ReportAnswer,
    Settlement,
    Standing,
    Statement,
    TerminalReport,
)
from protocol.signing import PrivateKey
from protocol.vouchers import LoadRequest, Voucher, device_id
from protocol.wire import Wire

_SIGNATURE = bytes(64)
_KEY = PrivateKey.from_scalar(bytes([5]) * 32)
_OTHER_KEY = PrivateKey.from_scalar(bytes([6]) * 32)
_APPLICATION = Application(_KEY.public, bytes(32), 978, 1, (_KEY.public, _OTHER_KEY.public), _SIGNATURE)
_BLOCKED = BlockList(1, (bytes(8),), (CardNumber.from_index(1),), _SIGNATURE)


@pytest.fixture
def messages(
    terminal_certificate: TerminalCertificate, credential_certificate: CredentialCertificate
) -> dict[int, Wire]:
    """One message of each kind by the byte that announces it."""
    return {
        0x01: AnchorsRequest(),
        0x81: Anchors(b"ISS1", _KEY.public, _KEY.public, b"ACQ1", _OTHER_KEY.public),
        0x02: _APPLICATION,
        0x82: Issuance((credential_certificate,), bytes(57), _SIGNATURE),
        0x03: LoadRequest(bytes(8), 1, 1000, 978, _SIGNATURE),
        0x83: Voucher(bytes(8), 1, 1000, 978, _SIGNATURE),
        0x04: TerminalApplication(_KEY.public, "TERM0001", Merchant("Corner Bakery", 5462, 978), _SIGNATURE),
        0x84: TerminalIssuance(terminal_certificate),
        0x05: BlockListRequest(),
        0x85: _BLOCKED,
        0x06: NonceRequest(bytes(8)),
        0x86: IssuerNonce(bytes(16)),
        0x07: Statement(bytes(8), bytes(16), bytes(16), False, 0, 0, 1, (), (), _SIGNATURE),
        0x87: Settlement(bytes(8), bytes(16), Standing.GOOD, 0, 0, 0, 0, (), (), 1, _SIGNATURE),
        0x08: TerminalReport((), ()),
        0x88: ReportAnswer((), _SIGNATURE),
        0x09: UnblockRequest(bytes(8), bytes(16), _SIGNATURE),
        0x89: Unblocking(bytes(8), bytes(16), _SIGNATURE),
        0xFF: Refusal(RefusalReason.BLOCKED),
    }


def test_every_message_has_its_kind_in_front(messages: dict[int, Wire]) -> None:
    for kind, message in messages.items():
        assert encode_message(message) == bytes([kind]) + message.encode()
        assert decode_message(encode_message(message)) == message


def test_every_message_of_the_module_has_a_kind(messages: dict[int, Wire]) -> None:
    defined = {
        kind
        for _, kind in inspect.getmembers(issuing, inspect.isclass)
        if issubclass(kind, Wire) and kind.__module__ == issuing.__name__
    }
    assert defined - {type(message) for message in messages.values()} == {IssuedNumbers}  # travels sealed


def test_request_and_answer_of_one_layout_are_told_apart_by_kind() -> None:
    load = LoadRequest(bytes(8), 1, 1000, 978, _SIGNATURE)
    assert isinstance(decode_message(encode_message(load)), LoadRequest)
    assert isinstance(decode_message(b"\x83" + load.encode()), Voucher)


def test_unknown_kind_is_refused(messages: dict[int, Wire]) -> None:
    for kind in set(range(256)) - set(messages):
        with pytest.raises(DecodeError, match="kind"):
            decode_message(bytes([kind]) + bytes(64))


def test_no_message_is_refused() -> None:
    with pytest.raises(DecodeError, match="kind"):
        decode_message(b"")


@given(st.sampled_from([*range(0x01, 0x09), *range(0x81, 0x89), 0xFF]), st.binary(max_size=200))
def test_any_body_is_refused_or_the_one_encoding_of_a_message(kind: int, body: bytes) -> None:
    data = bytes([kind]) + body
    try:
        message = decode_message(data)
    except DecodeError:
        return
    assert encode_message(message) == data


def test_counts_that_announce_more_than_is_there_are_refused_at_once() -> None:
    with pytest.raises(DecodeError):
        decode_message(b"\x85" + bytes(8) + b"\xff\xff\xff\xff")
    with pytest.raises(DecodeError):
        decode_message(b"\x85" + bytes(12) + b"\xff\xff\xff\xff")


@pytest.mark.parametrize("count", [0, MAX_CREDENTIALS + 1])
def test_application_is_for_1_to_64_credentials(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        replace(_APPLICATION, credential_keys=(_KEY.public,) * count)


def test_application_for_no_credential_is_refused_on_the_wire() -> None:
    encoded = _KEY.public + bytes(32) + bytes.fromhex("0978 01 00 00") + _SIGNATURE
    with pytest.raises(DecodeError, match="1 to 64"):
        Application.decode(encoded)


def test_lists_become_tuples() -> None:
    assert isinstance(Application.decode(_APPLICATION.encode()).credential_keys, tuple)
    assert isinstance(BlockList.decode(_BLOCKED.encode()).numbers, tuple)
    assert hash(BlockList.decode(_BLOCKED.encode())) == hash(_BLOCKED)


def test_device_is_known_by_the_hash_of_its_key() -> None:
    assert device_id(_KEY.public) == hashlib.sha256(_KEY.public).digest()[:8]


def test_signature_covers_everything_before_it(messages: dict[int, Wire]) -> None:
    signed = [message for message in messages.values() if isinstance(message, _Signed)]
    assert len(signed) == 5
    for message in signed:
        assert message.signature_input().endswith(message.encode()[:-64])
        resigned = replace(message, signature=_KEY.sign(b""))
        assert resigned.signature_input() == message.signature_input()
        assert resigned.encode() != message.encode()


_Signed = (Application, LoadRequest, Voucher, TerminalApplication, BlockList)


def test_no_two_messages_are_signed_alike(messages: dict[int, Wire]) -> None:
    inputs = [message.signature_input() for message in messages.values() if isinstance(message, _Signed)]
    assert len(set(inputs)) == len(inputs)


def test_issuance_is_bound_to_application_certificates_and_numbers(
    credential_certificate: CredentialCertificate,
) -> None:
    issuance = Issuance((credential_certificate,), bytes(57), _SIGNATURE)
    digest = _APPLICATION.digest()
    inputs = {
        issuance.signature_input(digest),
        issuance.signature_input(replace(_APPLICATION, currency=392).digest()),
        replace(issuance, certificates=()).signature_input(digest),
        replace(issuance, certificates=(credential_certificate,) * 2).signature_input(digest),
        replace(issuance, sealed_numbers=bytes(58)).signature_input(digest),
    }
    assert len(inputs) == 5


def test_numbers_are_sealed_for_one_application() -> None:
    assert IssuedNumbers.info(_APPLICATION.digest()) != IssuedNumbers.info(bytes(32))


def test_signed_message_verifies_and_a_changed_one_does_not() -> None:
    voucher = Voucher(bytes(8), 1, 1000, 978, _SIGNATURE)
    voucher = replace(voucher, signature=_KEY.sign(voucher.signature_input()))
    assert signing.is_valid(_KEY.public, voucher.signature, voucher.signature_input())
    for changed in (
        replace(voucher, device=b"\x01" * 8),
        replace(voucher, number=2),
        replace(voucher, amount=100000),
        replace(voucher, currency=392),
    ):
        assert not signing.is_valid(_KEY.public, changed.signature, changed.signature_input())  # M3


@pytest.mark.parametrize("reason", RefusalReason)
def test_every_refusal_has_words(reason: RefusalReason) -> None:
    assert str(IssuerRefusedError(reason)) == f"the issuer refused: {reason.words}"
    assert Refusal.decode(bytes([reason])) == Refusal(reason)
