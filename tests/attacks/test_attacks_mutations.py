# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Each attack twice: as things are it fails, and with exactly one check taken out it succeeds. So the tests would notice.

The trusted application and the issuer run in this process here, so that a check can be taken out of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import date, time
from types import SimpleNamespace
from typing import Any

import pytest

from issuer.clearing import Clearing
from issuer.database import Books
from lab.bench_relay import _Relay
from pos import tap_key
from pos.outcome import OutcomeKind
from pos.relay import RelayCheckResult, RelayPolicy
from pos.settlement import _claim, _void
from pos.terminal import Terminal
from protocol.card_number import CardNumber
from protocol.certificate import Merchant, Usage
from protocol.commands import DEFAULT_NAME, Ins
from protocol.errors import CardSilentError, Check, TapLabError, TransportError
from protocol.issuing import encode_message, expect
from protocol.messages import Debit, Receipt, Result
from protocol.money import Amount
from protocol.settlement import TerminalReport, Verdict
from protocol.signing import PrivateKey
from protocol.status import StatusError
from protocol.transport import chaining
from protocol.transport.chaining import TerminalChaining
from protocol.transport.isodep import Ats, ReaderHalf, _Budget
from protocol.vouchers import LoadRequest, Voucher
from tests.attacks.stage import EURO, Mutation, Mutations, Patch, Stage
from tests.end_to_end.parties import EditingCard, HostileTerminal, link_to, terminal_like
from tests.end_to_end.soft_wallet import SoftWallet, credential_like
from wallet.tee import consent, purse, terminal_check
from wallet.tee.consent import Consents
from wallet.tee.contract import CardRequest, CommandId, LoadOrder, TeeError
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.storage import SealedStorage
from wallet.tee.tap import Tap
from wallet.tee.transactions import TransactionBook
from wallet.tee.vault import Vault

MUTATIONS = Mutations()
attack = MUTATIONS.attack


def _without(check: Check) -> Callable[[Patch], None]:
    """Take one check of certificates out, for terminals as for credentials."""

    def take_out(patch: Patch) -> None:
        from pos import verifier
        from protocol import certificate

        whole = certificate.failed_checks

        def rest(*arguments: Any) -> list[Check]:
            return [one for one in whole(*arguments) if one is not check]

        patch.setattr(verifier, "failed_checks", rest)
        patch.setattr(terminal_check, "failed_checks", rest)

    return take_out


# --- freshness


def _nonce_lives_on(patch: Patch) -> None:
    once = Tap.get_virtual_card

    def again(self: Tap, request: CardRequest) -> bytes:
        nonce = self._nonce
        answer = once(self, request)
        self._nonce = nonce
        return answer

    patch.setattr(Tap, "get_virtual_card", again)


@attack("F1", _nonce_lives_on)
def _replayed_request(stage: Stage) -> bool:
    terminal = stage.hostile()
    terminal.approach()
    request = CardRequest(terminal.session._transcript, 1, 1, terminal.hello().encode())
    cards = [stage.tee.invoke_command(CommandId.GET_VIRTUAL_CARD, request)]
    with suppress(TeeError):
        cards.append(stage.tee.invoke_command(CommandId.GET_VIRTUAL_CARD, request))
    return len(cards) == 2


def _no_tap_number(patch: Patch) -> None:
    make = tap_key.make
    patch.setattr(tap_key, "make", lambda device_secret, _: make(device_secret, 0))


@attack("F3", _no_tap_number)
def _repeating_generator(stage: Stage) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", bytes)
        first, second = (tap_key.make(terminal_like(stage.home).device_secret, number)[0] for number in (1, 2))
    return first.private_bytes_raw() == second.private_bytes_raw()


def _every_debit_is_settled(patch: Patch) -> None:
    def settle(self: Tap, session: Any, debit: Debit) -> Any:
        from protocol.messages import DebitResult

        yield from self._settle(session, debit)
        return DebitResult(session.result, session.transaction.signature)

    patch.setattr(Tap, "_debit", settle)


@attack("F4", _every_debit_is_settled)
def _two_debits_in_a_session(stage: Stage) -> bool:
    terminal = stage.hostile()
    terminal.read_card()
    before = stage.balance
    terminal.session.debit(_debit(100))
    with suppress(StatusError):
        terminal.session.debit(_debit(300))
    return before - stage.balance != 100


def _debit(amount: int, currency: int = 978) -> Debit:
    return Debit(amount, currency, date(2026, 1, 2), time(3, 4, 5))


def _no_freshness(patch: Patch) -> None:
    patch.setattr(SealedStorage, "is_stale", property(lambda _: False))
    patch.setattr(FreshnessCounter, "advance", lambda *_: None)


@attack("F5", _no_freshness)
def _storage_put_back(stage: Stage) -> bool:
    log = stage.world._folder / "state.log"
    copy = log.read_bytes()
    assert stage.charge(stage.card).approved
    assert stage.charge(stage.card).approved
    log.write_bytes(copy)
    stage.world.start_again()
    return stage.balance == 10000 and stage.charge(stage.card).approved


def _spent_in_memory_only(patch: Patch) -> None:
    def note(self: TransactionBook, transaction: Any, changes: Any) -> None:
        self._storage.note({transaction.key: transaction.encode(), **changes})
        self._index(transaction, is_new=True)

    patch.setattr(TransactionBook, "commit", note)


@attack("F6", _spent_in_memory_only)
def _same_card_after_a_kill(stage: Stage) -> bool:
    first = stage.hostile().read_card()
    stage.world.start_again()
    return stage.hostile().read_card().card.number == first.card.number


# --- binding


@attack("B4", lambda patch: patch.setattr(terminal_check, "_is_ours", lambda *_: True))
def _offer_cut_down(stage: Stage) -> bool:
    terminal = stage.hostile()
    terminal.approach()
    said = terminal.session._transcript
    cut = said.replace(bytes.fromhex("810101"), bytes.fromhex("810102"), 1)
    assert cut != said
    terminal.session._transcript = cut  # what a dishonest client application let the terminal see
    return _gives_card(stage, cut, terminal)


@attack("R2", lambda patch: patch.setattr(terminal_check, "_is_ours", lambda *_: True))
def _nonce_made_up_by_a_relay(stage: Stage) -> bool:
    terminal = stage.hostile()
    terminal.approach()
    said = terminal.session._transcript
    made_up = said[:-10] + os.urandom(8) + said[-2:]
    terminal.session._transcript = made_up
    return _gives_card(stage, made_up, terminal)


def _gives_card(stage: Stage, prefix: bytes, terminal: HostileTerminal) -> bool:
    request = CardRequest(prefix, 1, 1, terminal.hello().encode())
    try:
        stage.tee.invoke_command(CommandId.GET_VIRTUAL_CARD, request)
    except TeeError:
        return False
    return True


@attack("B5", lambda patch: patch.setattr(Receipt, "is_shown_by", lambda *_: True))
def _approval_that_nobody_signed(stage: Stage) -> bool:
    return stage.charge(SoftWallet(stage.home, receipt_key=PrivateKey.generate())).approved


@attack("B6", _without(Check.CERTIFICATE_USAGE))
def _certificate_of_another_use(stage: Stage) -> bool:
    key = PrivateKey.generate()
    return stage.charge(SoftWallet(stage.home, key, credential_like(stage.home, key, usage=Usage.TERMINAL))).approved


@attack("V1", _without(Check.CERTIFICATE_EXPIRED))
def _expired_credential(stage: Stage) -> bool:
    key = PrivateKey.generate()
    certificate = credential_like(stage.home, key, valid_from=date(2020, 1, 1), valid_until=date(2020, 2, 1))
    return stage.charge(SoftWallet(stage.home, key, certificate)).approved


def _any_currency(patch: Patch) -> None:
    judge = purse.judge

    def blind(debit: Debit, now: Any, terminal: Any, *rest: Any, **options: Any) -> Result:
        merchant = replace(terminal.merchant, currency=now.currency)
        return judge(replace(debit, currency=now.currency), now, replace(terminal, merchant=merchant), *rest, **options)

    patch.setattr(purse, "judge", blind)


@attack("B7", _any_currency)
def _cheap_currency(stage: Stage) -> bool:
    terminal = stage.hostile(merchant=Merchant("Corner Bakery", 5462, 392))
    terminal.read_card()
    return terminal.session.debit(_debit(40_00, 392)).result is Result.APPROVED


def _status_words_are_believed(patch: Patch) -> None:
    patch.setattr(Terminal, "_debit", lambda _, __, session, debit: session.debit(debit))


@attack("M7", _status_words_are_believed)
def _plain_nothing_deducted(stage: Stage) -> bool:
    outcome = stage.charge(EditingCard(stage.card, Ins.DEBIT, lambda _: bytes.fromhex("6581")))
    return outcome.charged is False and stage.balance == 9000  # the shopper paid, and is asked to pay again


# --- the user's hand


def _nobody_is_asked(patch: Patch) -> None:
    patch.setattr(Consents, "covers", lambda *_: True)


@attack("V2", _nobody_is_asked)
def _large_amount_without_consent(stage: Stage) -> bool:
    return stage.charge(stage.card, amount=Amount.parse("60.00", "EUR")).approved


@attack("V4", lambda patch: patch.setattr(consent, "_bound", lambda *_: (b"", 0, 0)))
def _consent_for_another_amount(stage: Stage) -> bool:
    stage.world.application._consents._user = SimpleNamespace(ask=lambda _: True)
    identity = terminal_like(stage.home)
    small, large = Amount.parse("60.00", "EUR"), Amount.parse("90.00", "EUR")
    terminal = stage.terminal(identity)
    assert terminal.charge(small, link_to(stage.card)).kind is OutcomeKind.SEE_PHONE
    stage.tee.invoke_command(CommandId.ASK_CONSENT)
    return terminal.charge(large, link_to(stage.card)).approved


# --- money


def _any_voucher(patch: Patch) -> None:
    patch.setattr(Vault, "with_voucher", lambda _, held, voucher: replace(held, balance=held.balance + voucher.amount))


@attack("M3", _any_voucher)
def _voucher_used_twice(stage: Stage) -> bool:
    request = expect(stage.tee.invoke_command(CommandId.REQUEST_LOAD, LoadOrder(500, 978)), LoadRequest)
    voucher = expect(stage.issuer.exchange(encode_message(request)), Voucher)
    before = stage.balance
    for _ in range(2):
        with suppress(TeeError):
            stage.tee.invoke_command(CommandId.LOAD, voucher)
    return stage.balance - before == 1000


@attack("M1", lambda patch: patch.setattr(Books, "is_void", lambda *_: False))
def _claimed_after_it_was_given_up(stage: Stage) -> bool:
    terminal = stage.terminal(stage.certified)
    assert terminal.charge(EURO, link_to(stage.card)).approved
    (record,) = terminal.journal.records()
    identity = terminal._identity
    stage.say(TerminalReport((), (_void(identity, record),)))
    return stage.say(TerminalReport((_claim(identity, record),), ())) == (Verdict.PAID,)


@attack("M2", lambda patch: patch.setattr(Clearing, "_is_late", lambda *_: True))
def _money_back_on_the_wallets_word(stage: Stage) -> bool:
    assert stage.charge(stage.card).approved
    assert stage.balance == 9000
    stage.sync()
    return stage.sync() == 10000


def _any_signature_at_the_issuer(patch: Patch) -> None:
    patch.setattr("issuer.clearing.signing", SimpleNamespace(is_valid=lambda *_: True, SIGNATURE_LENGTH=64))


@attack("M5", _any_signature_at_the_issuer)
def _claim_of_another_terminals_receipt(stage: Stage) -> bool:
    terminal = stage.terminal(stage.certified)
    assert terminal.charge(EURO, link_to(stage.card)).approved
    (record,) = terminal.journal.records()
    return stage.say(TerminalReport((_claim(terminal_like(stage.home), record),), ())) == (Verdict.PAID,)


def _everybodys_transactions(patch: Patch) -> None:
    from wallet.tee.state import TRANSACTION, Transaction

    def find(self: TransactionBook, _: bytes, transaction_id: bytes) -> Transaction | None:
        everything = (Transaction.decode(value) for _, value in self._storage.items(TRANSACTION))
        return next((one for one in everything if one.transaction_id == transaction_id), None)

    patch.setattr(TransactionBook, "find", find)


@attack("M6", _everybodys_transactions)
def _another_terminals_transaction_cancelled(stage: Stage) -> bool:
    first = stage.hostile()
    theirs = first.read_card().keys.transaction_id
    first.leave()
    other = stage.hostile()
    other.read_card()
    return other.session.cancel(theirs).result is Result.CANCELLED


@attack("M8", lambda patch: patch.setattr(TransactionBook, "may_read", lambda *_: True))
def _pool_drained(stage: Stage) -> bool:
    identity = terminal_like(stage.home)
    before = stage.world.view().cards_left
    for _ in range(6):
        terminal = stage.hostile(identity)
        with suppress(TapLabError):
            terminal.read_card()
        terminal.leave()
    return before - stage.world.view().cards_left == 6


# --- links, and what is shown


@attack("R1", lambda patch: patch.setattr(RelayCheckResult, "is_too_late", property(lambda _: False)))
def _relayed_card(stage: Stage) -> bool:
    terminal = stage.terminal(relay=RelayPolicy.DECLINE, relay_bound_ms=20.0)
    return terminal.charge(EURO, _Relay(link_to(stage.card), 0.03)).approved


@attack("R3", lambda patch: patch.setattr(_Budget, "spend", lambda *_: None))
def _time_without_end(_: Stage) -> bool:
    dialogue = ReaderHalf(Ats()).exchange(bytes(5))
    next(dialogue)
    with suppress(CardSilentError):
        for _number in range(100):
            dialogue.send(bytes.fromhex("F23B"))  # S(WTX), 59 times the waiting time
        return True
    return False


def _fetches_for_ever(patch: Patch) -> None:
    patch.setattr(chaining, "MAX_FETCHES", 1 << 20)
    patch.setattr(chaining, "MAX_ANSWER", 1 << 30)


@attack("P2", _fetches_for_ever)
def _get_response_without_end(_: Stage) -> bool:
    from protocol.commands import select

    fetched: list[bytes] = []

    def answer(apdu: bytes) -> bytes:
        fetched.append(apdu)
        if len(fetched) > 3000:
            raise CardSilentError("the test has seen enough")
        return bytes(100) + bytes.fromhex("6100")

    with suppress(TransportError):
        TerminalChaining(answer, extended=True).exchange(select(DEFAULT_NAME))
    return len(fetched) > 3000


@attack("N2", lambda patch: patch.setattr(CardNumber, "masked", property(lambda number: number.digits)))
def _number_on_the_screen(stage: Stage) -> bool:
    outcome = stage.charge(stage.card)
    assert outcome.approved
    return outcome.card.isdigit()


every_mutation = pytest.mark.parametrize("mutation", MUTATIONS.parameters())


@every_mutation
def test_the_attack_fails(stage: Stage, mutation: Mutation) -> None:
    assert not mutation.attack(stage)


@every_mutation
def test_the_attack_succeeds_without_its_check(stage: Stage, monkeypatch: Patch, mutation: Mutation) -> None:
    mutation.take_out(monkeypatch)
    assert mutation.attack(stage)


def test_there_are_many_of_them() -> None:
    assert len(MUTATIONS) >= 15
