# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The terminal's side of settlement: receipts are claimed, and what stayed unknown for too long is given up by a VOID.

Either may be lost and done again. What was given up is never claimed, whatever a later tap brings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pos.identity import Identity
from pos.journal import Journal, Record, State
from protocol import signing
from protocol.certificate import CredentialCertificate
from protocol.errors import Check, DecodeError, VerificationError
from protocol.issuing import encode_message, expect
from protocol.messages import Receipt
from protocol.settlement import MAX_REPORTED, Claim, ReportAnswer, TerminalReport, Verdict, Void
from protocol.transport.issuer import IssuerLink

_UNSIGNED = bytes(signing.SIGNATURE_LENGTH)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settlement brought: how many claims and VOIDs got which verdict, and how many results are still not known."""

    verdicts: Counter[Verdict]
    paid: int
    unknown: int


def settle(identity: Identity, journal: Journal, issuer: IssuerLink, void_after: float, now: float) -> Settled:
    """Claim every receipt that has no verdict, and VOID what has been open for `void_after` seconds.

    `now` is in seconds since 1970; `paid` in the answer is in minor units. VerificationError for an answer that is not the
    issuer's, LinkUnavailableError when there is none; nothing is written down then.
    """
    records = journal.records()
    claims = [one for one in records if one.state is State.APPROVED and one.verdict is None]
    old = [one for one in records if one.state is State.OPEN and now - _age_zero(one) >= void_after]
    voids = [one for one in old if one.verdict is None]
    verdicts: dict[bytes, Verdict] = {}
    for part in _parts(claims):
        verdicts |= _report(identity, issuer, part, [])
    for part in _parts(voids):
        verdicts |= _report(identity, issuer, [], part)
    if verdicts:
        journal.judge(verdicts)
    paid = sum(one.amount for one in claims if verdicts[one.transaction_id] is Verdict.PAID)
    unknown = sum(one.state is State.OPEN and one.verdict is None for one in journal.records())
    return Settled(Counter(verdicts.values()), paid, unknown)


def _age_zero(record: Record) -> float:
    return datetime.fromisoformat(record.started).astimezone(UTC).timestamp()


def _parts(records: Sequence[Record]) -> list[Sequence[Record]]:
    return [records[start : start + MAX_REPORTED] for start in range(0, len(records), MAX_REPORTED)]


def _report(
    identity: Identity, issuer: IssuerLink, claims: Sequence[Record], voids: Sequence[Record]
) -> dict[bytes, Verdict]:
    report = TerminalReport(
        tuple(_claim(identity, record) for record in claims), tuple(_void(identity, record) for record in voids)
    )
    answer = expect(issuer.exchange(encode_message(report)), ReportAnswer)
    key = identity.anchors.operations_key
    if not signing.is_valid(key, answer.signature, answer.signature_input(report.digest())):
        raise VerificationError(Check.SIGNATURE)
    reported = [*claims, *voids]
    if len(answer.verdicts) != len(reported):
        raise DecodeError("ReportAnswer", "verdicts", "not one for each claim and VOID")
    return {one.transaction_id: verdict for one, verdict in zip(reported, answer.verdicts, strict=True)}


def _claim(identity: Identity, record: Record) -> Claim:
    serial = CredentialCertificate.decode(record.credential).serial
    unsigned = Claim(serial, Receipt.decode(record.receipt), record.signature, _UNSIGNED)
    return replace(unsigned, signature=identity.key.sign(unsigned.signature_input()))


def _void(identity: Identity, record: Record) -> Void:
    serial = CredentialCertificate.decode(record.credential).serial
    counter = Receipt.decode(record.receipt).counter
    unsigned = Void(record.terminal_hash, serial, counter, record.transaction_id, _UNSIGNED)
    return replace(unsigned, signature=identity.key.sign(unsigned.signature_input()))
