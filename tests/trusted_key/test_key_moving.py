# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A purse moves to the Key and into another wallet, torn at every command: it is never in two places, and never lost."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import wallet.phone
from console.home import Home, make_private
from lab.fixtures import Setup, set_up
from pos.outcome import OutcomeKind
from protocol.errors import TapLabError, UsageError
from protocol.money import Amount
from protocol.transport.base import CardHandler
from protocol.transport.issuer import IssuerLink
from tests.trusted_key.till import Till
from wallet.account import Account
from wallet.phone import DEVICE_FOLDER, STORAGE_FOLDER
from wallet.tee.contract import Agreed, ApplyRequest, CommandId, TeeError
from wallet.trusted_key.flash import Changes, Flash, FlashFailedError
from wallet.trusted_key.key import TrustedKey

_YES = ("confirm",) * 60


class Cut:
    """A Key that is taken away after so many commands."""

    def __init__(self, card: CardHandler, after: int) -> None:
        self._card = card
        self._left = after

    def activate(self) -> None:
        self._card.activate()

    def deactivate(self) -> None:
        self._card.deactivate()

    def process(self, apdu: bytes) -> bytes:
        self._left -= 1
        answer = self._card.process(apdu) if self._left >= 0 else b""
        return answer if self._left > 0 else b"\x6f\x00"  # the last one is done, and its answer is lost


class Two:
    """Two wallets and the Key that both are paired with; the first has the money."""

    def __init__(self, folder: Path) -> None:
        self.key = TrustedKey(folder / "key")
        self.first, self.second = (self._till(folder, name) for name in ("first", "second"))

    def _till(self, folder: Path, name: str) -> Till:
        surface = folder / f"{name} surface"
        surface.mkdir(exist_ok=True)
        till = Till(Home(folder / name), surface, *_YES, key=self.key)
        till.lay(None)
        return till

    def pair(self) -> None:
        for till in (self.first, self.second):
            till.lay(self.key.card)
            assert till.pair()
            till.lay(None)

    def move(self, till: Till, command: CommandId, after: int | None = None) -> bool:
        """Move, with the Key gone after so many commands; return whether it was done."""
        till.lay(self.key.card if after is None else Cut(self.key.card, after))
        try:
            return Agreed.decode(till.laboratory.phone.key.converse(till.laboratory.phone.tee, command)).done
        except TapLabError:
            return False
        finally:
            till.lay(None)

    def usable(self) -> list[int]:
        """Return what each wallet could pay with now: the balance, 0 while it is on its way."""
        found = []
        for till in (self.first, self.second):
            outcome = till.charge("0.01") if till.view.balance else None
            found.append(till.view.balance if outcome is not None and outcome.approved else 0)
        return found

    def close(self) -> None:
        for till in (self.first, self.second):
            till.close()
        self.key.close()


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both wallets paired with the Key, of one issuer, and one of them with money; only to be copied."""
    folder = tmp_path_factory.mktemp("paired") / "parties"
    home, other = Home(folder / "first"), Home(folder / "second")
    home.path.mkdir(parents=True)
    set_up(home, Setup(balance="100.00", cards=6))
    shutil.copytree(home.path, other.path, ignore=shutil.ignore_patterns("wallet"))
    for path in (other.wallet, other.wallet / DEVICE_FOLDER, other.wallet / STORAGE_FOLDER):
        make_private(path)
    both = Two(folder)
    both.pair()
    both.close()
    return folder


@pytest.fixture
def two(paired: Path, tmp_path: Path) -> Iterator[Two]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wallet.phone, "KEY_LOOK_SECONDS", 3600.0)  # nothing is said to the Key but what the test says
        made = Two(shutil.copytree(paired, tmp_path / "parties"))
        yield made
        made.close()


@pytest.mark.requirement("K2")
def test_a_purse_moves_to_the_key_and_into_another_wallet(two: Two) -> None:
    assert two.usable() == [99_99, 0]
    assert two.move(two.first, CommandId.MOVE_OUT)
    assert two.usable() == [0, 0]
    assert two.first.charge("1.00").kind is not OutcomeKind.APPROVED
    assert two.move(two.second, CommandId.MOVE_IN)
    assert two.usable() == [0, 99_98]
    assert not two.move(two.first, CommandId.MOVE_IN)  # there is nothing more at the Key
    assert two.second.charge("10.00").approved
    with IssuerLink(two.second.laboratory.home.issuer_url) as issuer:
        assert Account(two.second.laboratory.phone.tee, issuer).sync().view.balance == 89_98


@pytest.mark.requirement("K2")
def test_it_moves_back_too(two: Two) -> None:
    assert two.move(two.first, CommandId.MOVE_OUT)
    assert two.move(two.first, CommandId.MOVE_IN)
    assert two.usable() == [99_99, 0]


@pytest.mark.requirement("K2")
@pytest.mark.attack("T4")
@pytest.mark.parametrize("after", range(1, 14))
def test_torn_on_the_way_out_it_is_here_or_there_and_never_both(two: Two, after: int) -> None:
    done = two.move(two.first, CommandId.MOVE_OUT, after)
    before = two.usable()
    assert before in ([99_99, 0], [0, 0])
    taken = two.move(two.second, CommandId.MOVE_IN)
    after_that = two.usable()
    assert sum(one > 0 for one in after_that) <= 1
    if taken:
        assert after_that[0] == 0
        assert two.move(two.first, CommandId.MOVE_IN) is False or two.first.view.balance == 0
    elif not done:
        two.move(two.first, CommandId.MOVE_IN)  # ends it
    assert sum(one > 0 for one in two.usable()) == 1


@pytest.mark.requirement("K2")
@pytest.mark.attack("T4")
@pytest.mark.parametrize("after", range(1, 16))
def test_torn_on_the_way_in_the_same_command_goes_on(two: Two, after: int) -> None:
    assert two.move(two.first, CommandId.MOVE_OUT)
    two.move(two.second, CommandId.MOVE_IN, after)
    assert two.usable()[0] == 0
    two.move(two.first, CommandId.MOVE_IN)  # another wallet gets it only if nobody has claimed it
    two.move(two.second, CommandId.MOVE_IN)
    assert sorted(bool(one) for one in two.usable()) == [False, True]


class NotThere:
    """A link that answers some commands in the Key's place: there is no such thing. The Key hears them, if `heard`."""

    def __init__(self, card: CardHandler, at: int, *, heard: bool = True) -> None:
        self._card = card
        self._at = at
        self._heard = heard
        self._count = 0

    def activate(self) -> None:
        self._card.activate()

    def deactivate(self) -> None:
        self._card.deactivate()

    def process(self, apdu: bytes) -> bytes:
        self._count += 1
        lies = self._count == self._at
        answer = self._card.process(apdu) if self._heard or not lies else b""
        return b"\x6a\x88" if lies else answer


@pytest.mark.requirement("K2")
@pytest.mark.attack("I2")
def test_a_lie_about_what_the_key_holds_makes_no_second_purse(two: Two) -> None:
    assert not two.move(two.first, CommandId.MOVE_OUT, 10)  # it came to the Key, and the answer was lost
    assert two.first.view.balance == 100_00
    for at in range(5, 14):
        two.first.lay(NotThere(two.key.card, at))
        phone = two.first.laboratory.phone
        with contextlib.suppress(TapLabError):
            phone.key.converse(phone.tee, CommandId.MOVE_IN)
        two.first.lay(None)
        assert two.usable() == [0, 0]
        if not two.first.view.balance:
            break  # it knows now that the Key has it
    assert at > 8
    assert two.move(two.second, CommandId.MOVE_IN)
    assert two.usable()[0] == 0


@pytest.mark.requirement("K2")
@pytest.mark.attack("I2")
@pytest.mark.parametrize("heard", [True, False])
def test_a_taker_whose_ticket_stays_behind_makes_no_second_purse(two: Two, *, heard: bool) -> None:
    """Both users lie: the first says that its purse never came, the second lets the ticket lie while it takes the purse."""
    assert not two.move(two.first, CommandId.MOVE_OUT, 10)  # it came to the Key, and the answer was lost
    for at in range(5, 14):
        two.second.lay(NotThere(two.key.card, at, heard=heard))
        phone = two.second.laboratory.phone
        with contextlib.suppress(TapLabError):
            phone.key.converse(phone.tee, CommandId.MOVE_IN)
        two.second.lay(None)
        two.move(two.first, CommandId.MOVE_IN)
        assert sum(one > 0 for one in two.usable()) <= 1


@pytest.mark.requirement("K2")
@pytest.mark.attack("T5")
def test_a_ticket_that_the_key_cannot_delete_keeps_the_purse_where_it_is(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not two.move(two.first, CommandId.MOVE_OUT, 10)
    commit = Flash.commit

    def fails_for_tickets(self: Flash, changes: Changes) -> None:
        if any(b"out/" in name and value is None for name, value in changes.items()):
            raise FlashFailedError("the flash is worn out")
        commit(self, changes)

    with monkeypatch.context() as patch:
        patch.setattr(Flash, "commit", fails_for_tickets)
        assert not two.move(two.second, CommandId.MOVE_IN)
        two.move(two.first, CommandId.MOVE_IN)
        assert two.usable() == [0, 0]
    assert two.move(two.second, CommandId.MOVE_IN)
    two.move(two.first, CommandId.MOVE_IN)
    assert two.usable()[0] == 0
    assert two.usable()[1] > 0


@pytest.mark.requirement("K2")
def test_a_wallet_whose_purse_is_at_the_key_says_so_and_lets_nothing_shut_it_out(two: Two) -> None:
    assert two.move(two.first, CommandId.MOVE_OUT)
    phone, home = two.first.laboratory.phone, two.first.laboratory.home
    assert two.first.view.moved
    with IssuerLink(home.issuer_url) as issuer:
        account = Account(phone.tee, issuer)
        load, apply = lambda: account.load(Amount.parse("1.00", "EUR")), lambda: account.apply(978, 4)
        for attempt in (account.sync, account.unblock_pin, load, apply):
            with pytest.raises(UsageError, match="tap-wallet move in brings it back"):
                attempt()
    with pytest.raises(TeeError, match="its purse is at the Key: tap-wallet move in"):
        phone.key.converse(phone.tee, CommandId.APPLY, ApplyRequest(978, 4))
    assert two.move(two.first, CommandId.MOVE_IN)
    assert two.usable() == [9_999, 0]


def test_a_wallet_whose_purse_another_one_took_is_free_for_a_new_one(two: Two) -> None:
    assert two.move(two.first, CommandId.MOVE_OUT)
    assert two.move(two.second, CommandId.MOVE_IN)
    assert not two.move(two.first, CommandId.MOVE_IN)
    phone, home = two.first.laboratory.phone, two.first.laboratory.home
    with IssuerLink(home.issuer_url) as issuer:
        assert Account(phone.tee, issuer).apply(978, 4).cards_left == 4


@pytest.mark.attack("F5")
def test_a_wallet_that_was_put_back_after_its_purse_moved_out_is_found_out_by_the_key(two: Two, tmp_path: Path) -> None:
    home = two.first.laboratory.home
    two.first.laboratory.phone.close()
    shutil.copytree(home.wallet, tmp_path / "copy")
    two.first.laboratory.phone = two.first.opened()
    assert two.move(two.first, CommandId.MOVE_OUT)
    assert two.move(two.second, CommandId.MOVE_IN)
    two.first.laboratory.phone.close()
    shutil.rmtree(home.wallet)
    shutil.copytree(tmp_path / "copy", home.wallet)
    two.first.laboratory.phone = two.first.opened()
    locked = [two.first.view.locked]  # storage and counter agree with each other
    assert not two.move(two.first, CommandId.MOVE_OUT)
    assert [*locked, two.first.view.locked] == [False, True]
    assert two.second.charge("0.01").approved


def test_a_wallet_with_a_purse_takes_no_other(two: Two) -> None:
    assert two.move(two.first, CommandId.MOVE_OUT)
    assert two.move(two.second, CommandId.MOVE_IN)
    two.second.lay(two.key.card)
    phone = two.second.laboratory.phone
    with pytest.raises(TeeError, match="a purse of its own"):
        phone.key.converse(phone.tee, CommandId.MOVE_IN)
