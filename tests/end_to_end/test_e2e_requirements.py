# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The nine steps of the design, each shown where it happens."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lab.fixtures import Laboratory
from pos import identity
from pos.journal import Journal
from pos.outcome import OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol import envelope, signing, tally
from protocol.apdu import Command, Response
from protocol.card_number import CardNumber
from protocol.certificate import CredentialCertificate
from protocol.commands import DEFAULT_NAME, VERSION_1, Ins, get_virtual_card, select
from protocol.envelope import SUITE_1
from protocol.errors import Check, VerificationError
from protocol.fci import ApplicationFci
from protocol.messages import GetVirtualCard, Receipt, Result, VirtualCard
from protocol.money import Amount
from protocol.signing import PrivateKey
from protocol.status import StatusWord
from protocol.transport.trace import TracingLink
from protocol.wire import Wire
from tests.end_to_end.commands import balance, serving, tap
from tests.end_to_end.parties import HostileTerminal, flip, link_to, terminal_like
from tests.end_to_end.soft_wallet import SoftWallet
from wallet.card import Card
from wallet.environment.launcher import ANSWER_SECONDS
from wallet.events import Event, Step
from wallet.payment import PaymentClient
from wallet.phone import PhoneOptions, start_of
from wallet.tee.client import TeeSession
from wallet.tee.contract import CardRequest, CommandId, Report

OTHER_NAME = bytes.fromhex("F0544150FFFF")
EURO = Amount.parse("1.00", "EUR")


class TeeListener(TeeSession):
    """A session with the trusted application that keeps what went in and what came out."""

    said: list[tuple[CommandId, Wire | None, bytes]]

    def invoke_command(
        self, command: CommandId, parameters: Wire | None = None, timeout: float = ANSWER_SECONDS
    ) -> bytes:
        answer = super().invoke_command(command, parameters, timeout)
        self.said.append((command, parameters, answer))
        return answer

    def of(self, command: CommandId) -> tuple[Wire | None, bytes]:
        """Return the parameters and the answer of the only call of `command`."""
        [(parameters, answer)] = [(taken, given) for one, taken, given in self.said if one is command]
        return parameters, answer

    def operations(self) -> dict[tally.Operation, int]:
        """Return what the TEE process has done so far."""
        counts = self.invoke(CommandId.REPORT, Report).operations
        return dict(zip(tally.Operation, counts, strict=True))


@pytest.fixture
def tee(home: Path) -> Iterator[TeeListener]:
    session = TeeListener(start_of(home / "wallet", PhoneOptions()))
    session.said = []
    yield session
    session.close()


@pytest.fixture
def events() -> SimpleQueue[Event | None]:
    return SimpleQueue()


@pytest.fixture
def card(tee: TeeListener, events: SimpleQueue[Event | None]) -> Card:
    return Card([PaymentClient(DEFAULT_NAME, tee, events)])


def steps(events: SimpleQueue[Event | None]) -> list[Step]:
    taken = []
    while not events.empty():
        event = events.get()
        assert event is not None
        taken.append(event.step)
    return taken


def numbers_of(home: Path) -> list[CardNumber]:
    """Every card number that the issuer gave out, in full."""
    with sqlite3.connect(home / "issuer" / "issuer.sqlite") as database:
        rows = database.execute("SELECT number FROM credentials").fetchall()
    database.close()
    return [CardNumber(number) for (number,) in rows]


def charge_soft(wallet: SoftWallet, laboratory: Laboratory, folder: Path) -> tuple[OutcomeKind, str, int]:
    """Charge `wallet` and return outcome, reason and how many ciphertexts the terminal opened."""
    before = tally.snapshot()
    with Terminal(identity.load(laboratory.home.pos), Journal(folder)) as terminal:
        outcome = terminal.charge(EURO, link_to(wallet))
    return outcome.kind, outcome.reason, tally.since(before)[tally.Operation.OPEN]


@pytest.mark.requirement("S1")
def test_s1_applying_writes_virtual_card_numbers_to_the_wallet(home: Path) -> None:
    numbers = numbers_of(home)
    assert len(set(numbers)) == 20
    shown = tap("wallet", "show", "--json", home=home).json
    assert shown["cards_left"] == 20
    assert shown["card"] in {number.masked for number in numbers}


@pytest.mark.requirement("S1")
def test_s1_money_is_loaded_and_the_purse_stays(home: Path) -> None:
    assert balance(home) == "100.00"
    loaded = tap("wallet", "load", "7.25", "EUR", "--json", home=home).json
    assert (loaded["loaded"], loaded["balance"]) == ("7.25", "107.25")
    assert balance(home) == "107.25"  # another process reads it from storage


@pytest.mark.requirement("S1")
def test_s1_nothing_is_loaded_before_a_card_was_applied_for(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert tap("wallet", "init", home=other).code == 0
    refused = tap("wallet", "load", "5.00", "--issuer", f"embedded:{home / 'issuer'}", home=other)
    assert (refused.code, "no virtual card yet" in refused.sentence) == (2, True)


@pytest.mark.requirement("S2")
def test_s2_the_terminal_sends_the_application_name_first(laboratory: Laboratory) -> None:
    link = TracingLink(laboratory.link)
    assert laboratory.terminal.charge(EURO, link).approved
    first = Command.decode(link.exchanges[0].command)
    assert (first.header, first.data) == (bytes.fromhex("00A40400"), DEFAULT_NAME)


@pytest.mark.requirement("S2")
def test_s2_the_terminal_sends_nothing_before_a_wallet_is_in_its_field(laboratory: Laboratory, tmp_path: Path) -> None:
    own = identity.load(laboratory.home.pos)
    with Terminal(own, Journal(tmp_path), TerminalOptions(timeout=0.0)) as terminal:
        steps = terminal.transaction(EURO, "memory:an empty field")
        with pytest.raises(StopIteration) as finished:
            next(steps)
    assert finished.value.value.kind is OutcomeKind.NO_CARD
    assert finished.value.value.air.lengths == ()


@pytest.mark.requirement("S3")
def test_s3_the_wallet_answers_to_its_own_name(card: Card, events: SimpleQueue[Event | None]) -> None:
    response = Response.decode(card.process(select(DEFAULT_NAME).encode()))
    assert response.sw is StatusWord.OK
    assert ApplicationFci.decode(response.data).name == DEFAULT_NAME
    assert steps(events) == [Step.NAME_ANSWERED]


@pytest.mark.requirement("S3")
@pytest.mark.parametrize("name", [OTHER_NAME, DEFAULT_NAME + b"\1", DEFAULT_NAME[:-1] + b"\2"])
def test_s3_the_wallet_does_not_answer_to_another_name(
    card: Card, events: SimpleQueue[Event | None], name: bytes
) -> None:
    assert card.process(select(name).encode()) == bytes.fromhex("6A82")
    assert steps(events) == []


@pytest.mark.requirement("S3")
def test_s3_a_wallet_with_another_name_is_found_by_that_name_only(home: Path) -> None:
    other = ["--name", OTHER_NAME.hex()]
    with serving(home, *other):
        assert tap("pos", "charge", "1.00", home=home).code == 13
        assert tap("pos", "charge", "1.00", *other, home=home).code == 0


@pytest.mark.requirement("S4")
def test_s4_the_terminal_asks_for_the_card_number_and_proves_itself(laboratory: Laboratory) -> None:
    link = TracingLink(laboratory.link)
    assert laboratory.terminal.charge(EURO, link).approved
    asked = Command.decode(link.exchanges[2].command)
    assert asked.header == bytes([0x80, Ins.GET_VIRTUAL_CARD, VERSION_1, SUITE_1])
    hello = GetVirtualCard.decode(asked.data)
    assert hello.certificate == identity.load(laboratory.home.pos).certificate


@pytest.mark.requirement("S5")
def test_s5_the_client_application_hands_the_request_to_the_trusted_application(
    card: Card, tee: TeeListener, home: Path
) -> None:
    link = TracingLink(link_to(card))
    HostileTerminal(link, identity.load(home / "pos")).read_card()
    parameters, _ = tee.of(CommandId.GET_VIRTUAL_CARD)
    assert isinstance(parameters, CardRequest)
    asked = Command.decode(link.exchanges[2].command)
    assert (parameters.p1, parameters.p2, parameters.data) == (VERSION_1, SUITE_1, asked.data)


@pytest.mark.requirement("S5")
def test_s5_without_the_trusted_application_there_is_no_card_number(card: Card, tee: TeeListener, home: Path) -> None:
    terminal = HostileTerminal(link_to(card), identity.load(home / "pos"))
    terminal.approach()
    hello = get_virtual_card(VERSION_1, SUITE_1, terminal.hello())
    tee.close()  # the process is gone; the next call starts it anew, and it knows of no tap
    answer = terminal.link.transceive(hello.encode())
    assert len(answer) == 2
    assert answer != bytes.fromhex("9000")


@pytest.mark.requirement("S6")
def test_s6_the_trusted_application_encrypts_and_signs_in_its_own_process(
    card: Card, tee: TeeListener, home: Path
) -> None:
    terminal = HostileTerminal(link_to(card), identity.load(home / "pos"))
    terminal.approach()
    hello = terminal.hello()
    there, here = tee.operations(), tally.snapshot()
    terminal.session.get_virtual_card(hello)
    done = {operation: count - there[operation] for operation, count in tee.operations().items()}
    assert (done[tally.Operation.SEAL], done[tally.Operation.SIGN], done[tally.Operation.VERIFY]) == (1, 1, 2)
    assert sum(tally.since(here).values()) == 0


@pytest.mark.requirement("S6")
def test_s6_the_signature_covers_the_ciphertext(card: Card, home: Path) -> None:
    terminal = HostileTerminal(link_to(card), identity.load(home / "pos"))
    terminal.approach()
    hello = terminal.hello()
    t2 = terminal.session.digests(hello).t2
    answer = VirtualCard.decode(terminal.session.get_virtual_card(hello))

    def is_signed(sealed: bytes) -> bool:
        signed = envelope.card_signature_input(t2, answer.certificate.encode(), sealed)
        return signing.is_valid(answer.certificate.public_key, answer.signature, signed)

    assert is_signed(answer.sealed)
    assert not any(is_signed(flip(answer.sealed, position)) for position in range(len(answer.sealed)))


@pytest.mark.requirement("S6")
def test_s6_the_number_is_encrypted_to_this_terminal_alone(card: Card, home: Path) -> None:
    terminal = HostileTerminal(link_to(card), identity.load(home / "pos"))
    terminal.approach()
    hello = terminal.hello()
    info = envelope.card_info(terminal.session.digests(hello).t2)
    sealed = VirtualCard.decode(terminal.session.get_virtual_card(hello)).sealed
    opened = envelope.unseal(sealed, terminal.key, info)
    assert CardNumber(opened[:8].hex()) in numbers_of(home)
    assert opened[:8] not in sealed
    with pytest.raises(VerificationError):
        envelope.unseal(sealed, X25519PrivateKey.generate(), info)


@pytest.mark.requirement("S7")
def test_s7_the_client_application_returns_what_the_trusted_application_signed(
    card: Card, tee: TeeListener, home: Path, events: SimpleQueue[Event | None]
) -> None:
    link = TracingLink(link_to(card))
    HostileTerminal(link, identity.load(home / "pos")).read_card()
    _, answer = tee.of(CommandId.GET_VIRTUAL_CARD)
    assert link.exchanges[2].answer == answer + bytes.fromhex("9000")
    assert steps(events) == [Step.NAME_ANSWERED, Step.CARD_REQUESTED, Step.CARD_SIGNED, Step.CARD_RETURNED]


@pytest.mark.requirement("S8")
def test_s8_with_a_bad_signature_the_ciphertext_is_never_opened(laboratory: Laboratory, tmp_path: Path) -> None:
    wallet = SoftWallet(laboratory.home.path, signing_key=PrivateKey.generate(), sealed_to=X25519PrivateKey.generate())
    assert charge_soft(wallet, laboratory, tmp_path) == (OutcomeKind.NOT_VERIFIED, Check.SIGNATURE, 0)
    assert Ins.DEBIT not in wallet.commands


@pytest.mark.requirement("S8")
def test_s8_with_a_ciphertext_that_cannot_be_opened_the_number_is_never_looked_at(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    wallet = SoftWallet(
        laboratory.home.path, sealed_to=X25519PrivateKey.generate(), edit_plaintext=lambda data: bytes(len(data))
    )
    assert charge_soft(wallet, laboratory, tmp_path) == (OutcomeKind.NOT_VERIFIED, Check.ENCRYPTION, 1)
    assert Ins.DEBIT not in wallet.commands


@pytest.mark.requirement("S8")
def test_s8_with_a_number_that_is_none_no_payment_is_requested(laboratory: Laboratory, tmp_path: Path) -> None:
    wallet = SoftWallet(laboratory.home.path, edit_plaintext=lambda data: flip(data, 7))
    assert charge_soft(wallet, laboratory, tmp_path) == (OutcomeKind.NOT_VERIFIED, Check.CARD_NUMBER, 1)
    assert Ins.DEBIT not in wallet.commands


@pytest.mark.requirement("S8")
def test_s8_when_all_is_good_the_payment_is_requested(laboratory: Laboratory, tmp_path: Path) -> None:
    wallet = SoftWallet(laboratory.home.path)
    assert charge_soft(wallet, laboratory, tmp_path) == (OutcomeKind.APPROVED, "", 1)
    assert wallet.commands[-2:] == [Ins.DEBIT, Ins.CONFIRM]


@pytest.mark.requirement("S9")
def test_s9_the_wallet_deducts_the_amount_and_returns_a_signed_result(laboratory: Laboratory, tmp_path: Path) -> None:
    before = laboratory.balance
    with Terminal(terminal_like(laboratory.home.path), Journal(tmp_path)) as terminal:
        outcome = terminal.charge(EURO, link_to(laboratory.phone.card))
    assert (outcome.kind, outcome.receipt_verified, outcome.charged) == (OutcomeKind.APPROVED, True, True)
    assert before.minor - laboratory.balance.minor == 100
    with Journal(tmp_path) as journal:
        [record] = journal.records()
    receipt = Receipt.decode(record.receipt)
    certificate = CredentialCertificate.decode(record.credential)
    assert (receipt.debit.amount, receipt.debit.currency, receipt.result) == (100, 978, Result.APPROVED)
    assert receipt.is_shown_by(record.signature, certificate)
    assert not replace(receipt, result=Result.INSUFFICIENT_FUNDS).is_shown_by(record.signature, certificate)


@pytest.mark.requirement("S9")
def test_s9_with_too_little_money_nothing_is_deducted_and_the_refusal_is_signed(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    before = laboratory.balance
    with Terminal(terminal_like(laboratory.home.path), Journal(tmp_path)) as terminal:
        outcome = terminal.charge(Amount.parse("500.00", "EUR"), link_to(laboratory.phone.card))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.DECLINED, "insufficient funds")
    assert (outcome.receipt_verified, outcome.charged, laboratory.balance) == (True, False, before)
