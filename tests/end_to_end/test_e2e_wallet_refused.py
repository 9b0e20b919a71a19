# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Wallets that the terminal must not believe: it says what it found, asks for no payment, and nothing is deducted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from issuer import keys
from lab.fixtures import Laboratory
from pos.identity import Identity
from pos.journal import Journal
from pos.outcome import Outcome, OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol.apdu import Command
from protocol.card_number import CardNumber
from protocol.certificate import Usage
from protocol.commands import DEFAULT_NAME, Ins
from protocol.errors import Check
from protocol.fci import DIRECTORY_NAME, ApplicationFci, DirectoryEntry, encode_directory
from protocol.messages import SEALED_LENGTH
from protocol.money import Amount
from protocol.signing import PrivateKey
from protocol.transport.base import CardHandler, CardLink
from protocol.transport.trace import TracingLink
from tests.end_to_end.commands import balance, serving, tap
from tests.end_to_end.parties import EditingCard, PlainCard, flip, link_to, terminal_like
from tests.end_to_end.soft_wallet import SoftWallet, credential_like

EURO = Amount.parse("1.00", "EUR")
TODAY = datetime.now(UTC).date()
KEY = PrivateKey.generate()
OK = b"\x90\x00"
CERTIFICATE_AT = SEALED_LENGTH + 64


def charge(identity: Identity, folder: Path, link: CardLink, options: TerminalOptions | None = None) -> Outcome:
    with Terminal(identity, Journal(folder), options) as terminal:
        return terminal.charge(EURO, link)


def charge_card(laboratory: Laboratory, folder: Path, card: CardHandler) -> tuple[Outcome, list[int]]:
    """Charge `card` at a new terminal; return the outcome and the instructions that were sent."""
    link = TracingLink(link_to(card))
    outcome = charge(terminal_like(laboratory.home.path), folder, link)
    with Journal(folder) as journal:
        assert outcome.approved or journal.records() == []
    return outcome, [Command.decode(one.command).ins for one in link.exchanges]


CASES: dict[str, tuple[Callable[[Path], SoftWallet], Check]] = {
    "a certificate of another use": (
        lambda home: SoftWallet(home, KEY, credential_like(home, KEY, usage=Usage.TERMINAL)),
        Check.CERTIFICATE_USAGE,
    ),
    "an expired certificate": (
        lambda home: SoftWallet(home, KEY, credential_like(home, KEY, valid_until=TODAY - timedelta(2))),
        Check.CERTIFICATE_EXPIRED,
    ),
    "a certificate that is not yet valid": (
        lambda home: SoftWallet(home, KEY, credential_like(home, KEY, valid_from=TODAY + timedelta(2))),
        Check.CERTIFICATE_NOT_YET_VALID,
    ),
    "a certificate of an unknown authority": (
        lambda home: SoftWallet(home, KEY, credential_like(home, KEY, authority=b"ELSE")),
        Check.CERTIFICATE_ISSUER,
    ),
    "a certificate of a foreign issuer": (
        lambda home: SoftWallet(home, KEY, credential_like(home, KEY, PrivateKey.generate())),
        Check.CERTIFICATE_SIGNATURE,
    ),
    "a certificate by the acquirer instead of the issuer": (
        lambda home: SoftWallet(home, KEY, credential_like(home, KEY, keys.load(home / "issuer").acquirer)),
        Check.CERTIFICATE_SIGNATURE,
    ),
    "a certificate edited after it was signed": (
        lambda home: SoftWallet(home, KEY, replace(credential_like(home, KEY), offline_ceiling=10**9)),
        Check.CERTIFICATE_SIGNATURE,
    ),
    "a certificate for another key": (
        lambda home: SoftWallet(home, KEY, credential_like(home, PrivateKey.generate())),
        Check.SIGNATURE,
    ),
    "an empty answer": (
        lambda home: SoftWallet(home, edit_answer=lambda _: b""),
        Check.CERTIFICATE_FORMAT,
    ),
    "an answer without its certificate": (
        lambda home: SoftWallet(home, edit_answer=lambda data: data[:CERTIFICATE_AT]),
        Check.CERTIFICATE_FORMAT,
    ),
}


@pytest.mark.attack("V1")
@pytest.mark.parametrize("case", CASES)
def test_the_terminal_says_what_it_found_and_asks_for_no_payment(
    laboratory: Laboratory, tmp_path: Path, case: str
) -> None:
    make, check = CASES[case]
    outcome, sent = charge_card(laboratory, tmp_path, make(laboratory.home.path))
    assert (outcome.kind, outcome.reason, outcome.charged) == (OutcomeKind.NOT_VERIFIED, check.value, False)
    assert sent == [Ins.SELECT, Ins.RELAY_CHECK, Ins.GET_VIRTUAL_CARD]


def test_the_software_wallet_of_these_tests_is_otherwise_believed(laboratory: Laboratory, tmp_path: Path) -> None:
    outcome, _ = charge_card(laboratory, tmp_path, SoftWallet(laboratory.home.path))
    assert outcome.approved


@pytest.mark.attack("B6")
def test_a_terminal_cannot_act_as_a_card(laboratory: Laboratory, tmp_path: Path) -> None:
    certificate = terminal_like(laboratory.home.path).certificate.encode()
    wallet = SoftWallet(laboratory.home.path, edit_answer=lambda data: data[:CERTIFICATE_AT] + certificate)
    outcome, _ = charge_card(laboratory, tmp_path, wallet)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_VERIFIED, Check.CERTIFICATE_FORMAT.value)


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "encapsulation": lambda data: flip(data, 0),
    "ciphertext": lambda data: flip(data, 40),
    "tag of the ciphertext": lambda data: flip(data, SEALED_LENGTH - 1),
    "r": lambda data: flip(data, SEALED_LENGTH),
    "s": lambda data: flip(data, SEALED_LENGTH + 63),
    "template": lambda data: flip(data, CERTIFICATE_AT),
    "length": lambda data: flip(data, CERTIFICATE_AT + 2),
    "serial": lambda data: flip(data, CERTIFICATE_AT + 7),
    "key": lambda data: flip(data, -70),
    "signature of the certificate": lambda data: flip(data, -3),
    "status word": lambda data: data[:-2] + bytes.fromhex("6283"),
    "one byte less": lambda data: data[:-3] + data[-2:],
    "one byte more": lambda data: data[:-2] + b"\0" + data[-2:],
    "no data": lambda data: data[-2:],
    "no status word": lambda _: b"",
}


@pytest.mark.attack("B6")
@pytest.mark.parametrize("place", EDITS)
def test_an_edited_answer_of_the_real_wallet_is_not_believed(
    laboratory: Laboratory, tmp_path: Path, place: str
) -> None:
    before = laboratory.balance
    card = EditingCard(laboratory.phone.card, Ins.GET_VIRTUAL_CARD, EDITS[place])
    outcome, sent = charge_card(laboratory, tmp_path, card)
    refused = OutcomeKind.DECLINED if place == "status word" else OutcomeKind.NOT_VERIFIED
    assert (outcome.kind, outcome.charged) == (refused, False)
    assert Ins.DEBIT not in sent
    assert laboratory.balance == before


@pytest.mark.parametrize(
    ("ins", "edit"),
    [
        pytest.param(
            Ins.SELECT, lambda data: data[:-2] + b"\0" + data[-2:], id="offer", marks=pytest.mark.attack("B4")
        ),
        pytest.param(Ins.SELECT, lambda data: flip(data, 5), id="name in the offer", marks=pytest.mark.attack("B3")),
        pytest.param(Ins.RELAY_CHECK, lambda data: flip(data, 0), id="nonce", marks=pytest.mark.attack("R2")),
        pytest.param(Ins.RELAY_CHECK, lambda data: data[1:], id="nonce cut short"),
    ],
)
def test_what_was_changed_on_the_way_before_the_card_leads_to_no_payment(
    laboratory: Laboratory, tmp_path: Path, ins: Ins, edit: Callable[[bytes], bytes]
) -> None:
    before = laboratory.balance
    outcome, sent = charge_card(laboratory, tmp_path, EditingCard(laboratory.phone.card, ins, edit))
    assert outcome.kind in (OutcomeKind.NOT_ACCEPTED, OutcomeKind.NOT_VERIFIED, OutcomeKind.NO_APPLICATION)
    assert Ins.DEBIT not in sent
    assert laboratory.balance == before


@pytest.mark.attack("B4")
def test_versions_cut_down_on_the_way_lead_to_no_payment(laboratory: Laboratory, tmp_path: Path) -> None:
    longer = ApplicationFci(DEFAULT_NAME, (1, 2), (1,)).encode() + OK
    card = EditingCard(laboratory.phone.card, Ins.SELECT, lambda _: longer)
    outcome, sent = charge_card(laboratory, tmp_path, card)
    assert (outcome.kind, outcome.charged) == (OutcomeKind.NOT_ACCEPTED, False)
    assert Ins.DEBIT not in sent


@pytest.mark.attack("F2")
def test_a_recorded_answer_is_not_believed_in_another_tap(laboratory: Laboratory, tmp_path: Path) -> None:
    identity, (first, second) = terminal_like(laboratory.home.path), (tmp_path / "1", tmp_path / "2")
    first.mkdir()
    second.mkdir()
    link = TracingLink(link_to(laboratory.phone.card))
    assert charge(identity, first, link).approved
    recorded = link.exchanges[2].answer
    before = laboratory.balance
    replaying = EditingCard(laboratory.phone.card, Ins.GET_VIRTUAL_CARD, lambda _: recorded)
    outcome = charge(identity, second, link_to(replaying))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_VERIFIED, Check.SIGNATURE.value)
    assert laboratory.balance == before


@pytest.mark.attack("F2")
def test_a_whole_recorded_tap_is_not_believed(laboratory: Laboratory, tmp_path: Path) -> None:
    identity, (first, second) = terminal_like(laboratory.home.path), (tmp_path / "1", tmp_path / "2")
    first.mkdir()
    second.mkdir()
    link = TracingLink(link_to(laboratory.phone.card))
    assert charge(identity, first, link).approved
    recorded = {one.command[:2]: one.answer for one in link.exchanges}
    outcome = charge(identity, second, link_to(PlainCard(recorded)))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_VERIFIED, Check.SIGNATURE.value)


@pytest.mark.attack("B1")
def test_an_answer_for_one_terminal_is_not_believed_by_another(laboratory: Laboratory, tmp_path: Path) -> None:
    """Terminal X is tapped by the victim; what the wallet says to X is shown to terminal Y."""
    answers: list[bytes] = []

    def keep(data: bytes) -> bytes:
        answers.append(data)
        return bytes.fromhex("6F00")

    charge_card(laboratory, tmp_path, EditingCard(laboratory.phone.card, Ins.GET_VIRTUAL_CARD, keep))
    (tmp_path / "y").mkdir()
    card = EditingCard(laboratory.phone.card, Ins.GET_VIRTUAL_CARD, lambda _: answers[0])
    outcome, _ = charge_card(laboratory, tmp_path / "y", card)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_VERIFIED, Check.SIGNATURE.value)


def test_a_purse_of_another_currency_is_declined_without_a_payment_request(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    outcome, sent = charge_card(laboratory, tmp_path, SoftWallet(laboratory.home.path, currency=840))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.DECLINED, "currency not supported")
    assert Ins.DEBIT not in sent


def test_a_number_on_the_list_is_not_verified(laboratory: Laboratory, tmp_path: Path) -> None:
    number = CardNumber.from_index(7)
    own = terminal_like(laboratory.home.path)
    blocking = replace(own, blocked=replace(own.blocked, numbers=(number,)))
    wallet = SoftWallet(laboratory.home.path, number=number)
    outcome = charge(blocking, tmp_path, link_to(wallet))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_VERIFIED, Check.CARD_BLOCKED.value)
    assert Ins.DEBIT not in wallet.commands


def test_a_blocked_card_is_refused_once_the_terminal_has_the_list(home: Path) -> None:
    listed = tap("issuer", "show", "--cards", "--json", home=home).json["cards"]
    shown = tap("wallet", "show", "--json", home=home).json["card"]
    [serial] = [card["serial"] for card in listed if card["masked_number"] == shown]
    assert tap("issuer", "block", "card", serial, home=home).code == 0
    assert tap("pos", "sync", "--json", home=home).json["blocked_cards"] == 1
    with serving(home) as wallet:
        refused = tap("pos", "charge", "1.00", "--json", home=home)
        wallet.wait_for("tap ended")
    assert (refused.code, refused.json["outcome"]) == (14, "not verified")
    assert refused.json["reason"] == "virtual card number on the blocked list"
    assert balance(home) == "100.00"


FOREIGN: dict[str, PlainCard] = {
    "knows no such name": PlainCard(),
    "knows no SELECT": PlainCard(otherwise=bytes.fromhex("6D00")),
    "knows no class 00": PlainCard(otherwise=bytes.fromhex("6E00")),
    "answers OK to everything": PlainCard(otherwise=OK),
    "has our name and another offer": PlainCard({b"\x00\xa4": bytes.fromhex("6F0A8408") + DEFAULT_NAME + OK}),
    "speaks another version": PlainCard({b"\x00\xa4": ApplicationFci(DEFAULT_NAME, (2,), (1,)).encode() + OK}),
    "has another suite": PlainCard({b"\x00\xa4": ApplicationFci(DEFAULT_NAME, (1,), (9,)).encode() + OK}),
    "has a directory of other applications": PlainCard(
        {
            b"\x00\xa4\x04\x00\x0e" + DIRECTORY_NAME: encode_directory(
                (DirectoryEntry(bytes.fromhex("F000000001"), "LOYALTY", 1),)
            )
            + OK
        }
    ),
    "has a directory that is none": PlainCard({b"\x00\xa4\x04\x00\x0e" + DIRECTORY_NAME: b"\x6f\x05" + OK}),
    "lists our application and has none": PlainCard(
        {b"\x00\xa4\x04\x00\x0e" + DIRECTORY_NAME: encode_directory((DirectoryEntry(DEFAULT_NAME, "TAPLAB", 1),)) + OK}
    ),
}


@pytest.mark.parametrize("by_directory", [False, True])
@pytest.mark.parametrize("case", FOREIGN)
def test_a_card_of_another_application_is_no_wallet(
    laboratory: Laboratory, tmp_path: Path, case: str, *, by_directory: bool
) -> None:
    card = FOREIGN[case]
    options = TerminalOptions(use_directory=by_directory)
    outcome = charge(terminal_like(laboratory.home.path), tmp_path, link_to(card), options)
    assert (outcome.kind, outcome.charged) == (OutcomeKind.NO_APPLICATION, False)
    assert all(apdu[1] == Ins.SELECT for apdu in card.seen)


def test_a_locked_wallet_is_declined(laboratory: Laboratory, tmp_path: Path) -> None:
    card = EditingCard(SoftWallet(laboratory.home.path), Ins.SELECT, lambda data: data[:-2] + bytes.fromhex("6283"))
    outcome, sent = charge_card(laboratory, tmp_path, card)
    assert (outcome.kind, "locked" in outcome.reason, sent) == (OutcomeKind.DECLINED, True, [Ins.SELECT])


@pytest.mark.parametrize(
    ("sw", "words"),
    [
        ("6985", "try again in ten minutes"),
        ("6A88", "no virtual card left"),
        ("6581", "nothing was deducted"),
        ("6F00", "the wallet failed"),
        ("6A80", "the wallet failed"),
    ],
)
def test_a_refusal_to_show_the_card_is_told_in_words(
    laboratory: Laboratory, tmp_path: Path, sw: str, words: str
) -> None:
    card = EditingCard(SoftWallet(laboratory.home.path), Ins.GET_VIRTUAL_CARD, lambda _: bytes.fromhex(sw))
    outcome, _ = charge_card(laboratory, tmp_path, card)
    assert (outcome.kind, outcome.charged) == (OutcomeKind.DECLINED, False)
    assert words in outcome.reason
