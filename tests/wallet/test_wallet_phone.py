# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The phone as a whole: a full disk in the middle of a tap, and housekeeping that outlives what goes wrong beside it."""

from __future__ import annotations

import resource
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from console.home import Home
from lab.fixtures import Laboratory, Setup, set_up
from pos.outcome import Outcome, OutcomeKind
from protocol.money import Amount
from protocol.transport.memory import MemoryLink
from wallet import account
from wallet.events import Event, Step
from wallet.history import FILE_NAME, History
from wallet.phone import PhoneOptions

_GET_VIRTUAL_CARD, _DEBIT = 3, 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    set_up(made, Setup(balance="900.00"))
    return made


@pytest.fixture
def phone(home: Home, tmp_path: Path) -> Iterator[Laboratory]:
    """A laboratory whose user always agrees."""
    (tmp_path / "script").write_text("confirm\n" * 5)
    options = PhoneOptions(trusted_ui=f"scripted:{tmp_path / 'script'}")
    with Laboratory(home=home.path, options=options) as made:
        yield made


def _wait(until: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.01)
    return until()


def test_housekeeping_goes_on_when_the_history_cannot_be_read_or_its_step_fails(
    phone: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(phone.home.wallet / FILE_NAME)) as database:
        database.execute("ALTER TABLE history RENAME TO spoiled")
        database.commit()
    phone.phone.events.put(Event(Step.TERMINAL_REFUSED, "terminal not accepted", reason="x"))
    assert phone.phone.rest(10.0)
    with monkeypatch.context() as patch:
        patch.setattr(phone.phone, "_tell", lambda _: 1 // 0)
        phone.phone.events.put(Event(Step.TERMINAL_REFUSED, "terminal not accepted", reason="x"))
        assert phone.phone.rest(10.0)
    with closing(sqlite3.connect(phone.home.wallet / FILE_NAME)) as database:
        database.execute("ALTER TABLE spoiled RENAME TO history")
        database.commit()


# --- the disk of the trusted world is full (T5): the kernel refuses to let the log grow, as it does with ENOSPC


class FillingLink(MemoryLink):
    """Lets the TEE's disk be full from APDU number `before` on, for one tap."""

    def __init__(self, laboratory: Laboratory, before: int) -> None:
        super().__init__(str(laboratory.home.path))
        self._before = before
        self._count = 0
        self._log = laboratory.home.wallet / "tee" / "state.log"
        assert laboratory.phone.tee.pid is not None
        self._pid = laboratory.phone.tee.pid
        _, self._hard = self._limit(None)

    def _limit(self, size: int | None) -> tuple[int, int]:
        if size is None:
            return resource.prlimit(self._pid, resource.RLIMIT_FSIZE)
        return resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (size, self._hard))

    def transceive(self, apdu: bytes) -> bytes:
        self._count += 1
        if self._count == self._before:
            self._limit(self._log.stat().st_size + 10)
        return super().transceive(apdu)

    def deactivate(self) -> None:
        super().deactivate()
        self._limit(self._hard)


def _charge(laboratory: Laboratory, link: FillingLink) -> Outcome:
    return laboratory.terminal.charge(Amount.parse("5.00", "EUR"), link)


def test_no_room_for_the_debit_means_nothing_deducted_and_the_terminal_knows_it(phone: Laboratory) -> None:
    before = phone.balance
    outcome = _charge(phone, FillingLink(phone, _DEBIT))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.DECLINED, "storage failure, nothing deducted")
    assert outcome.receipt_verified
    assert phone.balance == before
    assert phone.charge("5.00").approved
    assert phone.balance.minor == before.minor - 5_00


def test_no_room_for_the_card_means_that_none_is_shown(phone: Laboratory) -> None:
    before = phone.phone.view()
    outcome = _charge(phone, FillingLink(phone, _GET_VIRTUAL_CARD))
    assert outcome.kind is OutcomeKind.DECLINED
    assert outcome.reason == "the wallet cannot write to its storage; nothing was deducted"
    assert phone.phone.view() == before
    assert phone.charge("5.00").approved


def test_what_failed_for_want_of_room_is_still_not_there_after_a_restart(home: Home, tmp_path: Path) -> None:
    with Laboratory(home=home.path) as first:
        before = first.balance
        _charge(first, FillingLink(first, _DEBIT))
    with Laboratory(home=home.path) as second:
        assert second.balance == before
        assert second.phone.view().locked is False
        assert second.charge("5.00").approved


# --- housekeeping


def test_the_pool_of_cards_is_refilled_beside_the_taps(phone: Laboratory) -> None:
    for _ in range(account.POOL_SIZE - account.REFILL_BELOW + 1):
        assert phone.charge("0.01").approved
    assert _wait(lambda: phone.phone.view().cards_left > account.REFILL_BELOW)


def test_the_copy_of_the_view_follows_the_taps(phone: Laboratory) -> None:
    assert phone.charge("1.00").approved
    view = phone.phone.view()

    def is_kept() -> bool:
        with closing(History(phone.home.wallet)) as history:
            return history.view() == view

    assert _wait(is_kept)


def test_a_history_that_cannot_be_written_stops_neither_payments_nor_consent(home: Home, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("confirm\n")
    options = PhoneOptions(trusted_ui=f"scripted:{tmp_path / 'script'}")
    with Laboratory(home=home.path, options=options) as shop:
        with closing(sqlite3.connect(home.wallet / FILE_NAME)) as database:
            database.execute("DROP TABLE history")
            database.commit()
        assert shop.charge("1.00").approved
        assert shop.charge("60.00").kind is OutcomeKind.SEE_PHONE
        shown = tmp_path / "script.shown"
        assert _wait(lambda: shown.read_text() != "", seconds=3)
        assert shop.charge("60.00").approved


def test_an_issuer_that_is_gone_stops_payments_only_when_the_cards_are_used_up(tmp_path: Path) -> None:
    with Laboratory(Setup(balance="10.00", cards=3)) as shop:
        aside = shop.home.issuer.rename(tmp_path / "issuer")
        for _ in range(3):
            assert shop.charge("0.01").approved
        outcome = shop.charge("0.01")
        assert (outcome.kind, outcome.charged) == (OutcomeKind.DECLINED, False)
        assert outcome.reason == "the wallet has no virtual card left; it gets new ones from its issuer"
        aside.rename(shop.home.issuer)
        shop.charge("0.01")  # whatever becomes of it, the housekeeping finds the issuer afterwards
        assert _wait(lambda: shop.phone.view().cards_left > 0)
        assert shop.charge("0.01").approved
