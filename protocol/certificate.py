# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Card-verifiable certificates: ISO 7816-8:2021 Annex A with the tags of GlobalPlatform Amendment F §6.1 (7F21).

Two kinds: the acquirer certifies terminals, the issuer certifies credentials. The order of the data objects is fixed,
so one construct layout both builds and parses; anything else is refused before a signature is looked at.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass, replace
from datetime import date
from enum import IntEnum
from typing import Any, ClassVar, TypeVar

from construct import Byte, Bytes, Construct, GreedyBytes

from protocol import signing
from protocol.errors import Check
from protocol.layout import Fields
from protocol.tags import Tag
from protocol.tlv import optional, tagged
from protocol.wire import Coded, FieldAdapter, Nested, NumericDate, NumericInt, Wire

SERIAL_LENGTH = 8
AUTHORITY_LENGTH = 4
TERMINAL_ID_LENGTH = 8
MERCHANT_NAME_LENGTH = 16
_SIGNATURE_OBJECT = 3 + signing.SIGNATURE_LENGTH


class Usage(IntEnum):
    """What a certified key may be used for (tag 95; the values are project-defined)."""

    TERMINAL = 0x01
    CREDENTIAL = 0x02


class PrintableText(FieldAdapter):
    """One to `limit` characters 20 to 7E."""

    def __init__(self, limit: int) -> None:
        """Describe a field of at most `limit` characters."""
        super().__init__(GreedyBytes)
        self._limit = limit

    def _decode(self, obj: bytes, context: Any, path: Any) -> str:
        text = obj.decode("ascii")
        self._check(text)
        return text

    def _encode(self, obj: str, context: Any, path: Any) -> bytes:
        self._check(obj)
        return obj.encode("ascii")

    def _check(self, text: str) -> None:
        if not 1 <= len(text) <= self._limit or not all(" " <= char <= "~" for char in text):
            raise ValueError(f"a name has 1 to {self._limit} printable ASCII characters")


def _layout(*body: Any) -> Construct[Any, Any]:
    return tagged(Tag.CERTIFICATE, Fields(*body))


_COMMON_HEAD = (
    "serial" / tagged(Tag.CERTIFICATE_SERIAL, Bytes(SERIAL_LENGTH)),
    "authority" / tagged(Tag.ISSUER_IDENTIFICATION_NUMBER, Bytes(AUTHORITY_LENGTH)),
)
_COMMON_USE = (
    "usage" / tagged(Tag.KEY_USAGE, Coded(Usage, Byte)),
    "valid_from" / tagged(Tag.EFFECTIVE_DATE, NumericDate(8)),
    "valid_until" / tagged(Tag.EXPIRATION_DATE, NumericDate(8)),
)
_COMMON_TAIL = (
    "public_key" / tagged(Tag.PUBLIC_KEY, tagged(Tag.PUBLIC_KEY_POINT, Bytes(signing.POINT_LENGTH))),
    "signature" / tagged(Tag.SIGNATURE, Bytes(signing.SIGNATURE_LENGTH)),
)


@dataclass(frozen=True, slots=True)
class _Certificate(Wire):
    """What both kinds share."""

    serial: bytes
    authority: bytes
    usage: Usage
    valid_from: date
    valid_until: date
    public_key: bytes
    signature: bytes

    def signed_part(self) -> bytes:
        """Return the bytes that the authority signs: every data object in 7F21 before the signature."""
        encoded = self.encode()
        return encoded[_head_length(encoded) : -_SIGNATURE_OBJECT]


def _head_length(encoded: bytes) -> int:
    return 2 + (2 if encoded[2] == 0x81 else 1)


@dataclass(frozen=True, slots=True)
class Merchant(Wire):
    """Who is paid: name (20–7E, at most 16), merchant category code (ISO 18245), currency number (ISO 4217)."""

    name: str
    category: int
    currency: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "name" / tagged(Tag.MERCHANT_NAME, PrintableText(MERCHANT_NAME_LENGTH)),
        "category" / tagged(Tag.MERCHANT_CATEGORY, NumericInt(4)),
        "currency" / tagged(Tag.TRANSACTION_CURRENCY, NumericInt(4)),
    )


@dataclass(frozen=True, slots=True)
class TerminalCertificate(_Certificate):
    """An acquirer's certificate for a terminal; `terminal_id` is EMV 9F1C, eight printable characters."""

    terminal_id: str
    merchant: Merchant

    LAYOUT: ClassVar[Construct[Any, Any]] = _layout(
        *_COMMON_HEAD,
        "terminal_id" / tagged(Tag.SUBJECT_IDENTIFIER, PrintableText(TERMINAL_ID_LENGTH)),
        *_COMMON_USE,
        "merchant" / tagged(Tag.DISCRETIONARY_DATA, Nested(Merchant)),
        *_COMMON_TAIL,
    )


@dataclass(frozen=True, slots=True)
class CredentialCertificate(_Certificate):
    """An issuer's certificate for one credential: a random serial, no name, whole months, an offline ceiling.

    `offline_ceiling` is the most, in minor units of the purse currency, that one receipt of this credential may claim.
    `co_signing_key`, a compressed point, is there when a receipt of this credential needs a Trusted Key's signature too. It
    is good for one receipt, as the credential is: one that stayed the same would link taps.
    """

    offline_ceiling: int
    co_signing_key: bytes = b""

    LAYOUT: ClassVar[Construct[Any, Any]] = _layout(
        *_COMMON_HEAD,
        *_COMMON_USE,
        "offline_ceiling" / tagged(Tag.DISCRETIONARY_DATA, tagged(Tag.OFFLINE_CEILING, NumericInt(12))),
        "co_signing_key" / optional(Tag.CO_SIGNING_KEY, Bytes(signing.POINT_LENGTH)),
        *_COMMON_TAIL,
    )


AnyCertificate = TypeVar("AnyCertificate", TerminalCertificate, CredentialCertificate)


@dataclass(frozen=True, slots=True)
class Authority:
    """A trust anchor: the four bytes that certificates name it by, and its public key."""

    identifier: bytes
    public_key: bytes


def issue(unsigned: AnyCertificate, key: signing.PrivateKey) -> AnyCertificate:
    """Return `unsigned` with the authority's signature in place of whatever stood there."""
    return replace(unsigned, signature=key.sign(unsigned.signed_part()))


def failed_checks(certificate: _Certificate, usage: Usage, authority: Authority, today: date) -> list[Check]:
    """Return every check that `certificate` fails, in the order a person should hear of them.

    All checks are always made, so that the time taken does not tell which one failed.
    """
    checks = {
        Check.CERTIFICATE_USAGE: certificate.usage is usage,
        Check.CERTIFICATE_ISSUER: certificate.authority == authority.identifier,
        Check.CERTIFICATE_SIGNATURE: signing.is_valid(
            authority.public_key, certificate.signature, certificate.signed_part()
        ),
        Check.CERTIFICATE_NOT_YET_VALID: certificate.valid_from <= today,
        Check.CERTIFICATE_EXPIRED: today <= certificate.valid_until,
    }
    return [check for check, good in checks.items() if not good]


def whole_months(today: date) -> tuple[date, date]:
    """Return the first day of this month and the last of the next one.

    All credentials made in a month share these dates, so validity links nothing; at least a month is left, and at
    most 30 days more.
    """
    year, month = (today.year, today.month + 1) if today.month < 12 else (today.year + 1, 1)
    return today.replace(day=1), date(year, month, calendar.monthrange(year, month)[1])
