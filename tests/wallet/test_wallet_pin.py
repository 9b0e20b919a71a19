# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The PIN: typed on the trusted UI only, counted before it is compared, blocked after three, unblocked by the issuer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from console.home import Home
from issuer.register import Register
from pos.outcome import OutcomeKind
from protocol.errors import UsageError
from protocol.issuing import IssuerRefusedError, RefusalReason, Unblocking, decode_message
from protocol.secret import Secret
from protocol.transport.issuer import IssuerLink
from tests.wallet.shop import Shop
from wallet.account import Account
from wallet.tee import pin as pins_module
from wallet.tee.contract import NO_PIN, Agreed, CommandId, NewLimits, TeeError, TeeResult
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.pin import TRIES, Pins, derive
from wallet.tee.storage import SealedStorage
from wallet.tee.trusted_ui import Prompt, Shown

_PAYMENT = Prompt("Pay 60.00 EUR to Corner Bakery?")
_BLOCKED = "The PIN is blocked. Your issuer can unblock it."


class Fingers:
    """A trusted UI: what was shown, and what the user types; nothing any more when that is used up."""

    descriptors = ()

    def __init__(self) -> None:
        self.types: list[str] = []
        self.shown: list[str] = []

    def confirm(self, prompt: Shown) -> bool:
        raise AssertionError("a wallet with a PIN asks for it")

    def ask_pin(self, prompt: Shown, error: str) -> Secret | None:
        self.shown.append(f"{error}|{prompt.text}")
        return Secret(self.types.pop(0).encode()) if self.types else None

    def tell(self, text: str) -> None:
        self.shown.append(text)


@pytest.fixture
def fingers() -> Fingers:
    return Fingers()


def _storage(folder: Path) -> SealedStorage:
    return SealedStorage(folder, Secret(b"s" * 32), FreshnessCounter(folder, Secret(b"c" * 32)))


@pytest.fixture
def pins(fingers: Fingers, tmp_path: Path) -> Pins:
    return Pins(_storage(tmp_path), fingers)


@pytest.fixture
def with_pin(pins: Pins, fingers: Fingers) -> Pins:
    fingers.types += ["2468", "2468"]
    assert pins.change()
    fingers.shown.clear()
    return pins


def _left(pins: Pins) -> int:
    stored = pins.stored
    assert stored is not None
    return stored.tries


# --- setting it


def test_a_pin_is_typed_twice(pins: Pins, fingers: Fingers) -> None:
    fingers.types += ["2468", "2468"]
    assert pins.stored is None
    assert pins.change()
    assert _left(pins) == TRIES
    assert fingers.shown == ["|Your new PIN, 4 to 12 digits:", "|The new PIN once more:"]


@pytest.mark.parametrize("typed", [[], ["2468"]])
def test_setting_it_can_be_cancelled(pins: Pins, fingers: Fingers, typed: list[str]) -> None:
    fingers.types += typed
    assert not pins.change()
    assert not pins.is_set


def test_two_different_ones_are_asked_for_again(pins: Pins, fingers: Fingers) -> None:
    fingers.types += ["2468", "2469", "1357", "1357"]
    assert pins.change()
    assert fingers.shown[2] == "These were two different PINs|Your new PIN, 4 to 12 digits:"
    fingers.types += ["1357"]
    assert pins.enter(_PAYMENT)


@pytest.mark.parametrize("bad", ["", "246", "1234567890123", "24a8", "２４６８"])
def test_a_pin_has_4_to_12_digits(pins: Pins, fingers: Fingers, bad: str) -> None:
    fingers.types += [bad]
    assert not pins.change()
    assert fingers.shown[-1] == "A PIN has 4 to 12 digits|Your new PIN, 4 to 12 digits:"


@pytest.mark.parametrize("good", ["0000", "123456789012"])
def test_the_shortest_and_the_longest_are_good(pins: Pins, fingers: Fingers, good: str) -> None:
    fingers.types += [good, good, good]
    assert pins.change()
    assert pins.enter(_PAYMENT)


def test_changing_it_takes_the_old_one(with_pin: Pins, fingers: Fingers) -> None:
    fingers.types += ["9999"]
    assert not with_pin.change()  # a wrong one, then nothing
    fingers.types += ["2468", "1357", "1357"]
    assert with_pin.change()
    fingers.types += ["1357"]
    assert with_pin.enter(_PAYMENT)


# --- three tries


def test_a_wrong_pin_says_how_many_tries_are_left_and_the_right_one_gives_them_back(
    with_pin: Pins, fingers: Fingers
) -> None:
    fingers.types += ["1111", "2222", "2468"]
    assert with_pin.enter(_PAYMENT)
    assert fingers.shown == [
        f"|{_PAYMENT.text}",
        f"Wrong PIN, 2 tries left|{_PAYMENT.text}",
        f"Wrong PIN, 1 try left|{_PAYMENT.text}",
    ]
    assert _left(with_pin) == TRIES


def test_the_third_wrong_one_blocks_it_and_the_right_one_no_longer_helps(with_pin: Pins, fingers: Fingers) -> None:
    fingers.types += ["1111", "2222", "3333", "2468"]
    assert not with_pin.enter(_PAYMENT)
    assert with_pin.is_blocked
    assert fingers.types == ["2468"]  # it was not even asked for
    assert fingers.shown[-1] == _BLOCKED
    fingers.shown.clear()
    assert not with_pin.enter(_PAYMENT)
    assert not with_pin.change()
    assert fingers.shown == [_BLOCKED, _BLOCKED]


def test_cancelling_costs_no_try(with_pin: Pins) -> None:
    for _ in range(5):
        assert not with_pin.enter(_PAYMENT)
    assert _left(with_pin) == TRIES


@pytest.mark.attack("V3")
def test_a_try_is_on_disk_before_it_is_compared(
    with_pin: Pins, fingers: Fingers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever pulls the battery when a wrong PIN is found wrong has used up a try all the same."""

    def dies(_: bytes, __: bytes) -> Secret:
        raise KeyboardInterrupt

    monkeypatch.setattr(pins_module, "derive", dies)
    for left in (2, 1, 0):
        fingers.types = ["2468"]
        with pytest.raises(KeyboardInterrupt):
            Pins(_storage(tmp_path), fingers).enter(_PAYMENT)
        assert _left(Pins(_storage(tmp_path), fingers)) == left
    fingers.types = ["2468"]
    assert not Pins(_storage(tmp_path), fingers).enter(_PAYMENT)


def test_what_is_kept_is_a_salted_verifier(with_pin: Pins, fingers: Fingers, tmp_path: Path) -> None:
    stored = with_pin.stored
    assert stored is not None
    assert bytes(derive(b"2468", stored.salt)) == bytes(stored.verifier)
    assert bytes(derive(b"2469", stored.salt)) != bytes(stored.verifier)
    assert bytes(stored.verifier) not in repr(stored).encode("latin-1")
    assert stored.verifier.hex() not in repr(stored)
    fingers.types += ["2468", "2468", "2468"]
    assert with_pin.change()
    again = with_pin.stored
    assert again is not None
    assert (again.salt, again.verifier) != (stored.salt, stored.verifier)


# --- with the real trusted world, and an issuer


@dataclass
class Pinned:
    """A home for tests of one wallet whose PIN is 2468 and has all its tries."""

    shop: Callable[..., Shop]

    def open(self, *answers: str, one_tap: bool = False) -> Shop:
        """Open a shop whose user answers so."""
        return self.shop("\n".join(answers), one_tap=one_tap)


@pytest.fixture
def pinned(shop: Callable[..., Shop], home: Home) -> Pinned:
    """A PIN of 2468: set when it is the first test, unblocked when an earlier one used it up."""
    opened = shop("type 2468\ntype 2468")
    if opened.laboratory.phone.view().pin_tries == NO_PIN:
        assert opened.laboratory.phone.tee.invoke(CommandId.CHANGE_PIN, Agreed).done
    else:
        _allow(home, opened)
        with IssuerLink(home.issuer_url) as issuer:
            Account(opened.laboratory.phone.tee, issuer).unblock_pin()
    assert opened.laboratory.phone.view().pin_tries == TRIES
    return Pinned(shop)


def _allow(home: Home, opened: Shop) -> None:
    with closing(Register(home.issuer)) as register:
        register.allow_unblocking(opened.laboratory.phone.view().device.hex())


def _tries(opened: Shop) -> int:
    return opened.laboratory.phone.view().pin_tries


@pytest.mark.requirement("A5")
def test_a_pin_payment_by_a_second_tap(pinned: Pinned) -> None:
    opened = pinned.open("type 1111", "type 2468")
    before = opened.balance
    assert opened.charge("60.00").kind is OutcomeKind.SEE_PHONE
    opened.wait_for_answers(2)
    assert opened.charge("60.00").approved
    assert opened.charge("60.00").kind is OutcomeKind.SEE_PHONE
    assert opened.balance == before - 60_00
    assert opened.shown[:2] == [_PAYMENT.text, f"Wrong PIN, 2 tries left: {_PAYMENT.text}"]
    assert _tries(opened) == TRIES


@pytest.mark.requirement("A5")
def test_a_pin_payment_in_one_tap(pinned: Pinned) -> None:
    opened = pinned.open("type 1111", "type 2468", one_tap=True)
    before = opened.balance
    assert opened.charge("60.00").approved
    assert opened.balance == before - 60_00
    assert opened.shown == [_PAYMENT.text, f"Wrong PIN, 2 tries left: {_PAYMENT.text}"]


@pytest.mark.parametrize("one_tap", [False, True], ids=["two taps", "one tap"])
@pytest.mark.parametrize(
    "answers", [("cancel",), ("confirm",), ("type 9999", "cancel"), ("type 1", "type 2", "type 3")]
)
def test_without_the_right_pin_nothing_is_paid(pinned: Pinned, answers: tuple[str, ...], *, one_tap: bool) -> None:
    opened = pinned.open(*answers, one_tap=one_tap)
    before = opened.balance
    assert opened.charge("60.00").kind is OutcomeKind.SEE_PHONE
    blocked = len(answers) == TRIES
    opened.wait_for_answers((1 if "confirm" in answers else len(answers)) + blocked)
    assert opened.charge("60.00").kind is OutcomeKind.SEE_PHONE
    assert opened.balance == before
    assert _tries(opened) == TRIES - sum(one.startswith("type") for one in answers)


def test_a_blocked_pin_pays_nothing_large_and_small_payments_go_on(pinned: Pinned) -> None:
    opened = pinned.open("type 1", "type 2", "type 3", "type 2468")
    opened.charge("60.00")
    opened.wait_for_answers(4)
    assert opened.shown[3] == _BLOCKED
    assert opened.charge("60.00").kind is OutcomeKind.SEE_PHONE
    opened.wait_for_answers(5)
    assert opened.shown[4] == _BLOCKED
    assert opened.charge("1.00").approved
    again = pinned.open("type 2468")  # a new process has not forgotten
    assert _tries(again) == 0
    again.charge("60.00")
    again.wait_for_answers(1)
    assert again.shown == [_BLOCKED]


@pytest.mark.attack("V3")
def test_a_terminal_burns_no_tries(pinned: Pinned) -> None:
    opened = pinned.open()
    for count in range(1, 8):
        assert opened.charge("60.00").kind is OutcomeKind.SEE_PHONE
        opened.wait_for_answers(count)
    assert _tries(opened) == TRIES


def test_the_issuer_unblocks_once_for_each_time_it_was_allowed(pinned: Pinned, home: Home) -> None:
    opened = pinned.open("type 1", "type 2", "type 3", "type 1")
    opened.charge("60.00")
    opened.wait_for_answers(4)
    tee = opened.laboratory.phone.tee
    with IssuerLink(home.issuer_url) as issuer:
        account = Account(tee, issuer)
        with pytest.raises(IssuerRefusedError) as refused:
            account.unblock_pin()
        assert refused.value.reason is RefusalReason.NOT_ALLOWED
        assert _tries(opened) == 0
        _allow(home, opened)
        assert account.unblock_pin().pin_tries == TRIES
        opened.charge("60.00")
        opened.wait_for_answers(6)
        with pytest.raises(IssuerRefusedError):
            account.unblock_pin()
    assert _tries(opened) == TRIES - 1


def test_an_unblocking_is_good_once_and_for_its_request_only(pinned: Pinned, home: Home) -> None:
    opened = pinned.open("type 1", "type 1")
    tee = opened.laboratory.phone.tee
    _allow(home, opened)
    with IssuerLink(home.issuer_url) as issuer:
        answer = decode_message(issuer.exchange(tee.invoke_command(CommandId.REQUEST_UNBLOCK)))
    assert isinstance(answer, Unblocking)
    forged = replace(answer, signature=bytes(64))
    for other in (forged, replace(answer, challenge=bytes(16)), replace(answer, device=bytes(8))):
        tee.invoke_command(CommandId.REQUEST_UNBLOCK)  # what was refused has used its request up
        with pytest.raises(TeeError) as refused:
            tee.invoke_command(CommandId.UNBLOCK, other)
        assert refused.value.result is TeeResult.SECURITY
    with pytest.raises(TeeError) as refused:
        tee.invoke_command(CommandId.UNBLOCK, answer)
    assert refused.value.result is TeeResult.ACCESS_DENIED


def test_an_operator_names_a_wallet_that_exists(home: Home) -> None:
    with closing(Register(home.issuer)) as register:
        for name in ("0011223344556677", "no hex"):
            with pytest.raises(UsageError, match="`tap-issuer show` lists them"):
                register.allow_unblocking(name)


# --- phrase and limits


def test_every_question_begins_with_the_phrase_once_there_is_one(pinned: Pinned) -> None:
    opened = pinned.open("type 2468", "type   blue heron ", "type 2468", "cancel")
    tee = opened.laboratory.phone.tee
    assert tee.invoke(CommandId.CHOOSE_PHRASE, Agreed).done
    opened.charge("60.00")
    opened.wait_for_answers(3)
    assert opened.shown[1] == "Choose a phrase that every question of your wallet will begin with:"
    assert opened.shown[2] == f"[blue heron] {_PAYMENT.text}"
    again = pinned.open("type 2468", "type abc", "type no\tway at all", "type " + "x" * 41, "type 1234")
    assert again.laboratory.phone.tee.invoke(CommandId.CHOOSE_PHRASE, Agreed).done
    assert again.shown[2].startswith("A phrase has 4 to 40 printable characters: [blue heron] ")
    assert len(again.shown) == 5


def test_choosing_a_phrase_takes_the_pin(pinned: Pinned) -> None:
    opened = pinned.open("type 1111", "cancel", "type new phrase")
    assert not opened.laboratory.phone.tee.invoke(CommandId.CHOOSE_PHRASE, Agreed).done
    assert len(opened.shown) == 2


def test_limits_are_set_with_the_pin_and_shown_as_money(pinned: Pinned) -> None:
    opened = pinned.open("cancel", "type 2468", "type 2468", "type 2468", "type 2468")
    tee = opened.laboratory.phone.tee

    def change(wanted: NewLimits) -> bool:
        return Agreed.decode(tee.invoke_command(CommandId.CHANGE_LIMITS, wanted)).done

    assert not change(NewLimits(80_00, 0, 0))
    assert opened.laboratory.phone.view().no_pin_limit == 50_00
    assert change(NewLimits(20_00, 30_00, 3))
    view = opened.laboratory.phone.view()
    assert (view.no_pin_limit, view.sum_limit, view.count_limit) == (20_00, 30_00, 3)
    assert "20.00 EUR" in opened.shown[1]
    assert "30.00 EUR" in opened.shown[1]
    assert change(NewLimits(50_00, 0, 0))


def test_a_sum_since_the_last_consent_asks_and_begins_anew(pinned: Pinned) -> None:
    opened = pinned.open("type 2468", "type 2468", "type 2468")
    tee = opened.laboratory.phone.tee
    assert Agreed.decode(tee.invoke_command(CommandId.CHANGE_LIMITS, NewLimits(20_00, 30_00, 0))).done
    opened.laboratory.charge("20.00")
    counted = opened.charge("15.00")
    assert counted.kind is OutcomeKind.SEE_PHONE  # 20 + 15 is more than 30
    opened.wait_for_answers(2)
    assert opened.charge("15.00").approved
    assert opened.charge("15.00").approved  # counting began anew with the consent
    assert opened.charge("15.00").approved
    assert opened.charge("0.01").kind is OutcomeKind.SEE_PHONE
    opened.wait_for_answers(3)
    assert not Agreed.decode(tee.invoke_command(CommandId.CHANGE_LIMITS, NewLimits(50_00, 0, 0))).done
    reset = pinned.open("type 2468")
    invoke = reset.laboratory.phone.tee.invoke_command
    assert Agreed.decode(invoke(CommandId.CHANGE_LIMITS, NewLimits(50_00, 0, 0))).done
