# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""How a transaction ended: as a value, as an exit code, on the screen, in JSON."""

from __future__ import annotations

import json

import pytest

from console.exit_codes import ExitCode
from pos.cli import exit_code
from pos.journal import Record, State
from pos.outcome import Air, Outcome, OutcomeKind, Progress, Step
from pos.relay import RelayCheckResult
from pos.ui import Screen, outcome_as_json, receipt, record_as_json, record_as_text
from protocol.money import Amount
from protocol.transport.air import activation_ms, air_time

PRICE = Amount.parse("12.50", "EUR")
CODES = {
    OutcomeKind.APPROVED: 0,
    OutcomeKind.DECLINED: 10,
    OutcomeKind.SEE_PHONE: 11,
    OutcomeKind.TORN: 12,
    OutcomeKind.NO_APPLICATION: 13,
    OutcomeKind.NOT_VERIFIED: 14,
    OutcomeKind.NOT_ACCEPTED: 15,
    OutcomeKind.NO_CARD: 16,
}
APPROVED = Outcome(
    OutcomeKind.APPROVED,
    PRICE,
    card="999910••••••1234",
    reference="ab" * 16,
    receipt_verified=True,
    charged=True,
    relay=RelayCheckResult(0.12345, 0.0, 10.0),
    air=Air(((22, 27), (14, 10)), 1),
    steps=(Progress(Step.NAME_SENT, "sent", 7),),
)


@pytest.mark.parametrize("kind", list(OutcomeKind))
def test_every_outcome_has_its_exit_code(kind: OutcomeKind) -> None:
    assert exit_code(Outcome(kind, PRICE)) == CODES[kind]


def test_exit_codes_of_outcomes_are_all_different() -> None:
    assert len(set(CODES.values())) == len(OutcomeKind)


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_has_a_meaning(code: ExitCode) -> None:
    assert len(code.meaning) > 10


def test_an_outcome_prints_as_a_line() -> None:
    assert str(APPROVED) == "approved: 12.50 EUR"
    assert str(Outcome(OutcomeKind.DECLINED, PRICE, "too little")) == "declined: 12.50 EUR (too little)"


@pytest.mark.parametrize("kind", list(OutcomeKind))
def test_only_an_approval_is_approved(kind: OutcomeKind) -> None:
    assert Outcome(kind, PRICE).approved is (kind is OutcomeKind.APPROVED)


def test_air_adds_up_bytes_and_time() -> None:
    air = APPROVED.air
    assert (air.bytes_command, air.bytes_response) == (36, 37)
    assert air.milliseconds() == activation_ms() + air_time(air.lengths).milliseconds
    assert air.milliseconds_to_receipt == activation_ms() + air_time([(22, 27)]).milliseconds
    assert list(air.by_bit_rate) == [106, 212, 424, 848]


def test_an_outcome_is_json() -> None:
    shown = json.loads(json.dumps(outcome_as_json(APPROVED)))
    assert (shown["outcome"], shown["amount"], shown["currency"]) == ("approved", "12.50", "EUR")
    assert (shown["charged"], shown["receipt_verified"], shown["apdus"]) == (True, True, 2)
    assert shown["steps"] == [{"step": "S2", "text": "sent", "at": 7}]


def test_what_is_not_known_is_null() -> None:
    shown = outcome_as_json(Outcome(OutcomeKind.TORN, PRICE, charged=None))
    assert (shown["charged"], shown["card"], shown["reference"], shown["reason"]) == (None, None, None, None)


def test_a_receipt_says_who_what_and_with_which_card() -> None:
    text = receipt(APPROVED, "Corner Bakery")
    assert all(part in text for part in ("Corner Bakery", "12.50 EUR", "999910••••••1234", "signature verified"))


@pytest.mark.parametrize(
    ("outcome", "headline"),
    [
        (APPROVED, "APPROVED"),
        (Outcome(OutcomeKind.DECLINED, PRICE, "insufficient funds"), "DECLINED: insufficient funds"),
        (Outcome(OutcomeKind.SEE_PHONE, PRICE, "see phone"), "SEE PHONE"),
        (Outcome(OutcomeKind.TORN, PRICE, "the result is not known"), "NOT FINISHED: the result is not known"),
        (Outcome(OutcomeKind.NOT_ACCEPTED, PRICE, "because"), "TERMINAL NOT ACCEPTED\n"),
        (Outcome(OutcomeKind.NOT_VERIFIED, PRICE, "signature wrong"), "CARD NOT VERIFIED: signature wrong"),
        (Outcome(OutcomeKind.NO_CARD, PRICE, "none came"), "NO CARD: none came"),
        (Outcome(OutcomeKind.NO_APPLICATION, PRICE, "none"), "NO APPLICATION: none"),
    ],
)
def test_the_screen_says_how_it_ended(outcome: Outcome, headline: str, capsys: pytest.CaptureFixture[str]) -> None:
    Screen(PRICE, "Corner Bakery").result(outcome)
    shown = capsys.readouterr().out
    assert shown.startswith(headline)
    assert ("paid to" in shown) is outcome.approved


def test_the_screen_asks_for_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(PRICE, "Corner Bakery").present_card()
    assert capsys.readouterr().out.splitlines() == ["Corner Bakery   12.50 EUR", "Present card"]


def record(state: State, reason: str = "", *, confirmed: bool = False) -> Record:
    return Record(
        bytes(16),
        "2026-01-02T03:04:05+00:00",
        1250,
        978,
        "999910••••••1234",
        b"",
        b"",
        b"",
        b"",
        state,
        reason,
        confirmed,
    )


def test_a_line_of_the_journal_says_when_the_result_is_not_known() -> None:
    assert "result not known" in record_as_text(record(State.OPEN))
    assert "result not known" not in record_as_text(record(State.APPROVED))
    assert "refused: insufficient funds" in record_as_text(record(State.REFUSED, "insufficient funds"))
    assert "2026-01-02 03:04:05" in record_as_text(record(State.OPEN))


def test_a_line_of_the_journal_is_json() -> None:
    shown = record_as_json(record(State.APPROVED, confirmed=True))
    assert (shown["amount"], shown["currency"], shown["state"], shown["confirmed"]) == (
        "12.50",
        "EUR",
        "approved",
        True,
    )
