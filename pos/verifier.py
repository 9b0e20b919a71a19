# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""S8: is this card to be trusted? Pure functions, bytes and trust in, a verified card out.

The order matters and is the design's: signatures first, then decryption, then the number.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocol import channel, envelope, signing
from protocol.card_number import CardNumber
from protocol.certificate import Authority, CredentialCertificate, Usage, failed_checks
from protocol.channel import ChannelKeys
from protocol.errors import Check, DecodeError, VerificationError
from protocol.messages import CardPlaintext, VirtualCard


@dataclass(frozen=True, slots=True)
class Trust:
    """What a card is judged by: the issuer, the date, and the numbers that are blocked."""

    issuer: Authority
    today: date
    blocked: Collection[CardNumber]


@dataclass(frozen=True, slots=True)
class VerifiedCard:
    """A card that passed every check, and the channel to it."""

    card: CardPlaintext
    credential: CredentialCertificate
    keys: ChannelKeys


def verify(data: bytes, t2: bytes, tap_key: X25519PrivateKey, trust: Trust) -> VerifiedCard:
    """Return the card in the answer to GET VIRTUAL CARD; VerificationError names the first check that failed.

    `t2` is the transcript digest that the terminal computed itself.
    """
    answer = _decode(data)
    credential = answer.certificate
    failed = failed_checks(credential, Usage.CREDENTIAL, trust.issuer, trust.today)
    signed = envelope.card_signature_input(t2, credential.encode(), answer.sealed)
    if not signing.is_valid(credential.public_key, answer.signature, signed):
        failed.append(Check.SIGNATURE)
    if failed:
        raise VerificationError(failed[0])
    card = _decrypt(answer.sealed, tap_key, t2)
    if card.number in trust.blocked:
        raise VerificationError(Check.CARD_BLOCKED)
    keys = channel.derive(card.secret, t2, answer.sealed, credential.encode())
    return VerifiedCard(card, credential, keys)


def _decode(data: bytes) -> VirtualCard:
    try:
        return VirtualCard.decode(data)
    except DecodeError:
        raise VerificationError(Check.CERTIFICATE_FORMAT) from None


def _decrypt(sealed: bytes, tap_key: X25519PrivateKey, t2: bytes) -> CardPlaintext:
    opened = envelope.unseal(sealed, tap_key, envelope.card_info(t2))
    try:
        return CardPlaintext.decode(opened)
    except DecodeError:
        raise VerificationError(Check.CARD_NUMBER) from None
