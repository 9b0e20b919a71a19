# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Whether a terminal has proved itself: everything that came with GET VIRTUAL CARD, judged as a pure function."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from typing import NoReturn

from protocol import signing
from protocol.certificate import Authority, Usage, failed_checks
from protocol.commands import Ins
from protocol.errors import Check, DecodeError, VerificationError
from protocol.fci import ApplicationFci
from protocol.messages import CHALLENGE_LENGTH, GetVirtualCard
from protocol.status import StatusWord
from protocol.transcript import Digests, exchanges

_SIGNATURES = 2  # the certificate's and the request's
_SOME_SIGNATURE = b"\x01" * signing.SIGNATURE_LENGTH


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must hold: the acquirer, the date, the blocked serials, and what this TEE itself contributed to the tap."""

    acquirer: Authority
    today: date
    blocked: Collection[bytes]
    nonce: bytes
    versions: tuple[int, ...]
    suites: tuple[int, ...]


def require_proof(hello: GetVirtualCard, digests: Digests, prefix: bytes, expected: Expectation) -> None:
    """Raise VerificationError for the first check that fails, after all of them have been made."""
    failed = failed_checks(hello.certificate, Usage.TERMINAL, expected.acquirer, expected.today)
    signed = GetVirtualCard.signature_input(digests.t1)
    if not signing.is_valid(hello.certificate.public_key, hello.signature, signed):
        failed.append(Check.SIGNATURE)
    if hello.certificate.serial in expected.blocked:
        failed.append(Check.CERTIFICATE_BLOCKED)
    if not _is_ours(prefix, expected):
        failed.append(Check.TRANSCRIPT)
    if failed:
        raise VerificationError(failed[0])


def refuse_alike(check: Check, acquirer: Authority) -> NoReturn:
    """Raise VerificationError after as many signature checks as a well-formed request costs.

    What cannot even be read must take what a bad signature takes, or the time would tell a terminal how far it got.
    """
    for _ in range(_SIGNATURES):
        signing.is_valid(acquirer.public_key, _SOME_SIGNATURE, b"")
    raise VerificationError(check)


def _is_ours(prefix: bytes, expected: Expectation) -> bool:
    """Tell whether what the client application says was exchanged holds our nonce and our own offer."""
    try:
        said = exchanges(prefix)
        (relay, nonce), (select, fci) = said[-1], said[-2]
        offered = ApplicationFci.decode(fci.data)
    except (DecodeError, IndexError):
        return False
    return (
        relay.ins == Ins.RELAY_CHECK
        and len(relay.data) == CHALLENGE_LENGTH
        and (nonce.data, nonce.sw) == (expected.nonce, StatusWord.OK)
        and (select.ins, fci.sw) == (Ins.SELECT, StatusWord.OK)
        and (offered.versions, offered.suites) == (expected.versions, expected.suites)
    )
