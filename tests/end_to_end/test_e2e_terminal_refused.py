# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Terminals that the wallet must not accept: 6982 on the air and nothing else, the reason in the user's history."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from issuer import keys
from pos.identity import Identity
from pos.journal import Journal
from pos.outcome import Outcome, OutcomeKind
from pos.terminal import Terminal
from protocol.apdu import Command
from protocol.certificate import Usage
from protocol.commands import DEFAULT_NAME, VERSION_1, Ins, get_virtual_card, select
from protocol.envelope import SUITE_1
from protocol.errors import Check
from protocol.fci import ApplicationFci
from protocol.money import Amount
from protocol.signing import PrivateKey
from protocol.transport.trace import TracingLink
from tests.end_to_end.commands import balance, serving, tap
from tests.end_to_end.parties import REFUSED, HostileTerminal, ToldLaboratory, flip, link_to, terminal_like
from tests.end_to_end.soft_wallet import credential_like

EURO = Amount.parse("1.00", "EUR")
TODAY = datetime.now(UTC).date()
NOT_SATISFIED = bytes.fromhex("6985")


def state(laboratory: ToldLaboratory) -> tuple[int, int]:
    """Return what no refused terminal may change: the balance and the number of cards."""
    view = laboratory.phone.view()
    return view.balance, view.cards_left


def charge(laboratory: ToldLaboratory, identity: Identity, folder: Path) -> tuple[Outcome, TracingLink]:
    link = TracingLink(link_to(laboratory.phone.card))
    with Terminal(identity, Journal(folder)) as terminal:
        return terminal.charge(EURO, link), link


def hostile(laboratory: ToldLaboratory) -> HostileTerminal:
    """Return a terminal with a good certificate that has selected the wallet and done RELAY CHECK."""
    terminal = HostileTerminal(link_to(laboratory.phone.card), terminal_like(laboratory.home.path))
    terminal.approach()
    return terminal


def request(terminal: HostileTerminal, version: int = VERSION_1, suite: int = SUITE_1) -> Command:
    return get_virtual_card(version, suite, terminal.hello())


CASES: dict[str, tuple[Callable[[Path], Identity], Check]] = {
    "a certificate of another use": (
        lambda home: terminal_like(home, usage=Usage.CREDENTIAL),
        Check.CERTIFICATE_USAGE,
    ),
    "an expired certificate": (
        lambda home: terminal_like(home, valid_until=TODAY - timedelta(2)),
        Check.CERTIFICATE_EXPIRED,
    ),
    "a certificate that is not yet valid": (
        lambda home: terminal_like(home, valid_from=TODAY + timedelta(2)),
        Check.CERTIFICATE_NOT_YET_VALID,
    ),
    "a certificate of an unknown authority": (
        lambda home: terminal_like(home, authority=b"ELSE"),
        Check.CERTIFICATE_ISSUER,
    ),
    "a certificate of a foreign acquirer": (
        lambda home: terminal_like(home, PrivateKey.generate()),
        Check.CERTIFICATE_SIGNATURE,
    ),
    "a certificate by the issuer instead of the acquirer": (
        lambda home: terminal_like(home, keys.load(home / "issuer").issuer),
        Check.CERTIFICATE_SIGNATURE,
    ),
    "a key that was not certified": (
        lambda home: replace(terminal_like(home), key=PrivateKey.generate()),
        Check.SIGNATURE,
    ),
    "a certificate edited after it was signed": (
        lambda home: _edited(terminal_like(home)),
        Check.CERTIFICATE_SIGNATURE,
    ),
}


@pytest.mark.attack("B6")
@pytest.mark.parametrize("case", CASES)
def test_the_wallet_finds_it_and_the_air_shows_nothing_but_6982(
    laboratory: ToldLaboratory, tmp_path: Path, case: str
) -> None:
    make, check = CASES[case]
    before, lines = state(laboratory), len(laboratory.history())
    outcome, link = charge(laboratory, make(laboratory.home.path), tmp_path)
    assert (outcome.kind, outcome.charged, outcome.card) == (OutcomeKind.NOT_ACCEPTED, False, "")
    assert outcome.reason == "the wallet does not accept this terminal"
    assert [one.answer for one in link.exchanges][2:] == [REFUSED]
    assert state(laboratory) == before
    last = laboratory.history()[-1]
    assert (last.what, last.reason) == ("terminal not accepted", check.value)
    assert len(laboratory.history()) <= lines + 1  # said twice in a row, it is one line
    with Journal(tmp_path) as journal:
        assert journal.records() == []


@pytest.mark.attack("B6")
def test_a_change_at_any_byte_of_the_request_is_refused(laboratory: ToldLaboratory) -> None:
    before = state(laboratory)
    terminal = hostile(laboratory)
    length = len(request(terminal).data)
    accepted = []
    for position in range(length):
        command = request(terminal)
        answer = terminal.link.transceive(command.with_data(flip(command.data, position)).encode())
        accepted += [position] if answer != REFUSED else []
        terminal.leave()
        terminal = hostile(laboratory)
    assert accepted == []
    assert state(laboratory) == before


@pytest.mark.parametrize("count", [0, 1, 63, 64, 96, -1])
def test_a_request_cut_short_is_refused(laboratory: ToldLaboratory, count: int) -> None:
    before = state(laboratory)
    terminal = hostile(laboratory)
    command = request(terminal)
    assert terminal.link.transceive(command.with_data(command.data[:count]).encode()) == REFUSED
    assert state(laboratory) == before


def test_nothing_may_follow_the_request(laboratory: ToldLaboratory) -> None:
    terminal = hostile(laboratory)
    command = request(terminal)
    assert terminal.link.transceive(command.with_data(command.data + b"\0").encode()) == REFUSED


@pytest.mark.attack("B6")
def test_a_credential_cannot_act_as_a_terminal(laboratory: ToldLaboratory) -> None:
    terminal = hostile(laboratory)
    command = request(terminal)
    certificate = credential_like(laboratory.home.path, PrivateKey.generate()).encode()
    forged = command.with_data(certificate + command.data[-96:])
    assert terminal.link.transceive(forged.encode()) == REFUSED
    assert laboratory.history()[-1].reason == Check.CERTIFICATE_FORMAT.value


@pytest.mark.attack("F1")
def test_a_recorded_request_is_refused_in_another_tap(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    outcome, link = charge(laboratory, terminal_like(laboratory.home.path), tmp_path)
    assert outcome.approved
    recorded = [one.command for one in link.exchanges]
    before = state(laboratory)
    replaying = link_to(laboratory.phone.card)
    replaying.activate(1.0)
    answers = [replaying.transceive(command) for command in recorded]
    assert answers[2:] == [REFUSED, NOT_SATISFIED, NOT_SATISFIED]
    assert state(laboratory) == before
    assert laboratory.history()[-1].reason == Check.SIGNATURE.value


@pytest.mark.attack("F1")
def test_a_recorded_request_is_refused_after_an_honest_approach(laboratory: ToldLaboratory) -> None:
    terminal = hostile(laboratory)
    recorded = request(terminal).encode()
    terminal.leave()
    again = hostile(laboratory)
    assert again.link.transceive(recorded) == REFUSED
    assert laboratory.history()[-1].reason == Check.SIGNATURE.value


@pytest.mark.attack("F1")
def test_a_request_made_for_another_wallet_is_refused(laboratory: ToldLaboratory) -> None:
    """What an honest terminal says to one tap is worth nothing in a tap that goes on elsewhere at the same time."""
    first = hostile(laboratory)
    made_for_first = request(first).encode()
    second = hostile(laboratory)  # the same card begins another tap
    assert second.link.transceive(made_for_first) == REFUSED


@pytest.mark.attack("F1")
def test_a_nonce_is_used_up_by_a_bad_request(laboratory: ToldLaboratory) -> None:
    before = state(laboratory)
    terminal = hostile(laboratory)
    good = request(terminal)
    assert terminal.link.transceive(good.with_data(flip(good.data, -1)).encode()) == REFUSED
    assert terminal.link.transceive(good.encode()) == NOT_SATISFIED
    assert state(laboratory) == before


def test_a_tap_shows_one_card(laboratory: ToldLaboratory) -> None:
    terminal = HostileTerminal(link_to(laboratory.phone.card), terminal_like(laboratory.home.path))
    terminal.read_card()
    _, cards = state(laboratory)
    assert terminal.link.transceive(request(terminal).encode()) == NOT_SATISFIED
    assert state(laboratory)[1] == cards


@pytest.mark.parametrize("challenges", [0, 2])
def test_relay_check_is_done_once_before_the_request(laboratory: ToldLaboratory, challenges: int) -> None:
    terminal = HostileTerminal(link_to(laboratory.phone.card), terminal_like(laboratory.home.path))
    terminal.session.select(DEFAULT_NAME)
    answers = [terminal.link.transceive(bytes.fromhex("8058000008") + os.urandom(8) + b"\0") for _ in range(challenges)]
    assert answers[1:] == [NOT_SATISFIED] * (challenges - 1 if challenges else 0)
    if not challenges:
        assert terminal.link.transceive(request(terminal).encode()) == NOT_SATISFIED


@pytest.mark.attack("B4")
@pytest.mark.parametrize(("version", "suite"), [(2, SUITE_1), (0, SUITE_1), (VERSION_1, 2), (VERSION_1, 0)])
def test_a_version_or_suite_that_was_not_offered_is_refused(
    laboratory: ToldLaboratory, version: int, suite: int
) -> None:
    before = state(laboratory)
    terminal = hostile(laboratory)
    assert terminal.link.transceive(request(terminal, version, suite).encode()) == bytes.fromhex("6A86")
    assert state(laboratory) == before


@pytest.mark.parametrize("tap_key", [bytes(32), b"\1" + bytes(31)])
def test_a_tap_key_that_hides_nothing_brings_no_card(laboratory: ToldLaboratory, tap_key: bytes) -> None:
    before = state(laboratory)
    terminal = hostile(laboratory)
    honest = terminal.hello()
    forged = replace(honest, tap_key=tap_key)
    t1 = terminal.session.digests(forged).t1
    forged = replace(forged, signature=terminal.identity.key.sign(forged.signature_input(t1)))
    answer = terminal.link.transceive(get_virtual_card(VERSION_1, SUITE_1, forged).encode())
    assert answer == REFUSED
    assert state(laboratory) == before


@pytest.mark.attack("N3")
def test_a_terminal_that_has_not_proved_itself_learns_the_offer_and_a_nonce(laboratory: ToldLaboratory) -> None:
    link = link_to(laboratory.phone.card)
    link.activate(1.0)
    fci = link.transceive(select(DEFAULT_NAME).encode())
    nonce = link.transceive(bytes.fromhex("8058000008") + bytes(8) + b"\0")
    assert fci == ApplicationFci(DEFAULT_NAME, (VERSION_1,), (SUITE_1,)).encode() + bytes.fromhex("9000")
    assert (len(nonce), nonce[8:]) == (10, bytes.fromhex("9000"))
    for ins in (Ins.DEBIT, Ins.CONFIRM, Ins.CANCEL):
        assert link.transceive(bytes([0x80, ins, 0, 0])) == NOT_SATISFIED


@pytest.mark.attack("M8")
def test_a_terminal_that_only_reads_is_told_to_wait(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    identity = terminal_like(laboratory.home.path)
    for _ in range(3):
        reader = HostileTerminal(link_to(laboratory.phone.card), identity)
        reader.read_card()
        reader.leave()
    before = state(laboratory)
    outcome, _ = charge(laboratory, identity, tmp_path)
    assert (outcome.kind, outcome.charged) == (OutcomeKind.DECLINED, False)
    assert "try again in ten minutes" in outcome.reason
    assert state(laboratory) == before


def test_a_blocked_terminal_is_refused_once_the_wallet_has_the_list(home: Path) -> None:
    assert tap("issuer", "block", "terminal", "TERM0001", home=home).code == 0
    assert tap("wallet", "sync", home=home).code == 0
    with serving(home) as wallet:
        refused = tap("pos", "charge", "1.00", "--json", home=home)
        wallet.wait_for("terminal refused")
    assert (refused.code, refused.json["outcome"]) == (15, "terminal not accepted")
    [line] = tap("wallet", "history", "--json", home=home).json
    assert (line["what"], line["reason"]) == ("terminal not accepted", Check.CERTIFICATE_BLOCKED.value)
    assert balance(home) == "100.00"


def test_an_honest_terminal_is_still_accepted(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    before = laboratory.balance
    outcome, _ = charge(laboratory, terminal_like(laboratory.home.path), tmp_path)
    assert outcome.approved
    assert before.minor - laboratory.balance.minor == 100


def _edited(identity: Identity) -> Identity:
    merchant = replace(identity.certificate.merchant, name="Corner Baker")
    return replace(identity, certificate=replace(identity.certificate, merchant=merchant))
