# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Once DEBIT has left the terminal: only a tagged answer with a good receipt says anything, and money moves once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, time
from pathlib import Path
from typing import Any

import pytest

from pos.journal import Journal, Record, State
from pos.outcome import Outcome, OutcomeKind
from pos.terminal import Terminal
from protocol import channel
from protocol.certificate import Merchant
from protocol.commands import Ins, in_channel
from protocol.errors import Check
from protocol.messages import Confirm, Debit, Receipt, Result, certificate_hash
from protocol.money import Amount
from protocol.signing import PrivateKey
from protocol.status import StatusError, StatusWord
from protocol.transport.base import CardHandler
from protocol.transport.trace import TracingLink
from tests.end_to_end.parties import (
    REFUSED,
    EditingCard,
    HostileTerminal,
    ToldLaboratory,
    flip,
    link_to,
    terminal_like,
)
from tests.end_to_end.soft_wallet import SoftWallet

EURO = Amount.parse("1.00", "EUR")
DEBIT = Debit(100, 978, date(2026, 1, 2), time(3, 4, 5))
OK = b"\x90\x00"
NOT_SATISFIED = bytes.fromhex("6985")
ANSWER_LENGTH = 65 + channel.TAG_LENGTH


def charge(laboratory: ToldLaboratory, folder: Path, card: CardHandler) -> tuple[Outcome, Record]:
    """Charge `card` 1.00 EUR at a new terminal; return the outcome and the line in the terminal's journal."""
    with Terminal(terminal_like(laboratory.home.path), Journal(folder)) as terminal:
        outcome = terminal.charge(EURO, link_to(card))
    with Journal(folder) as journal:
        [record] = journal.records()
    return outcome, record


def hostile(laboratory: ToldLaboratory, **changes: Any) -> tuple[HostileTerminal, TracingLink]:
    """Return a terminal of ours with an open channel to the wallet."""
    link = TracingLink(link_to(laboratory.phone.card))
    terminal = HostileTerminal(link, terminal_like(laboratory.home.path, **changes))
    terminal.read_card()
    return terminal, link


# --- answers that cannot be believed

UNTAGGED: dict[str, Callable[[bytes], bytes]] = {
    "success without data": lambda _: OK,
    "nothing deducted, in clear": lambda _: bytes.fromhex("6581"),
    "conditions not satisfied": lambda _: NOT_SATISFIED,
    "insufficient funds, in clear": lambda _: bytes([Result.INSUFFICIENT_FUNDS]) + bytes(64) + OK,
    "approved, in clear": lambda _: bytes([Result.APPROVED]) + bytes(64) + OK,
    "terminal not accepted": lambda _: REFUSED,
    "no diagnosis": lambda _: bytes.fromhex("6F00"),
    "another status word": lambda data: data[:-2] + bytes.fromhex("6283"),
    "a status word next to success": lambda data: data[:-2] + bytes.fromhex("9001"),
    "one byte less": lambda data: data[:-3] + data[-2:],
    "one byte more": lambda data: data[:-2] + b"\0" + data[-2:],
    "twice": lambda data: data[:-2] + data,
    "no status word": lambda _: b"",
    "half a status word": lambda _: b"\x90",
}


@pytest.mark.attack("B8")
@pytest.mark.attack("M7")
@pytest.mark.parametrize("what", UNTAGGED)
def test_an_answer_without_a_valid_tag_is_neither_refusal_nor_approval(
    laboratory: ToldLaboratory, tmp_path: Path, what: str
) -> None:
    before = laboratory.balance
    outcome, record = charge(laboratory, tmp_path, EditingCard(laboratory.phone.card, Ins.DEBIT, UNTAGGED[what]))
    assert (outcome.kind, outcome.charged, outcome.receipt_verified) == (OutcomeKind.TORN, None, False)
    assert (record.state, record.confirmed, record.signature) == (State.OPEN, False, b"")
    assert before.minor - laboratory.balance.minor == 100  # it was, and the record is there to settle it


@pytest.mark.attack("B5")
def test_a_change_at_any_byte_of_the_answer_is_not_known(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    believed = []
    for position in range(ANSWER_LENGTH):
        (folder := tmp_path / str(position)).mkdir()

        def edit(data: bytes, position: int = position) -> bytes:
            return flip(data, position)

        card = EditingCard(SoftWallet(laboratory.home.path), Ins.DEBIT, edit)
        outcome, record = charge(laboratory, folder, card)
        believed += [position] if (outcome.kind, record.state) != (OutcomeKind.TORN, State.OPEN) else []
    assert believed == []


def test_the_wallets_user_sees_that_it_is_not_confirmed(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    charge(laboratory, tmp_path, EditingCard(laboratory.phone.card, Ins.DEBIT, lambda _: OK))
    assert laboratory.history()[-1].what == "deducted, not confirmed"


@pytest.mark.attack("T2")
@pytest.mark.parametrize("edit", [lambda _: OK, lambda _: REFUSED, lambda data: flip(data, 0), lambda _: b""])
def test_a_confirmation_that_is_lost_leaves_it_approved(
    laboratory: ToldLaboratory, tmp_path: Path, edit: Callable[[bytes], bytes]
) -> None:
    outcome, record = charge(laboratory, tmp_path, EditingCard(laboratory.phone.card, Ins.CONFIRM, edit))
    assert (outcome.kind, outcome.charged) == (OutcomeKind.APPROVED, True)
    assert (record.state, record.confirmed) == (State.APPROVED, False)


# --- receipts that were edited, by a wallet that has all its keys

RECEIPTS: dict[str, dict[str, Any]] = {
    "another amount": {"debit_changes": {"amount": 1}},
    "another currency": {"debit_changes": {"currency": 840}},
    "another date": {"debit_changes": {"date": date(2000, 1, 1)}},
    "another time": {"debit_changes": {"time": time(0, 0, 0)}},
    "another transaction": {"receipt_changes": {"transaction_id": bytes(16)}},
    "another terminal": {"receipt_changes": {"terminal_hash": bytes(32)}},
    "another credential": {"receipt_changes": {"credential_hash": bytes(32)}},
    "another counter": {"receipt_changes": {"counter": 2}},
    "another version": {"receipt_changes": {"version": 2}},
    "another suite": {"receipt_changes": {"suite": 2}},
    "declined, told as approved": {"receipt_changes": {"result": Result.INSUFFICIENT_FUNDS}},
    "approved, told as declined": {
        "result": Result.INSUFFICIENT_FUNDS,
        "receipt_changes": {"result": Result.APPROVED},
    },
    "another key": {"receipt_key": PrivateKey.generate()},
}


@pytest.mark.attack("B5")
@pytest.mark.parametrize("what", RECEIPTS)
def test_a_receipt_that_does_not_fit_is_never_an_approval(
    laboratory: ToldLaboratory, tmp_path: Path, what: str
) -> None:
    outcome, record = charge(laboratory, tmp_path, SoftWallet(laboratory.home.path, **RECEIPTS[what]))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_VERIFIED, Check.RECEIPT.value)
    assert (outcome.charged, outcome.receipt_verified) == (None, False)
    assert (record.state, record.confirmed) == (State.OPEN, False)


@pytest.mark.parametrize("result", [result for result in Result if result is not Result.APPROVED])
def test_a_signed_refusal_is_final(laboratory: ToldLaboratory, tmp_path: Path, result: Result) -> None:
    outcome, record = charge(laboratory, tmp_path, SoftWallet(laboratory.home.path, result=result))
    see_phone = result is Result.SEE_PHONE
    assert outcome.kind is (OutcomeKind.SEE_PHONE if see_phone else OutcomeKind.DECLINED)
    assert (outcome.reason, outcome.charged) == (result.words, False)
    assert (record.state, record.reason, record.confirmed) == (State.REFUSED, result.words, True)


# --- what a terminal may not do with DEBIT


@pytest.mark.attack("F4")
def test_the_same_debit_bytes_twice_pay_once_and_end_the_session(laboratory: ToldLaboratory) -> None:
    before = laboratory.balance
    terminal, link = hostile(laboratory)
    terminal.session.debit(DEBIT)
    assert link.transceive(link.exchanges[-1].command) == REFUSED
    assert link.transceive(link.exchanges[-1].command) == NOT_SATISFIED
    assert before.minor - laboratory.balance.minor == 100


@pytest.mark.attack("F4")
def test_the_same_debit_under_the_next_number_brings_the_same_receipt(laboratory: ToldLaboratory) -> None:
    before = laboratory.balance
    terminal, _ = hostile(laboratory)
    assert terminal.session.debit(DEBIT) == terminal.session.debit(DEBIT)
    assert before.minor - laboratory.balance.minor == 100


@pytest.mark.attack("F4")
@pytest.mark.parametrize("other", [replace(DEBIT, amount=200), replace(DEBIT, time=time(3, 4, 6))])
def test_another_debit_in_the_same_session_is_refused(laboratory: ToldLaboratory, other: Debit) -> None:
    before = laboratory.balance
    terminal, _ = hostile(laboratory)
    terminal.session.debit(DEBIT)
    with pytest.raises(StatusError) as refused:
        terminal.session.debit(other)
    assert refused.value.status is StatusWord.CONDITIONS_NOT_SATISFIED
    assert before.minor - laboratory.balance.minor == 100


@pytest.mark.attack("F4")
def test_a_recorded_debit_is_worth_nothing_in_the_next_session(laboratory: ToldLaboratory) -> None:
    terminal, link = hostile(laboratory)
    terminal.session.debit(DEBIT)
    recorded = link.exchanges[-1].command
    terminal.leave()
    before = laboratory.balance
    again, link = hostile(laboratory)
    assert link.transceive(recorded) == REFUSED
    with pytest.raises(StatusError):
        again.session.debit(DEBIT)
    assert laboratory.balance == before


@pytest.mark.attack("B2")
@pytest.mark.parametrize("position", [5, 12, 18, 19, 34])
def test_a_debit_changed_on_the_way_deducts_nothing(laboratory: ToldLaboratory, position: int) -> None:
    before = laboratory.balance
    terminal, link = hostile(laboratory)
    verified_keys = terminal.session._keys
    assert verified_keys is not None
    apdu = channel.seal_command(verified_keys, 0, in_channel(Ins.DEBIT, DEBIT.encode())).encode()
    assert link.transceive(flip(apdu, position)) == REFUSED
    assert laboratory.balance == before


@pytest.mark.attack("B2")
def test_a_debit_cannot_travel_as_another_command(laboratory: ToldLaboratory) -> None:
    before = laboratory.balance
    terminal, link = hostile(laboratory)
    assert terminal.session._keys is not None
    sealed = channel.seal_command(terminal.session._keys, 0, in_channel(Ins.CONFIRM, DEBIT.encode())).encode()
    assert link.transceive(bytes([0x80, Ins.DEBIT]) + sealed[2:]) == REFUSED
    assert laboratory.balance == before


def test_a_debit_after_the_field_went_off_deducts_nothing(laboratory: ToldLaboratory) -> None:
    before = laboratory.balance
    terminal, link = hostile(laboratory)
    terminal.leave()
    link.activate(1.0)
    with pytest.raises(StatusError):
        terminal.session.debit(DEBIT)
    assert laboratory.balance == before


def test_a_malformed_debit_in_the_channel_deducts_nothing(laboratory: ToldLaboratory) -> None:
    before = laboratory.balance
    for plaintext in (b"", bytes(14), DEBIT.encode() + b"\0", DEBIT.encode()[:-1], b"\xff" * 14):
        terminal, link = hostile(laboratory)
        assert terminal.session._keys is not None
        sealed = channel.seal_command(terminal.session._keys, 0, in_channel(Ins.DEBIT, plaintext))
        assert len(link.transceive(sealed.encode())) == 2
        terminal.leave()
    assert laboratory.balance == before


def test_a_confirmation_before_any_debit_is_refused(laboratory: ToldLaboratory) -> None:
    terminal, _ = hostile(laboratory)
    with pytest.raises(StatusError) as refused:
        terminal.session.confirm()
    assert refused.value.status is StatusWord.REFERENCED_DATA_NOT_FOUND


# --- what the trusted application refuses, signed


def refused_with(laboratory: ToldLaboratory, debit: Debit, **changes: Any) -> Result:
    before = laboratory.balance
    terminal, _ = hostile(laboratory, **changes)
    result = terminal.session.debit(debit)
    terminal.leave()
    assert laboratory.balance == before
    return result.result


@pytest.mark.attack("B7")
def test_a_foreign_currency_in_the_request_deducts_nothing(laboratory: ToldLaboratory) -> None:
    assert refused_with(laboratory, replace(DEBIT, currency=840)) is Result.CURRENCY_NOT_SUPPORTED
    assert laboratory.history()[-1].what == "declined: currency not supported"


@pytest.mark.attack("B7")
def test_a_terminal_of_a_foreign_currency_deducts_nothing(laboratory: ToldLaboratory) -> None:
    dollars = {"merchant": Merchant("Dollar Store", 5999, 840)}
    assert refused_with(laboratory, replace(DEBIT, currency=840), **dollars) is Result.CURRENCY_NOT_SUPPORTED
    assert refused_with(laboratory, DEBIT, **dollars) is Result.CURRENCY_NOT_SUPPORTED


def test_a_terminal_of_a_foreign_currency_declines_by_itself(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    before = laboratory.balance
    identity = terminal_like(laboratory.home.path, merchant=Merchant("Dollar Store", 5999, 840))
    link = TracingLink(link_to(laboratory.phone.card))
    with Terminal(identity, Journal(tmp_path)) as terminal:
        outcome = terminal.charge(Amount.parse("1.00", "USD"), link)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.DECLINED, "currency not supported")
    assert len(link.exchanges) == 3
    assert laboratory.balance == before


def test_too_little_money_deducts_nothing_and_is_in_the_history(laboratory: ToldLaboratory) -> None:
    assert refused_with(laboratory, replace(DEBIT, amount=50_000)) is Result.INSUFFICIENT_FUNDS
    line = laboratory.history()[-1]
    assert (line.what, line.amount, line.result) == (
        "declined: insufficient funds",
        50_000,
        Result.INSUFFICIENT_FUNDS,
    )


def test_more_than_the_credential_may_claim_deducts_nothing(laboratory: ToldLaboratory) -> None:
    assert refused_with(laboratory, replace(DEBIT, amount=100_001)) is Result.OVER_LIMIT


@pytest.mark.attack("V2")
def test_above_the_limit_without_consent_deducts_nothing(laboratory: ToldLaboratory) -> None:
    assert refused_with(laboratory, replace(DEBIT, amount=5_001)) is Result.SEE_PHONE


def test_a_refusal_and_an_approval_have_one_length(laboratory: ToldLaboratory) -> None:
    lengths = set()
    for amount in (100, 50_000, 5_001, 100_001):
        terminal, link = hostile(laboratory)
        terminal.session.debit(replace(DEBIT, amount=amount))
        lengths.add(len(link.exchanges[-1].answer))
        terminal.leave()
    assert lengths == {ANSWER_LENGTH + 2}


def test_the_receipt_of_a_refusal_is_signed_too(laboratory: ToldLaboratory) -> None:
    terminal = HostileTerminal(link_to(laboratory.phone.card), terminal_like(laboratory.home.path))
    verified = terminal.read_card()
    asked = replace(DEBIT, amount=50_000)
    answer = terminal.session.debit(asked)
    receipt = Receipt(
        1,
        1,
        certificate_hash(verified.credential),
        certificate_hash(terminal.identity.certificate),
        verified.card.counter,
        verified.keys.transaction_id,
        asked,
        Result.INSUFFICIENT_FUNDS,
    )
    assert receipt.is_shown_by(answer.evidence, verified.credential)
    assert not replace(receipt, result=Result.APPROVED).is_shown_by(answer.evidence, verified.credential)


@pytest.mark.attack("M6")
def test_an_id_that_this_wallet_never_derived_is_confirmed_without_effect(laboratory: ToldLaboratory) -> None:
    terminal, link = hostile(laboratory)
    terminal.session.debit(DEBIT)
    assert terminal.session._keys is not None
    sealed = channel.seal_command(terminal.session._keys, 1, in_channel(Ins.CONFIRM, Confirm(bytes(16)).encode()))
    assert link.transceive(sealed.encode()).endswith(bytes.fromhex("9000"))
    assert terminal.session._keys is not None
