# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What can go wrong, in three branches: the link (try again), a refusal (declined), a failed check (never)."""

from __future__ import annotations

from enum import StrEnum


class TapLabError(Exception):
    """Root of every error that this project raises on purpose; its text is one sentence for a person."""


class MissingOnMachineError(TapLabError):
    """A package, module, service or kernel feature is not there; the text says what to install or enable."""


class InUseError(TapLabError):
    """Another process has what is needed; the same will work once it has ended."""


class UsageError(TapLabError):
    """What the user asked for makes no sense or cannot be read; nothing was changed."""


class DecodeError(TapLabError):
    """Bytes that are not exactly one well-formed encoding.

    `structure` names the message, `field` the place in it, as in ``Certificate.serial``.
    """

    def __init__(self, structure: str, field: str, why: str) -> None:
        """Keep the names apart, so that a caller can tell which field was bad."""
        super().__init__(f"{structure}{'.' if field else ''}{field}: {why}")
        self.structure = structure
        self.field = field


class TransportError(TapLabError):
    """The link failed; the same transaction may work when it is tried again."""


class CardRemovedError(TransportError):
    """The card has left the field, or its end of the link was closed."""


class CardSilentError(TransportError):
    """The card is there but has not answered in the time that the link allows."""


class ForeignCardError(TransportError):
    """There is a card, or several, that cannot be what is looked for; the text says what it is."""


class LinkUnavailableError(TransportError):
    """The link could not be opened: nobody at the other end, no reader, no right to use it."""


class Check(StrEnum):
    """What is checked before anything is trusted; each value is how a person reads that it failed."""

    CERTIFICATE_FORMAT = "certificate malformed"
    CERTIFICATE_USAGE = "certificate made for another use"
    CERTIFICATE_ISSUER = "certificate from an unknown authority"
    CERTIFICATE_SIGNATURE = "certificate signature wrong"
    CERTIFICATE_NOT_YET_VALID = "certificate not yet valid"
    CERTIFICATE_EXPIRED = "certificate expired"
    CERTIFICATE_BLOCKED = "certificate on the blocked list"
    TRANSCRIPT = "transcript does not match what was exchanged"
    SIGNATURE = "signature wrong"
    ENCRYPTION = "ciphertext cannot be opened"
    CARD_NUMBER = "virtual card number invalid"
    CARD_BLOCKED = "virtual card number on the blocked list"
    CURRENCY = "purse in another currency"
    RECEIPT = "receipt signature wrong"
    CHANNEL = "channel broken"
    RELAY = "answer too late for a card in the field: it may be relayed"


class VerificationError(TapLabError):
    """A check failed: whatever was being verified must not be trusted now or later."""

    def __init__(self, check: Check) -> None:
        """Keep the check, so that the party that found it can report it by name."""
        super().__init__(check.value)
        self.check = check
