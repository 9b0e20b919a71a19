# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Settling what an earlier, torn tap left open, at the next tap of the same wallet.

The card says what is open with this terminal. CANCEL brings the final result, signed by the credential of that
transaction; CONFIRM ends it and brings the next one. Each step may be lost and done again.
"""

from __future__ import annotations

from dataclasses import replace

from pos.journal import Journal, Record, State
from pos.session import CardSession
from protocol.certificate import CredentialCertificate
from protocol.errors import Check, VerificationError
from protocol.messages import NOTHING_OPEN, Receipt, Result, Settled

MAX_RECOVERED = 16


def settle_open(session: CardSession, journal: Journal, open_id: bytes) -> list[bytes]:
    """Settle everything that the wallet says is open, and return the ids, oldest first.

    VerificationError when a result is not signed by the credential that the journal remembers; TransportError and
    StatusError when the tap is torn again.
    """
    settled: list[bytes] = []
    while open_id != NOTHING_OPEN and len(settled) < MAX_RECOVERED:
        answer = session.cancel(open_id)
        record = journal.find(open_id)
        if record is not None:
            _take_over(journal, record, answer)
        if answer.result is Result.UNKNOWN:
            return settled
        settled.append(open_id)
        open_id = session.confirm(open_id).open_id
        journal.confirm(settled[-1])
    return settled


def _take_over(journal: Journal, record: Record, answer: Settled) -> None:
    """Write a verified result down; what the journal knows already does not change, and unknown stays open."""
    if record.state is not State.OPEN or answer.result is Result.UNKNOWN:
        return
    if not is_shown(record, answer.result, answer.evidence):
        raise VerificationError(Check.RECEIPT)
    state = {Result.APPROVED: State.APPROVED, Result.CANCELLED: State.CANCELLED}.get(answer.result, State.REFUSED)
    reason = "" if state is State.APPROVED else answer.result.words
    journal.settle(record.transaction_id, state, answer.evidence, reason)


def is_shown(record: Record, result: Result, evidence: bytes) -> bool:
    """Tell whether `evidence` shows that the transaction of `record` ended with `result`."""
    certificate = CredentialCertificate.decode(record.credential)
    receipt = Receipt.decode(record.receipt)
    if result is Result.CANCELLED:
        return receipt.cancellation().is_shown_by(evidence, certificate)
    return replace(receipt, result=result).is_shown_by(evidence, certificate)
