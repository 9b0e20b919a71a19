# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Who wants money that is not theirs: claims, VOIDs and lists that must not work, at the issuer's own service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from issuer.register import Register
from lab.fixtures import Laboratory
from pos.identity import Identity
from pos.journal import Record, State
from pos.settlement import _claim, _void
from pos.terminal import TerminalOptions
from protocol.errors import DecodeError
from protocol.issuing import IssuerRefusedError, RefusalReason, encode_message, expect
from protocol.messages import Cancellation, Receipt
from protocol.settlement import (
    Claim,
    IssuerNonce,
    NonceRequest,
    ReportAnswer,
    Settlement,
    Standing,
    Statement,
    TerminalReport,
    Verdict,
    Void,
)
from protocol.transport.issuer import IssuerLink
from tests.attacks.stage import EURO, Stage
from tests.end_to_end.parties import link_to, terminal_like
from wallet.account import Account
from wallet.tee.contract import CommandId, StatementOrder
from wallet.tee.state import signer

GROUP_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # n of P-256, SEC 2 §2.4.2
DEBIT_LOST = "tear@frame:7"
RESULT_LOST = "tear@frame:8"


class Bank:
    """A laboratory with its issuer at hand, for players who do not keep to the rules."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.laboratory = Laboratory(home=home, terminal_options=TerminalOptions(timeout=1.0))
        self.issuer = IssuerLink(self.laboratory.home.issuer_url)

    @property
    def identity(self) -> Identity:
        return self.laboratory.terminal._identity

    def records(self) -> list[Record]:
        return self.laboratory.terminal.journal.records()

    def say(self, claims: tuple[Claim, ...] = (), voids: tuple[Void, ...] = ()) -> tuple[Verdict, ...]:
        report = TerminalReport(claims, voids)
        return expect(self.issuer.exchange(encode_message(report)), ReportAnswer).verdicts

    def sync(self) -> int:
        """Let the wallet settle and return its balance."""
        Account(self.laboratory.phone.tee, self.issuer).sync()
        return self.laboratory.balance.minor

    def close(self) -> None:
        self.issuer.close()
        self.laboratory.close()


@pytest.fixture
def bank(home: Path) -> Iterator[Bank]:
    made = Bank(home)
    yield made
    made.close()


@pytest.mark.attack("M1")
def test_a_receipt_kept_back_is_not_claimed_after_its_transaction_was_given_up(bank: Bank) -> None:
    assert bank.laboratory.charge("10.00").approved
    (record,) = bank.records()
    assert bank.say(voids=(_void(bank.identity, record),)) == (Verdict.VOIDED,)
    assert bank.sync() == 10000
    assert bank.say(claims=(_claim(bank.identity, record),)) == (Verdict.VOIDED,)
    assert bank.sync() == 10000


@pytest.mark.attack("M1")
def test_a_cancellation_that_a_wallet_signed_is_no_void(bank: Bank) -> None:
    bank.laboratory.charge("10.00", fault=DEBIT_LOST)
    bank.laboratory.charge("1.00")
    cancelled = next(one for one in bank.records() if one.state is State.CANCELLED)
    receipt = Receipt.decode(cancelled.receipt)
    assert isinstance(receipt.cancellation(), Cancellation)
    void = replace(_void(bank.identity, cancelled), signature=cancelled.signature)
    assert bank.say(voids=(void,)) == (Verdict.NOT_VALID,)


@pytest.mark.attack("M1")
def test_a_void_for_a_debit_that_never_was_credits_nobody(bank: Bank) -> None:
    bank.laboratory.charge("10.00", fault=DEBIT_LOST)  # the wallet was never asked
    (record,) = bank.records()
    assert bank.say(voids=(_void(bank.identity, record),)) == (Verdict.VOIDED,)
    assert bank.sync() == 10000


@pytest.mark.attack("M2")
def test_who_keeps_the_goods_and_syncs_first_gets_nothing_back(bank: Bank) -> None:
    assert bank.laboratory.charge("10.00").approved
    assert [bank.sync(), bank.sync()] == [9000, 9000]
    (record,) = bank.records()
    assert bank.say(claims=(_claim(bank.identity, record),)) == (Verdict.PAID,)
    assert bank.sync() == 9000


class Liar:
    """A wallet whose keys its user has: its lists are signed by the device, whatever they say."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.device = stage.world.view().device

    def lists(self, **changes: Any) -> Settlement:
        """Have a list with these changes settled; IssuerRefusedError when the issuer does not take it."""
        nonce = expect(self.stage.issuer.exchange(encode_message(NonceRequest(self.device))), IssuerNonce).nonce
        asked = self.stage.tee.invoke_command(CommandId.REQUEST_STATEMENT, StatementOrder(nonce))
        false = replace(expect(asked, Statement), **changes)
        key = signer(self.stage.world.application._vault.device.signing_scalar)
        return self.say(replace(false, signature=key.sign(false.signature_input())))

    def say(self, statement: Statement) -> Settlement:
        return expect(self.stage.issuer.exchange(encode_message(statement)), Settlement)


@pytest.mark.attack("M2")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"first": 3}, id="a gap"),
        pytest.param({"first": 3, "total": 2, "debits": ()}, id="a gap with nothing behind it"),
        pytest.param({"first": 1, "total": 0, "debits": ()}, id="goes back"),
    ],
)
def test_a_list_with_a_gap_or_one_that_goes_back_is_refused(stage: Stage, changes: dict[str, Any]) -> None:
    assert stage.charge(stage.card).approved
    assert stage.sync() == 9000
    assert stage.charge(stage.card).approved
    with pytest.raises(IssuerRefusedError) as refused:
        Liar(stage).lists(**changes)
    assert refused.value.reason is RefusalReason.GAP
    assert Liar(stage).lists().acknowledged == 2


@pytest.mark.attack("M2")
def test_who_keeps_a_debit_off_the_list_pays_it_and_is_blocked(stage: Stage) -> None:
    terminal = stage.terminal(stage.certified)
    assert terminal.charge(EURO, link_to(stage.card)).approved
    (record,) = terminal.journal.records()
    assert stage.say(TerminalReport((_claim(stage.certified, record),), ())) == (Verdict.PAID,)
    stage.issuer.ahead = 2.0
    answer = Liar(stage).lists(total=0, debits=())
    assert (answer.standing, answer.vouchers) == (Standing.BLOCKED, ())
    assert stage.paid == 1000


@pytest.mark.attack("M2")
def test_a_list_that_the_device_did_not_sign_or_that_was_used_is_refused(bank: Bank) -> None:
    bank.laboratory.charge("10.00")
    view = bank.laboratory.phone.view()
    nonce = expect(bank.issuer.exchange(encode_message(NonceRequest(view.device))), IssuerNonce).nonce
    asked = bank.laboratory.phone.tee.invoke_command(CommandId.REQUEST_STATEMENT, StatementOrder(nonce))
    statement = expect(asked, Statement)
    for wrong in (replace(statement, debits=()), replace(statement, total=9), replace(statement, restored=True)):
        with pytest.raises(IssuerRefusedError) as forged:
            expect(bank.issuer.exchange(encode_message(wrong)), Settlement)
        assert forged.value.reason is RefusalReason.SIGNATURE
    assert bank.sync() == 9000
    with pytest.raises(IssuerRefusedError) as stale:
        expect(bank.issuer.exchange(encode_message(statement)), Settlement)
    assert stale.value.reason is RefusalReason.NONCE


@pytest.mark.attack("M4")
def test_the_other_form_of_a_signature_is_the_same_claim(bank: Bank) -> None:
    assert bank.laboratory.charge("10.00").approved
    (record,) = bank.records()
    s = GROUP_ORDER - int.from_bytes(record.signature[32:], "big")
    other = replace(record, signature=record.signature[:32] + s.to_bytes(32, "big"))
    claims = (_claim(bank.identity, record), _claim(bank.identity, other))
    assert claims[0].evidence != claims[1].evidence
    assert bank.say(claims=claims) == (Verdict.PAID, Verdict.PAID)
    assert _paid(bank) == 1000


@pytest.mark.attack("M5")
def test_another_terminal_cannot_claim_or_void_a_receipt_even_under_the_same_id(bank: Bank) -> None:
    assert bank.laboratory.charge("10.00").approved
    (record,) = bank.records()
    thief = terminal_like(bank.home)  # same terminal id, same merchant, another key
    assert thief.certificate.terminal_id == bank.identity.certificate.terminal_id
    assert bank.say(claims=(_claim(thief, record),)) == (Verdict.NOT_VALID,)
    assert bank.say(voids=(_void(thief, record),)) == (Verdict.NOT_VALID,)
    assert _paid(bank) == 0


@pytest.mark.attack("M6")
def test_a_void_by_a_terminal_that_the_receipt_does_not_name_is_not_valid(bank: Bank) -> None:
    bank.laboratory.charge("10.00", fault=RESULT_LOST)
    (record,) = bank.records()
    assert bank.sync() == 9000
    assert bank.say(voids=(replace(_void(bank.identity, record), terminal_hash=bytes(32)),)) == (Verdict.NOT_VALID,)
    assert bank.sync() == 9000


@pytest.mark.attack("M5")
@pytest.mark.parametrize("field", ["amount", "counter", "terminal_hash", "transaction_id"])
def test_a_receipt_that_was_edited_is_not_paid(bank: Bank, field: str) -> None:
    assert bank.laboratory.charge("10.00").approved
    (record,) = bank.records()
    receipt = Receipt.decode(record.receipt)
    edited = {
        "amount": replace(receipt, debit=replace(receipt.debit, amount=99_00)),
        "counter": replace(receipt, counter=receipt.counter + 1),
        "terminal_hash": replace(receipt, terminal_hash=bytes(32)),
        "transaction_id": replace(receipt, transaction_id=bytes(16)),
    }[field]
    claim = _claim(bank.identity, replace(record, receipt=edited.encode()))
    assert bank.say(claims=(claim,)) == (Verdict.NOT_VALID,)


@pytest.mark.attack("M3")
def test_a_refund_arrives_once(bank: Bank) -> None:
    bank.laboratory.charge("10.00", fault=RESULT_LOST)
    bank.sync()
    (record,) = bank.records()
    for _ in range(3):
        bank.say(voids=(_void(bank.identity, record),))
        assert bank.sync() == 10000


def _paid(bank: Bank) -> int:
    register = Register(bank.laboratory.home.issuer)
    paid = sum(row.paid.minor for row in register.terminals())
    register.close()
    return paid


@pytest.mark.attack("P1")
def test_no_half_message_to_the_issuer_does_anything(bank: Bank) -> None:
    whole = encode_message(TerminalReport((), ()))
    for cut in range(len(whole)):
        with pytest.raises((IssuerRefusedError, DecodeError)):
            expect(bank.issuer.exchange(whole[:cut] or b"\0"), ReportAnswer)
