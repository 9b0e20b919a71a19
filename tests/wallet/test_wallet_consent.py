# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Consent on the trusted UI: for one terminal, one amount, one currency, once, for a minute, and given nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from datetime import time as time_of_day
from pathlib import Path

import pytest

from console.files import write_privately
from console.home import Home, make_private
from lab import processes
from pos import identity
from pos.journal import Journal
from pos.outcome import OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol.certificate import Merchant, TerminalCertificate, Usage
from protocol.errors import UsageError
from protocol.messages import Debit
from protocol.money import Amount
from protocol.transport.issuer import IssuerLink
from tests.wallet.shop import Shop
from wallet.environment.launcher import TrustedWorldRefusedError
from wallet.history import History
from wallet.key_line import KeyLine
from wallet.phone import PhoneOptions, start_of
from wallet.tee.client import TeeSession
from wallet.tee.consent import VALID_SECONDS, Consents
from wallet.tee.contract import Agreed, ApplyRequest, CommandId, Consent, TeeError, TeeResult, WalletView
from wallet.tee.key_agent import Talk
from wallet.tee.trusted_ui import NoUi, PaymentPrompt, ScriptedUi, Shown, open_ui

_EUR, _USD = 978, 840
_TERMINAL = TerminalCertificate(
    bytes(8), b"TLAQ", Usage.TERMINAL, date(2026, 1, 1), date(2027, 1, 1), bytes(33), bytes(64), "TERM0001",
    Merchant("Corner Bakery", 5462, _EUR),
)  # fmt: skip
_OTHER_TERMINAL = replace(_TERMINAL, serial=b"another1")
_DEBIT = Debit(60_00, _EUR, date(2026, 11, 22), time_of_day(12, 0))


# --- the rule, with a clock of our own


@dataclass
class Person:
    """The user: what was shown, and what the person will say."""

    agrees: bool = True
    shown: list[Shown] = field(default_factory=list)

    def ask(self, prompt: Shown) -> bool:
        self.shown.append(prompt)
        return self.agrees


@dataclass
class Clock:
    """Seconds, as a test wants them."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def finished(talk: Talk[bool]) -> bool:
    """What comes of a talk that says nothing to a Key."""
    with pytest.raises(StopIteration) as ended:
        next(talk)
    return bool(ended.value.value)


@pytest.fixture
def person() -> Person:
    return Person()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def consents(person: Person, clock: Clock) -> Consents:
    return Consents(person, clock)


@pytest.fixture
def granted(consents: Consents) -> Consents:
    consents.want(_TERMINAL, _DEBIT)
    assert finished(consents.ask())
    return consents


def test_nothing_is_granted_before_anybody_agreed(consents: Consents) -> None:
    assert not consents.covers(_TERMINAL, _DEBIT)
    consents.want(_TERMINAL, _DEBIT)
    assert not consents.covers(_TERMINAL, _DEBIT)


def test_nobody_is_asked_when_nothing_waits(consents: Consents, person: Person) -> None:
    assert not finished(consents.ask())
    assert person.shown == []


def test_a_payment_is_asked_for_once(granted: Consents, person: Person) -> None:
    assert not finished(granted.ask())
    assert len(person.shown) == 1
    assert granted.covers(_TERMINAL, _DEBIT)


def test_the_prompt_shows_merchant_amount_and_currency(granted: Consents, person: Person) -> None:
    assert granted
    assert [one.text for one in person.shown] == ["Pay 60.00 EUR to Corner Bakery?"]


def test_a_refusal_grants_nothing_and_ends_what_was_granted(granted: Consents, person: Person) -> None:
    person.agrees = False
    granted.want(_TERMINAL, replace(_DEBIT, amount=70_00))
    assert not finished(granted.ask())
    assert not granted.covers(_TERMINAL, _DEBIT)


@pytest.mark.parametrize(
    ("terminal", "debit", "covered"),
    [
        (_TERMINAL, _DEBIT, True),
        (_TERMINAL, replace(_DEBIT, date=date(2026, 11, 23)), True),  # the second tap is a transaction of its own
        (_OTHER_TERMINAL, _DEBIT, False),
        (replace(_TERMINAL, signature=b"x" * 64), _DEBIT, False),
        (_TERMINAL, replace(_DEBIT, amount=60_01), False),
        (_TERMINAL, replace(_DEBIT, amount=59_99), False),
        (_TERMINAL, replace(_DEBIT, currency=_USD), False),
    ],
)
def test_it_covers_exactly_this_terminal_amount_and_currency(
    granted: Consents, terminal: TerminalCertificate, debit: Debit, covered: bool
) -> None:
    assert granted.covers(terminal, debit) is covered


def test_it_is_good_once(granted: Consents) -> None:
    granted.use(_TERMINAL, _DEBIT)
    assert not granted.covers(_TERMINAL, _DEBIT)


def test_another_payment_does_not_use_it_up(granted: Consents) -> None:
    granted.use(_OTHER_TERMINAL, _DEBIT)
    granted.use(_TERMINAL, replace(_DEBIT, amount=1))
    assert granted.covers(_TERMINAL, _DEBIT)


@pytest.mark.parametrize(
    ("later", "covered"), [(0.0, True), (VALID_SECONDS, True), (VALID_SECONDS + 0.001, False), (3600.0, False)]
)
def test_it_is_good_for_a_minute(granted: Consents, clock: Clock, later: float, covered: bool) -> None:
    clock.now += later
    assert VALID_SECONDS == 60
    assert granted.covers(_TERMINAL, _DEBIT) is covered


def test_the_minute_begins_with_the_answer_not_with_the_question(clock: Clock) -> None:
    class Slow(Person):
        def ask(self, prompt: Shown) -> bool:
            clock.now += 50
            return super().ask(prompt)

    consents = Consents(Slow(), clock)
    consents.want(_TERMINAL, _DEBIT)
    assert finished(consents.ask())
    clock.now += 55
    assert consents.covers(_TERMINAL, _DEBIT)


def test_a_newer_payment_takes_the_place_of_one_that_waits(consents: Consents, person: Person) -> None:
    consents.want(_TERMINAL, _DEBIT)
    consents.want(_OTHER_TERMINAL, replace(_DEBIT, amount=70_00))
    assert finished(consents.ask())
    assert [one.text for one in person.shown] == ["Pay 70.00 EUR to Corner Bakery?"]
    assert not consents.covers(_TERMINAL, _DEBIT)


# --- the surfaces


def test_no_surface_agrees_to_nothing() -> None:
    assert not NoUi().confirm(PaymentPrompt("Bakery", "TERM0001", Amount.parse("60", "EUR")))


def test_a_script_answers_in_order_and_cancels_when_it_is_used_up(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("confirm\ncancel\nconfirm\n")
    ui = ScriptedUi(str(script))
    prompt = PaymentPrompt("Bakery", "TERM0001", Amount.parse("60", "EUR"))
    assert [ui.confirm(prompt) for _ in range(5)] == [True, False, True, False, False]
    assert (tmp_path / "script.shown").read_text() == "Pay 60.00 EUR to Bakery?\n" * 5
    assert (tmp_path / "script.shown").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("choice", ["pinentry-none", "pinentry", "scripted", "none", "scripted:/no/such/file"])
def test_a_surface_that_is_not_there_is_refused_in_a_sentence(choice: str) -> None:
    with pytest.raises(UsageError):
        open_ui(choice)


def test_a_script_with_another_word_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("confirm\n1234\n")
    with pytest.raises(UsageError, match=r"answer 2 in .* is none") as refused:
        open_ui(f"scripted:{script}")
    assert "1234" not in str(refused.value).replace("`type 1234`", "")


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"\xff\xfe"), lambda path: path.mkdir()])
def test_a_script_that_is_no_text_is_refused_in_a_sentence(tmp_path: Path, make: Callable[[Path], object]) -> None:
    script = tmp_path / "script"
    make(script)
    with pytest.raises(UsageError, match=r"cannot use .*script"):
        open_ui(f"scripted:{script}")


def test_a_wallet_with_a_surface_that_is_not_there_does_not_start(home: Home) -> None:
    with pytest.raises(TrustedWorldRefusedError, match="there is no trusted UI 'nothing'"):
        TeeSession(start_of(home.wallet, PhoneOptions(trusted_ui="nothing")))


# --- whole taps, with the real TEE


@pytest.mark.attack("V2")
def test_above_the_limit_the_phone_is_to_be_seen_and_nothing_is_deducted(shop: Callable[[str], Shop]) -> None:
    opened = shop("")
    before = opened.balance
    outcome = opened.charge("50.01")
    assert (outcome.kind, outcome.charged, outcome.receipt_verified) == (OutcomeKind.SEE_PHONE, False, True)
    assert opened.balance == before
    assert opened.charge("50.00").approved


def test_after_consent_the_second_tap_is_approved_once(shop: Callable[[str], Shop]) -> None:
    opened = shop("confirm")
    before = opened.balance
    assert opened.charge("60.00").kind is OutcomeKind.SEE_PHONE
    opened.wait_for_answers(1)
    assert opened.charge("60.00").approved
    assert opened.balance == before - 60_00
    assert opened.charge("60.00").kind is OutcomeKind.SEE_PHONE
    assert opened.balance == before - 60_00
    assert opened.shown[0] == "Pay 60.00 EUR to Corner Bakery?"


def test_after_a_refusal_the_second_tap_is_not_approved(shop: Callable[[str], Shop]) -> None:
    opened = shop("cancel")
    before = opened.balance
    opened.charge("60.00")
    opened.wait_for_answers(1)
    assert opened.charge("60.00").kind is OutcomeKind.SEE_PHONE
    assert opened.balance == before


@pytest.mark.attack("V4")
@pytest.mark.parametrize("other", ["60.01", "59.99", "120.00"])
def test_consent_to_one_amount_is_none_to_another(shop: Callable[[str], Shop], other: str) -> None:
    opened = shop("confirm\ncancel")
    before = opened.balance
    opened.charge("60.00")
    opened.wait_for_answers(1)
    assert opened.charge(other).kind is OutcomeKind.SEE_PHONE
    assert opened.balance == before


@pytest.mark.attack("V4")
def test_consent_for_one_terminal_is_none_for_another(shop: Callable[[str], Shop], home: Home, tmp_path: Path) -> None:
    opened = shop("confirm\nconfirm")
    before = opened.balance
    opened.charge("60.00")
    opened.wait_for_answers(1)
    folder = make_private(tmp_path / "pos")
    with IssuerLink(home.issuer_url) as issuer:
        own = identity.create(folder, "TERM0002", Merchant("Corner Bakery", 5462, _EUR), issuer)
    with Terminal(own, Journal(folder), TerminalOptions(timeout=1.0)) as other:
        outcome = other.charge(Amount.parse("60.00", "EUR"), opened.laboratory.link)
    assert outcome.kind is OutcomeKind.SEE_PHONE
    assert opened.balance == before


def test_a_torn_tap_does_not_use_consent_up(shop: Callable[[str], Shop]) -> None:
    opened = shop("confirm")
    opened.charge("60.00")
    opened.wait_for_answers(1)
    assert opened.laboratory.charge("60.00", fault="tear@frame:7").kind is OutcomeKind.TORN
    before = opened.balance
    assert opened.charge("60.00").approved
    assert opened.balance == before - 60_00


def test_too_little_money_and_too_much_for_the_ceiling_ask_nobody(shop: Callable[[str], Shop]) -> None:
    opened = shop("confirm\nconfirm")
    assert opened.charge("999.00").reason == "insufficient funds"
    assert opened.charge("1000.01").reason == "over limit"
    opened.laboratory.phone.tee.invoke_command(CommandId.ASK_CONSENT)
    assert opened.shown == []


# --- the client world can neither give consent nor draw the prompt


@pytest.mark.attack("I2")
def test_the_contract_has_no_command_that_gives_consent(home: Home) -> None:
    with closing(TeeSession(start_of(home.wallet, PhoneOptions()))) as session:
        for payload in (Consent(granted=True), WalletView(b"", 0, 0, 0, "", 0, 0, locked=False)):
            with pytest.raises(TeeError) as refused:
                session.invoke_command(CommandId.ASK_CONSENT, payload)
            assert refused.value.result is TeeResult.BAD_FORMAT
        assert Consent.decode(KeyLine().converse(session, CommandId.ASK_CONSENT)) == Consent(granted=False)
        for command in (CommandId.CHANGE_PIN, CommandId.CHOOSE_PHRASE):  # what is typed comes from the surface alone
            with pytest.raises(TeeError) as refused:
                session.invoke_command(command, ApplyRequest(_EUR, 1))
            assert refused.value.result is TeeResult.BAD_FORMAT
            assert not session.invoke(command, Agreed).done


@pytest.mark.requirement("A5")
def test_the_question_is_on_the_trusted_surface_only_and_both_show_the_payment(home: Home, tmp_path: Path) -> None:
    script = tmp_path / "script"
    write_privately(script, b"confirm\n")
    with processes.WalletProcess(home.path, home.link, "--trusted-ui", f"scripted:{script}") as wallet:
        report, _, _ = processes.charge(home.path, "60.00", "EUR", home.link)
        wallet.wait_for("consent", timeout=10)
        ordinary = list(wallet.events)
    trusted = (tmp_path / "script.shown").read_text()
    assert report["outcome"] == "see phone"
    assert trusted == "Pay 60.00 EUR to Corner Bakery?\n"
    shown = next(one for one in ordinary if one["step"] == "S9")
    assert (shown["amount"], shown["currency"], shown["merchant"]) == ("60.00", "EUR", "Corner Bakery")
    assert "?" not in json.dumps(ordinary)  # the ordinary UI tells, and asks nothing
    assert "user agreed: tap again within a minute" in [one["text"] for one in ordinary]


@pytest.mark.requirement("A5")
def test_the_answer_is_read_by_the_trusted_world_and_only_told_to_the_other(home: Home, tmp_path: Path) -> None:
    shop = Shop(home, tmp_path, "cancel")
    with closing(shop):
        shop.charge("60.00")
        shop.wait_for_answers(1)
    with closing(History(home.wallet)) as history:
        assert history.entries()[-1].what == "user did not agree"
