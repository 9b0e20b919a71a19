# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""SCP11a and SCP11b, GlobalPlatform Card Specification Amendment F v1.3: bodies, key agreement, receipt. Pure functions.

P-256, AES-128, key usage 3C: secure messaging with C-MAC, C-ENCRYPTION, R-MAC and R-ENCRYPTION, never less.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from construct import Byte, Bytes, Const, Construct, FocusedSeq
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocol.apdu import MAX_NE, SHORT_MAX_NE, Command
from protocol.errors import Check, VerificationError
from protocol.layout import Fields
from protocol.scp03 import KEY_LENGTH, SecureMessaging, SessionKeys
from protocol.secret import Secret
from protocol.tlv import encode, parse_list, tagged
from protocol.wire import Nested, Wire

KEY_USAGE = 0x3C
KEY_TYPE_AES = 0x88
SHARED_INFO = bytes([KEY_USAGE, KEY_TYPE_AES, KEY_LENGTH])
POINT_LENGTH = 65
RECEIPT_LENGTH = 16
MAX_CERTIFICATES = 4
OCE_AUTHORITY_KID = 0x10
MORE_CERTIFICATES = 0x80

_CURVE = ec.SECP256R1()
_SCP11 = 0x11
_CLA_HANDSHAKE = 0x80
_CLA_GET_DATA = 0x00
_CONTROL_REFERENCE = 0xA6
_PUBLIC_KEY = 0x5F49
_RECEIPT = 0x86
_KEY_REFERENCE = 0x83
CERTIFICATE_STORE = 0xBF21
CARD_VERIFIABLE_CERTIFICATE = 0x7F21


class ChannelIns(IntEnum):
    """Instruction bytes of setting a channel up; EXTERNAL AUTHENTICATE is what Amendment F calls MUTUAL AUTHENTICATE."""

    PERFORM_SECURITY_OPERATION = 0x2A
    EXTERNAL_AUTHENTICATE = 0x82
    INTERNAL_AUTHENTICATE = 0x88
    GET_DATA = 0xCA

    @property
    def title(self) -> str:
        """The name that a person reads."""
        return self.name.replace("_", " ")


class Variant(IntEnum):
    """Which SCP11, by its key identifier: with a, both ends prove who they are, with b only the card does."""

    SCP11A = 0x11
    SCP11B = 0x13

    @property
    def parameters(self) -> int:
        """The second byte of the SCP identifier."""
        return 0x01 if self is Variant.SCP11A else 0x00

    @property
    def ins(self) -> ChannelIns:
        """The instruction of the key agreement."""
        return ChannelIns.EXTERNAL_AUTHENTICATE if self is Variant.SCP11A else ChannelIns.INTERNAL_AUTHENTICATE


@dataclass(frozen=True, slots=True)
class ControlReference(Wire):
    """What is agreed on: parameters of SCP11 (00 or 01), key usage (3C), key type (88, AES) and key length (16)."""

    parameters: int
    key_usage: int = KEY_USAGE
    key_type: int = KEY_TYPE_AES
    key_length: int = KEY_LENGTH

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "parameters" / tagged(0x90, FocusedSeq("value", Const(bytes([_SCP11])), "value" / Byte)),
        "key_usage" / tagged(0x95, Byte),
        "key_type" / tagged(0x80, Byte),
        "key_length" / tagged(0x81, Byte),
    )


@dataclass(frozen=True, slots=True)
class KeyAgreement(Wire):
    """Body of INTERNAL and EXTERNAL AUTHENTICATE: what is agreed on, and the ephemeral point of the off-card entity."""

    control: ControlReference
    point: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "control" / tagged(_CONTROL_REFERENCE, Nested(ControlReference)),
        "point" / tagged(_PUBLIC_KEY, Bytes(POINT_LENGTH)),
    )


@dataclass(frozen=True, slots=True)
class KeyAgreementAnswer(Wire):
    """The card's ephemeral point and its receipt."""

    point: bytes
    receipt: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "point" / tagged(_PUBLIC_KEY, Bytes(POINT_LENGTH)),
        "receipt" / tagged(_RECEIPT, Bytes(RECEIPT_LENGTH)),
    )


@dataclass(frozen=True, slots=True)
class AgreedKeys:
    """What both ends derive: the key of the receipt and those of the session."""

    receipt: Secret
    session: SessionKeys


def is_full(control: ControlReference, variant: Variant) -> bool:
    """Tell whether `control` asks for `variant` at the one security level that there is."""
    return control == ControlReference(variant.parameters)


def point_of(public: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as 04 ‖ x ‖ y."""
    return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def exchange(private: ec.EllipticCurvePrivateKey, point: bytes) -> Secret:
    """Return the shared secret of ECKA-DH; VerificationError when `point` is not on the curve."""
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, point)
    except ValueError:
        raise VerificationError(Check.CHANNEL) from None
    return Secret(private.exchange(ec.ECDH(), public))


def derive(ephemeral: bytes, static: bytes) -> AgreedKeys:
    """Return the keys of ShSee ‖ ShSes: X9.63 KDF with SHA-256 and key usage ‖ key type ‖ key length as shared info.

    The fifth key, S-DEK, encrypts keys that are put into a card; nothing here does that.
    """
    derived = X963KDF(SHA256(), 5 * KEY_LENGTH, SHARED_INFO).derive(ephemeral + static)
    receipt, enc, mac, rmac, _ = (Secret(derived[at : at + KEY_LENGTH]) for at in range(0, len(derived), KEY_LENGTH))
    return AgreedKeys(receipt, SessionKeys(enc, mac, rmac))


def receipt_of(keys: AgreedKeys, agreement: KeyAgreement, point: bytes) -> bytes:
    """Return the receipt: AES-CMAC over the body of the command and the card's ephemeral point as data object 5F49."""
    cmac = CMAC(AES(keys.receipt))
    cmac.update(agreement.encode() + encode(_PUBLIC_KEY, point))
    return cmac.finalize()


def start(keys: AgreedKeys, receipt: bytes) -> SecureMessaging:
    """Return the channel before its first command: the receipt is the first MAC chaining value."""
    return SecureMessaging(keys.session, Secret(receipt))


def perform_security_operation(certificate: bytes, *, more: bool = False, version: int = 0) -> Command:
    """PERFORM SECURITY OPERATION [verify certificate]: X.509 DER or 7F21; `more` when the one it certifies follows."""
    p2 = OCE_AUTHORITY_KID | (MORE_CERTIFICATES if more else 0)
    return Command(_CLA_HANDSHAKE, ChannelIns.PERFORM_SECURITY_OPERATION, version, p2, certificate)


def authenticate(variant: Variant, version: int, agreement: KeyAgreement) -> Command:
    """INTERNAL AUTHENTICATE (SCP11b) or EXTERNAL AUTHENTICATE (SCP11a) with the card's key of `version`."""
    return Command(_CLA_HANDSHAKE, variant.ins, version, variant, agreement.encode(), SHORT_MAX_NE)


def get_certificates(variant: Variant, version: int, tag: int = CERTIFICATE_STORE) -> Command:
    """GET DATA for the certificates of one of the card's keys: BF21 is the chain of X.509, 7F21 the card-verifiable one."""
    p1, p2 = divmod(tag, 0x100)
    return Command(_CLA_GET_DATA, ChannelIns.GET_DATA, p1, p2, certificate_request(variant, version), MAX_NE)


def certificate_request(variant: int, version: int) -> bytes:
    """Return the data of GET DATA for certificates: A6 with the reference of a key."""
    return encode(_CONTROL_REFERENCE, encode(_KEY_REFERENCE, bytes([variant, version])))


def split_certificates(data: bytes) -> list[bytes]:
    """Return the certificates that follow each other in an answer, leaf last; DecodeError when they are no data objects."""
    return [encode(tag, value) for tag, value in parse_list(data, "Certificates")]
