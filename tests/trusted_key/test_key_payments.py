# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Payments confirmed on the Key: what was displayed is what is signed, once, by a key that goes with it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, time

import pytest

from protocol import signing
from protocol.certificate import Merchant, TerminalCertificate
from protocol.key_commands import (
    GenerateKey,
    KeyIns,
    KeyKind,
    KeyModule,
    KeyUse,
    Named,
    PaymentQuestion,
    Question,
    QuestionNumber,
    QuestionState,
    ReceiptOrder,
    Reply,
    Rule,
)
from protocol.labels import Label, labelled
from protocol.messages import Debit, Receipt, Result, certificate_hash
from protocol.status import StatusWord
from tests.trusted_key.board import Board, made
from tests.trusted_key.talk import OK, OTHER_PEER, PEER, Talk
from wallet.trusted_key.payments import text_of
from wallet.trusted_key.screen import Button, Showing, laid_out

pytestmark = [pytest.mark.requirement("K3"), pytest.mark.requirement("K4")]

REFUSED = StatusWord.CONDITIONS_NOT_SATISFIED
GONE = StatusWord.REFERENCED_DATA_NOT_FOUND


@pytest.fixture
def receipt(bakery: TerminalCertificate) -> Receipt:
    debit = Debit(25000, 978, date(2026, 7, 15), time(10, 11, 12))
    return Receipt(1, 1, bytes(32), certificate_hash(bakery), 7, bytes(16), debit, Result.APPROVED)


@pytest.fixture
def question(bakery: TerminalCertificate) -> PaymentQuestion:
    return PaymentQuestion(30, 25000, 978, bakery)


@pytest.fixture
def peer(board: Board) -> Talk:
    """The trusted world, with a key for one receipt."""
    board.talk.as_peer()
    board.talk.good(KeyIns.GENERATE_KEY, GenerateKey(b"once", KeyKind.P256, KeyUse.RECEIPT, Rule.CREATOR))
    return board.talk


def confirm(board: Board, question: PaymentQuestion) -> None:
    board.talk.good(KeyIns.CONFIRM_PAYMENT, question)
    assert board.panel.press(Button.OK) == "confirmed"


def sign(talk: Talk, receipt: Receipt, name: bytes = b"once") -> int:
    return talk.sw(KeyIns.SIGN_RECEIPT, ReceiptOrder(name, receipt))


def test_the_key_says_what_is_to_be_paid_and_signs_that_once(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt
) -> None:
    public = peer.good(KeyIns.PUBLIC_KEY, Named(b"once"))
    state = peer.ask(QuestionState, KeyIns.CONFIRM_PAYMENT, question)
    frame = board.panel.frame
    assert (state.reply, frame.showing, frame.text) == (
        Reply.PENDING,
        Showing.QUESTION,
        "Pay 250.00 EUR to Corner Bakery?",
    )
    board.panel.press(Button.OK)
    assert peer.ask(QuestionState, KeyIns.POLL, QuestionNumber(state.number)).reply is Reply.CONFIRMED
    signature = peer.good(KeyIns.SIGN_RECEIPT, ReceiptOrder(b"once", receipt))
    assert signing.is_valid(public, signature, receipt.co_signature_input())
    assert peer.sw(KeyIns.PUBLIC_KEY, Named(b"once")) == GONE


def test_what_is_signed_is_label_and_digest_of_the_receipt(receipt: Receipt) -> None:
    import hashlib

    assert receipt.co_signature_input() == labelled(Label.KEY_RECEIPT, hashlib.sha256(receipt.encode()).digest())
    assert receipt.co_signature_input() != receipt.signature_input()


@pytest.mark.attack("D1")
def test_nothing_is_signed_that_was_not_confirmed(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt
) -> None:
    assert sign(peer, receipt) == REFUSED
    peer.good(KeyIns.CONFIRM_PAYMENT, question)
    assert sign(peer, receipt) == REFUSED
    board.panel.press(Button.CANCEL)
    assert sign(peer, receipt) == REFUSED
    peer.good(KeyIns.CONFIRM_PAYMENT, question)
    board.clock.tick(30)
    board.panel.press(Button.OK)
    assert sign(peer, receipt) == REFUSED
    assert peer.sw(KeyIns.PUBLIC_KEY, Named(b"once")) == OK


@pytest.mark.attack("D3")
@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, terminal_hash=bytes(32)),
        lambda r: replace(r, debit=replace(r.debit, amount=25001)),
        lambda r: replace(r, debit=replace(r.debit, amount=2500)),
        lambda r: replace(r, debit=replace(r.debit, currency=840)),
        lambda r: replace(r, result=Result.INSUFFICIENT_FUNDS),
    ],
    ids=["terminal", "a cent more", "a tenth", "currency", "not approved"],
)
def test_what_was_not_displayed_is_not_signed(  # type: ignore[no-untyped-def]
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt, change
) -> None:
    confirm(board, question)
    assert sign(peer, change(receipt)) == REFUSED
    assert sign(peer, receipt) == OK


@pytest.mark.attack("D3")
def test_a_certificate_of_another_terminal_of_that_name_does_not_do(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt
) -> None:
    twin = replace(question.certificate, serial=b"\1" * 8)
    confirm(board, replace(question, certificate=twin))
    assert board.panel.frame.showing is Showing.IDLE
    assert sign(peer, receipt) == REFUSED


@pytest.mark.attack("D3")
def test_an_ordinary_question_that_looks_like_a_payment_confirms_none(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt
) -> None:
    peer.good(KeyIns.ASK, Question(30, text_of(question)))
    assert board.panel.press(Button.OK) == "confirmed"
    assert sign(peer, receipt) == REFUSED


@pytest.mark.attack("D3")
def test_a_payment_is_confirmed_once(board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt) -> None:
    peer.good(KeyIns.GENERATE_KEY, GenerateKey(b"next", KeyKind.P256, KeyUse.RECEIPT, Rule.CREATOR))
    confirm(board, question)
    assert [sign(peer, receipt), sign(peer, receipt, b"next")] == [OK, REFUSED]


@pytest.mark.attack("D3")
def test_a_confirmation_holds_for_a_minute(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt
) -> None:
    confirm(board, question)
    board.clock.tick(60)
    assert sign(peer, receipt) == REFUSED
    confirm(board, question)
    board.clock.tick(59.9)
    assert sign(peer, receipt) == OK


def test_the_last_confirmation_counts(board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt) -> None:
    confirm(board, question)
    confirm(board, replace(question, amount=1))
    assert sign(peer, receipt) == REFUSED


@pytest.mark.attack("D5")
def test_a_confirmation_is_for_the_peer_that_asked(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt
) -> None:
    other = board.talk.as_peer(OTHER_PEER)
    other.good(KeyIns.GENERATE_KEY, GenerateKey(b"theirs", KeyKind.P256, KeyUse.RECEIPT, Rule.PEER))
    board.talk.as_peer(PEER)
    confirm(board, question)
    other = board.talk.as_peer(OTHER_PEER)
    assert sign(other, receipt, b"theirs") == REFUSED
    assert sign(other, receipt, b"once") == StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert sign(board.talk.as_peer(PEER), receipt) == OK


def test_a_confirmation_survives_the_field_going_off_but_no_new_start(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt
) -> None:
    confirm(board, question)
    again = made(*KeyModule, cells=board.cells)
    assert sign(again.talk.as_peer(), receipt) == REFUSED
    peer.select()
    assert sign(peer.as_peer(), receipt) == OK


@pytest.mark.parametrize("use", [KeyUse.SIGN, KeyUse.AGREE])
def test_only_a_key_for_receipts_signs_them_and_nothing_else(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt, use: KeyUse
) -> None:
    peer.good(KeyIns.GENERATE_KEY, GenerateKey(b"k", KeyKind.P256, use, Rule.OPEN))
    confirm(board, question)
    assert sign(peer, receipt, b"k") == REFUSED
    assert sign(peer, receipt, b"none") == GONE
    from protocol.key_commands import KeyOrder

    assert peer.sw(KeyIns.SIGN, KeyOrder(b"once", receipt.co_signature_input())) == REFUSED
    assert sign(peer, receipt) == OK


# --- torn


def test_who_lost_the_answer_gets_the_same_one_again(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt
) -> None:
    confirm(board, question)
    order = ReceiptOrder(b"once", receipt)
    signature = peer.good(KeyIns.SIGN_RECEIPT, order)
    assert peer.good(KeyIns.SIGN_RECEIPT, order) == signature
    again = made(*KeyModule, cells=board.cells).talk
    assert again.sw(KeyIns.SIGN_RECEIPT, order) == StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert again.as_peer(OTHER_PEER).sw(KeyIns.SIGN_RECEIPT, order) == StatusWord.SECURITY_STATUS_NOT_SATISFIED
    assert again.as_peer().good(KeyIns.SIGN_RECEIPT, order) == signature
    changed = replace(receipt, counter=8)
    assert sign(again, changed) == GONE
    assert sign(again, receipt, b"other") == GONE


@pytest.mark.attack("D4")
def test_no_signature_leaves_while_its_key_stays(
    board: Board, peer: Talk, question: PaymentQuestion, receipt: Receipt
) -> None:
    confirm(board, question)
    board.cells.broken = True
    assert sign(peer, receipt) == StatusWord.MEMORY_FAILURE
    board.cells.broken = False
    assert peer.sw(KeyIns.PUBLIC_KEY, Named(b"once")) == OK
    assert sign(peer, receipt) == OK


# --- the text


@pytest.mark.parametrize(
    ("amount", "currency", "merchant", "text"),
    [
        (1, 978, "A", "Pay 0.01 EUR to A?"),
        (500, 392, "Corner Bakery", "Pay 500 JPY to Corner Bakery?"),
        (12345, 414, "Shop", "Pay 12.345 KWD to Shop?"),
        (10**12 - 1, 978, "ABCDEFGHIJKLMNOP", "Pay 9999999999.99 EUR to ABCDEFGHIJKLMNOP?"),
    ],
)
def test_amount_and_merchant_are_seen_whole(
    token: Board, question: PaymentQuestion, amount: int, currency: int, merchant: str, text: str
) -> None:
    certificate = replace(question.certificate, merchant=Merchant(merchant, 5462, 978))
    token.talk.good(
        KeyIns.CONFIRM_PAYMENT, replace(question, amount=amount, currency=currency, certificate=certificate)
    )
    assert token.panel.frame.text == text


@pytest.mark.attack("D3")
@pytest.mark.parametrize("merchant", ["A", "A" * 16, "A B C D E F G H", "a  b", " " * 15 + "x", "x" + " " * 15, "   "])
@pytest.mark.parametrize("amount", [1, 10**12 - 1])
def test_whatever_the_merchant_is_called_nothing_is_out_of_sight(
    question: PaymentQuestion, merchant: str, amount: int
) -> None:
    certificate = replace(question.certificate, merchant=Merchant(merchant, 5462, 978))
    text = text_of(replace(question, amount=amount, certificate=certificate))
    assert "".join(laid_out(text)).replace(" ", "") == text.replace(" ", "")


def test_a_currency_without_amounts_cannot_be_paid_in(token: Board, question: PaymentQuestion) -> None:
    assert token.talk.sw(KeyIns.CONFIRM_PAYMENT, replace(question, currency=999)) == StatusWord.WRONG_DATA
    assert token.panel.frame.showing is Showing.IDLE


def test_without_interaction_no_receipt_is_signed(receipt: Receipt) -> None:
    talk = made(KeyModule.COMPUTING).talk
    talk.good(KeyIns.GENERATE_KEY, GenerateKey(b"once", KeyKind.P256, KeyUse.RECEIPT, Rule.OPEN))
    assert sign(talk, receipt) == StatusWord.INS_NOT_SUPPORTED
