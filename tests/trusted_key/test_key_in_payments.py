# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Payments that need the Key: agreed to on its screen, signed by it too, and nothing is paid when anything is missing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from console.home import Home, make_private
from issuer.register import Register
from lab.fixtures import Setup, set_up
from pos import identity
from pos.journal import Journal, State
from pos.outcome import OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol.certificate import CredentialCertificate, Merchant
from protocol.messages import Receipt
from protocol.money import Amount
from protocol.settlement import Verdict
from protocol.transport.base import CardHandler
from protocol.transport.issuer import IssuerLink
from tests.trusted_key.till import Till
from wallet.tee.contract import CommandId, KeyAnswer, TeeError, TeeResult
from wallet.trusted_key.key import TrustedKey

_QUESTION = "Pay 250.00 EUR to Corner Bakery?"


class Clock:
    """The Key's seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture(scope="module")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = Home(tmp_path_factory.mktemp("made") / "home")
    home.path.mkdir()
    set_up(home, Setup(balance="900.00", cards=20))
    return home.path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def till(made_home: Path, tmp_path: Path, clock: Clock) -> Iterator[Till]:
    """A wallet that is paired, and needs its Key above 100.00 EUR."""
    home = Home(shutil.copytree(made_home, tmp_path / "home"))
    with Till(home, tmp_path, "confirm", "confirm", "cancel", clock=clock) as opened:
        assert opened.pair()
        opened.need_key_above(100_00)
        opened.wait_for_idle()
        yield opened


# --- pairing


@pytest.mark.requirement("K1")
def test_both_sides_show_the_same_code(till: Till) -> None:
    assert till.view.key
    assert till.view.key_cards_left == 4
    code = till.shown[0].removeprefix("Pair with the Key that shows ").removesuffix("?")
    assert len(code.replace(" ", "")) == 12


@pytest.mark.requirement("K1")
@pytest.mark.parametrize(("answer", "button"), [("cancel", ""), ("confirm", "cancel")])
def test_a_no_on_either_side_pairs_nothing(made_home: Path, tmp_path: Path, answer: str, button: str) -> None:
    home = Home(shutil.copytree(made_home, tmp_path / "home"))
    with Till(home, tmp_path, answer) as opened:
        assert not opened.pair(button)
        assert opened.view.key == b""


# --- paying


@pytest.mark.requirement("K4")
def test_a_payment_is_agreed_to_on_the_key_and_signed_by_it(till: Till) -> None:
    before = till.laboratory.balance.minor
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    till.agree()
    outcome = till.charge("250.00")
    assert outcome.approved
    assert till.laboratory.balance.minor == before - 250_00
    record = till.laboratory.terminal.journal.records()[-1]
    certificate = CredentialCertificate.decode(record.credential)
    assert certificate.co_signing_key
    assert len(record.signature) == 128
    assert Receipt.decode(record.receipt).is_shown_by(record.signature, certificate)
    assert not Receipt.decode(record.receipt).is_shown_by(record.signature[:64], certificate)
    assert till.shown[1:] == ["Let payments through without asking: 50.00 EUR each, with the Key above 100.00 EUR?"]


@pytest.mark.requirement("K4")
def test_the_issuer_pays_what_the_key_signed_and_only_that(till: Till) -> None:
    till.charge("250.00")
    till.agree()
    assert till.charge("250.00").approved
    with IssuerLink(till.laboratory.home.issuer_url) as issuer:
        settled = till.laboratory.terminal.settle(issuer)
    assert settled.verdicts == {Verdict.PAID: 1}
    with closing(Register(till.laboratory.home.issuer)) as register:
        assert [one.paid.minor for one in register.terminals()] == [250_00]


@pytest.mark.requirement("K4")
def test_who_taps_again_before_answering_is_asked_once_and_pays(till: Till) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.wait_for_question(_QUESTION)
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    till.agree()
    assert till.laboratory.phone.rest(10.0)
    assert _QUESTION not in " ".join(till.key.screen.lines)
    assert till.charge("250.00").approved
    assert till.laboratory.balance.minor == before - 250_00


@pytest.mark.attack("V4")
def test_a_question_about_another_payment_holds_no_tap_up_and_nothing_is_deducted_later(till: Till) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.agree()
    assert till.charge("250.01").kind is OutcomeKind.SEE_PHONE
    till.wait_for_question("Pay 250.01 EUR")
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    till.key.press("ok")
    till.wait_for_answer()
    assert till.laboratory.balance.minor == before


@pytest.mark.requirement("K4")
def test_one_press_is_one_payment(till: Till) -> None:
    till.charge("250.00")
    till.agree()
    assert till.charge("250.00").approved
    before = till.laboratory.balance.minor
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


@pytest.mark.requirement("K4")
def test_what_is_not_so_large_needs_no_key(till: Till) -> None:
    till.lay(None)
    before = till.laboratory.balance.minor
    assert till.charge("50.00").approved
    record = till.laboratory.terminal.journal.records()[-1]
    assert (len(record.signature), CredentialCertificate.decode(record.credential).co_signing_key) == (64, b"")
    assert till.laboratory.balance.minor == before - 50_00


@pytest.mark.attack("V2")
def test_without_the_key_nothing_is_asked_and_nothing_is_paid(till: Till) -> None:
    till.lay(None)
    before = till.laboratory.balance.minor
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    till.wait_for_answer()
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


@pytest.mark.attack("V2")
def test_cancelled_on_the_key_nothing_is_paid(till: Till) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.agree(button="cancel")
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


@pytest.mark.attack("V2")
def test_a_question_that_nobody_answers_ends_and_nothing_is_paid(till: Till, clock: Clock) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.wait_for_question(_QUESTION)
    clock.ahead += 61
    till.wait_for_answer()
    assert till.key.press("ok") != "confirmed"
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


@pytest.mark.attack("V4")
@pytest.mark.parametrize("other", ["250.01", "249.99"])
def test_agreed_to_one_amount_another_is_not_paid(till: Till, other: str) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.agree()
    assert till.charge(other).kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


@pytest.mark.attack("V4")
def test_agreed_to_pay_one_terminal_another_is_not_paid(till: Till, tmp_path: Path) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.agree()
    folder = make_private(tmp_path / "pos")
    with IssuerLink(till.laboratory.home.issuer_url) as issuer:
        own = identity.create(folder, "TERM0002", Merchant("Corner Bakery", 5462, 978), issuer)
    with Terminal(own, Journal(folder), TerminalOptions(timeout=1.0)) as other:
        outcome = other.charge(Amount.parse("250.00", "EUR"), till.laboratory.link)
    assert outcome.kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


@pytest.mark.attack("V4")
def test_a_minute_later_the_key_no_longer_signs(till: Till, clock: Clock) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.agree()
    clock.ahead += 61
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


@pytest.mark.attack("V4")
def test_another_key_between_consent_and_signature_signs_nothing(till: Till, tmp_path: Path) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.agree()
    with TrustedKey(tmp_path / "other") as other:
        till.lay(other.card)
        assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
        till.wait_for_answer()
        till.lay(None)
    assert till.laboratory.balance.minor == before
    till.lay(till.key.card)
    till.charge("250.00")
    till.agree()
    assert till.charge("250.00").approved


@pytest.mark.attack("V4")
def test_the_key_gone_between_consent_and_signature_leaves_the_purse_alone(till: Till) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.agree()
    till.lay(None)
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


class Liar:
    """Hands everything to a Key, and changes its answers to some commands or takes itself away."""

    def __init__(self, card: CardHandler, change: Callable[[int, bytes], bytes]) -> None:
        self._card = card
        self._change = change
        self.count = 0

    def activate(self) -> None:
        self._card.activate()

    def deactivate(self) -> None:
        self._card.deactivate()

    def process(self, apdu: bytes) -> bytes:
        self.count += 1
        return self._change(self.count, self._card.process(apdu))


def _flipped(_: int, answer: bytes) -> bytes:
    return answer[:1] + bytes([answer[0] ^ 1]) + answer[2:] if len(answer) > 40 else answer


@pytest.mark.attack("V4")
@pytest.mark.parametrize(
    "change",
    [_flipped, lambda _, answer: answer[-2:], lambda _, __: bytes.fromhex("6982"), lambda _, __: b"\x90\x00"],
    ids=["changed", "cut", "refused", "empty"],
)
def test_a_key_that_answers_wrong_pays_nothing(till: Till, change: Callable[[int, bytes], bytes]) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.agree()
    till.wait_for_idle()
    till.lay(Liar(till.key.card, change))
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


@pytest.mark.attack("T2")
def test_a_tap_that_is_torn_after_the_signature_is_settled_by_the_next_one(till: Till) -> None:
    before = till.laboratory.balance.minor
    till.charge("250.00")
    till.agree()
    torn = till.laboratory.charge("250.00", fault="tear@frame:8")
    assert torn.kind is OutcomeKind.TORN
    assert till.charge("1.00").approved
    states = [one.state for one in till.laboratory.terminal.journal.records()]
    assert states[-2:] == [State.APPROVED, State.APPROVED]
    assert till.laboratory.balance.minor == before - 251_00
    record = till.laboratory.terminal.journal.records()[-2]
    assert len(record.signature) == 128


@pytest.mark.attack("I2")
@pytest.mark.parametrize("answer", [b"", b"\x90\x00", bytes(40) + b"\x90\x00"])
def test_the_client_world_cannot_answer_in_the_keys_place(till: Till, answer: bytes) -> None:
    """It carries the bytes of the channel; whatever it makes of them, nobody has agreed."""
    before = till.laboratory.balance.minor
    till.lay(Liar(till.key.card, lambda count, real: real if count < 3 else answer))
    till.charge("250.00")
    till.wait_for_answer()
    till.lay(till.key.card)
    assert till.charge("250.00").kind is OutcomeKind.SEE_PHONE
    assert till.laboratory.balance.minor == before


def test_an_answer_to_nothing_is_refused(till: Till) -> None:
    with pytest.raises(TeeError) as refused:
        till.laboratory.phone.tee.invoke_command(CommandId.KEY_ANSWER, KeyAnswer(99, b"\x90\x00"))
    assert refused.value.result is TeeResult.BAD_STATE


# --- what the user begins


@pytest.mark.requirement("K4")
def test_lock_and_ready_to_pay_are_begun_on_the_key(till: Till) -> None:
    def choose(line: str) -> None:
        till.key.press("up")
        while f"> {line}" not in " ".join(till.key.screen.lines):
            till.key.press("down")
        assert till.key.press("ok") == "queued"

    choose("Lock")
    till._wait(lambda: till.view.held, "the wallet was not locked")
    assert till.charge("1.00").reason == "this wallet is locked; see the phone"
    choose("Ready to pay")
    till._wait(lambda: not till.view.held, "the wallet stayed locked")
    assert till.charge("1.00").approved
    first = till.view.masked_number
    choose("Next card")
    till._wait(lambda: till.view.masked_number != first, "the next card did not come")
    assert till.charge("1.00").approved


# --- the counter


@pytest.mark.requirement("K2")
@pytest.mark.attack("F5")
def test_storage_and_freshness_put_back_together_are_found_out_by_the_key(
    made_home: Path, tmp_path: Path, clock: Clock
) -> None:
    home = Home(shutil.copytree(made_home, tmp_path / "home"))
    with Till(home, tmp_path, "confirm", "confirm", clock=clock) as opened:
        assert opened.pair()
        opened.need_key_above(100_00)
        opened.wait_for_idle()
        opened.laboratory.phone.close()
        shutil.copytree(home.wallet, tmp_path / "copy")
    shutil.rmtree(tmp_path / "home" / "wallet")
    shutil.copytree(tmp_path / "copy", home.wallet)
    with Till(home, tmp_path, clock=clock) as opened:
        opened.charge("250.00")
        opened.agree()
        assert opened.charge("250.00").approved
    shutil.rmtree(home.wallet)
    shutil.copytree(tmp_path / "copy", home.wallet)
    with Till(home, tmp_path, clock=clock) as opened:
        assert _is_locked(opened) is False  # storage and counter agree with each other
        opened.charge("250.00")
        opened.wait_for_answer()
        assert _is_locked(opened) is True
        assert opened.charge("1.00").kind is OutcomeKind.DECLINED


def _is_locked(opened: Till) -> bool:
    return opened.view.locked


@pytest.mark.requirement("K2")
@pytest.mark.attack("F5")
def test_pairing_again_does_not_hide_that_storage_was_put_back(made_home: Path, tmp_path: Path, clock: Clock) -> None:
    home = Home(shutil.copytree(made_home, tmp_path / "home"))
    with Till(home, tmp_path, "confirm", "confirm", clock=clock) as opened:
        assert opened.pair()
        opened.need_key_above(100_00)
        opened.wait_for_idle()
    shutil.copytree(home.wallet, tmp_path / "copy")
    with Till(home, tmp_path, clock=clock) as opened:
        opened.charge("250.00")
        opened.agree()
    shutil.rmtree(home.wallet)
    shutil.copytree(tmp_path / "copy", home.wallet)
    with Till(home, tmp_path, "confirm", "confirm", clock=clock) as opened:
        assert _is_locked(opened) is False
        with pytest.raises(TeeError, match="it was put back"):
            opened.pair()
        assert _is_locked(opened) is True


@pytest.mark.requirement("K1")
def test_another_key_takes_the_place_of_the_first_and_its_cards_are_forgotten(
    made_home: Path, tmp_path: Path, clock: Clock
) -> None:
    home = Home(shutil.copytree(made_home, tmp_path / "home"))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with Till(home, tmp_path / "one", "confirm", "confirm", clock=clock) as opened:
        assert opened.pair()
        opened.need_key_above(100_00)
    with Till(home, tmp_path / "other", "confirm", clock=clock) as opened:
        assert opened.pair()
        assert opened.view.key_cards_left == 4
        opened.charge("250.00")
        opened.agree()
        assert opened.charge("250.00").approved
