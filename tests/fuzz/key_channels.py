# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What both ends of a Key's channel promise of foreign certificates, commands and answers."""

from __future__ import annotations

from protocol import scp11
from protocol.apdu import Command, Response
from protocol.channel_certificate import is_signed_by, read
from protocol.errors import DecodeError, TapLabError
from protocol.scp11 import ControlReference, KeyAgreement, KeyAgreementAnswer, Variant
from protocol.status import StatusWord
from tests.fuzz.cutting import chunks, join, refused
from tests.trusted_key import certificates as made
from tests.trusted_key.small_key import HOST, PAIRED, PEER, Bench
from wallet.tee.key_channel import open_scp11a

CERTIFICATES = (made.HOST, made.AUTHORITY, made.GP_HOST, made.GP_AUTHORITY)
_AUTHORITIES = tuple(read(one) for one in (made.AUTHORITY, made.GP_AUTHORITY))
_SIGNED = (*CERTIFICATES, made.KEY, made.GP_KEY)
_POINT = scp11.point_of(made.STRANGER_KEY.public_key())
_OK = StatusWord.OK.to_bytes(2, "big")


def _agree(variant: Variant) -> bytes:
    return scp11.authenticate(variant, 1, KeyAgreement(ControlReference(variant.parameters), _POINT)).encode()


COMMANDS = (
    join(
        scp11.perform_security_operation(made.AUTHORITY, more=True).encode(),
        scp11.perform_security_operation(made.HOST).encode(),
        _agree(Variant.SCP11A),
        Command(0x84, 0x10, 0, 0, bytes(8), 256).encode(),
    ),
    join(scp11.perform_security_operation(made.GP_HOST).encode(), _agree(Variant.SCP11A)),
    join(_agree(Variant.SCP11B), Command(0x84, 0x10, 0, 0, bytes(24)).encode(), Command(0x80, 0x12, 0, 0).encode()),
    join(
        scp11.get_certificates(Variant.SCP11A, 1).encode(), scp11.get_certificates(Variant.SCP11B, 1, 0x7F21).encode()
    ),
)
ANSWERS = (
    join(made.AUTHORITY + made.KEY + _OK, _OK, _OK, KeyAgreementAnswer(_POINT, bytes(16)).encode() + _OK),
    join(made.KEY + _OK, _OK, b"\x69\x82"),
)


def check_certificate(data: bytes) -> str:
    """Expect DecodeError or a certificate that is those bytes, and nobody's signature under what he did not sign."""
    try:
        certificate = read(data)
    except DecodeError as error:
        return refused(error)
    assert certificate.encoded == data
    signed = [is_signed_by(certificate, authority) for authority in _AUTHORITIES]
    assert not any(signed) or data in _SIGNED
    return f"{sorted(certificate.uses)} {signed}"


def check_key(data: bytes) -> str:
    """Feed a Key commands of somebody who knows no key: none is served as secure, whichever certificates he has."""
    bench = Bench()
    last = b""
    for apdu in chunks(data):
        last = bench.card.process(apdu)
    assert not any(access.secure for access in bench.key.served)
    assert bench.channel.access.peer in (b"", PEER)
    return f"{bench.channel.is_open} {bench.channel.access.peer.hex()} {last[-2:].hex()}"


def check_trusted_world(data: bytes) -> str:
    """Feed a trusted world answers of somebody who knows no key: the channel never opens."""
    channel = open_scp11a(HOST, PAIRED, made.NOW)
    outcome = "open ended"
    try:
        for answer in chunks(data):
            channel.take(Response.decode(answer))
    except TapLabError as error:
        outcome = refused(error)
    assert not channel.is_open
    return outcome
