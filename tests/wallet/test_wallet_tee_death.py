# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The TEE is killed between taps and in the middle of them; its root key goes missing. No money is made or lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest

from console.home import Home
from lab.fixtures import Laboratory, Setup, set_up
from pos.outcome import Outcome, OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol.apdu import Response
from protocol.commands import DEFAULT_NAME, Ins, select
from protocol.messages import VirtualCard
from protocol.money import Amount
from protocol.status import StatusWord
from protocol.transport.base import CardLink
from protocol.transport.memory import MemoryLink, MemoryPort
from wallet.card import Card
from wallet.directory import Directory
from wallet.environment.launcher import HardwareEnvironment, Start, TrustedWorldRefusedError
from wallet.history import History
from wallet.payment import PaymentClient
from wallet.phone import PhoneOptions, start_of
from wallet.tee import client
from wallet.tee.client import TeeSession
from wallet.tee.contract import CommandId, Origin, TeeError, TeeResult, WalletView

_STEPS = ("SELECT", "RELAY CHECK", "GET VIRTUAL CARD", "DEBIT", "CONFIRM")
_SOME_DEBIT = bytes((0x80, Ins.DEBIT, 0, 0, 32)) + bytes(32)


class QuietWallet:
    """A wallet with a terminal and no housekeeping, so that nothing but a test uses its TEE."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.tee = TeeSession(start_of(home.wallet, PhoneOptions()))
        self.card = Card([PaymentClient(DEFAULT_NAME, self.tee, SimpleQueue()), Directory([DEFAULT_NAME])])
        self.terminal = Terminal.open(home.path, TerminalOptions(timeout=1.0))
        self.port = MemoryPort(str(home.path))
        self.port.present(self.card)

    def view(self) -> WalletView:
        return self.tee.invoke(CommandId.SHOW, WalletView)

    @property
    def balance(self) -> int:
        return self.view().balance

    def kill(self) -> None:
        if self.tee.pid is not None:
            os.kill(self.tee.pid, signal.SIGKILL)

    def charge(self, amount: str, link: CardLink | None = None) -> Outcome:
        return self.terminal.charge(Amount.parse(amount, "EUR"), link or MemoryLink(str(self.home.path)))

    def close(self) -> None:
        self.port.close()
        self.terminal.close()
        self.tee.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    set_up(made, Setup(balance="500.00", cards=64))
    return made


@pytest.fixture(scope="module")
def wallet(home: Home) -> Iterator[QuietWallet]:
    """A wallet that every test leaves in working order, whatever became of its TEE."""
    with closing(QuietWallet(home)) as made:
        yield made


class KillingLink(MemoryLink):
    """Kills the TEE before APDU number `before`, or `delay` seconds into it when a delay is given."""

    def __init__(self, wallet: QuietWallet, before: int, delay: float | None = None) -> None:
        super().__init__(str(wallet.home.path))
        self.answers: list[Response] = []
        self._wallet = wallet
        self._before = before
        self._delay = delay
        self._killer: threading.Timer | None = None

    def transceive(self, apdu: bytes) -> bytes:
        if len(self.answers) + 1 == self._before:
            if self._delay is None:
                self._wallet.kill()
            else:
                self._killer = threading.Timer(self._delay, self._wallet.kill)
                self._killer.start()
        answer = super().transceive(apdu)
        self.answers.append(Response.decode(answer))
        return answer

    def deactivate(self) -> None:
        super().deactivate()
        if self._killer is not None:
            self._killer.join()


def test_after_a_kill_between_taps_one_tap_fails_and_the_next_one_works(wallet: QuietWallet) -> None:
    before = wallet.balance
    wallet.kill()
    wallet.card.activate()
    assert wallet.card.process(select(DEFAULT_NAME).encode()) == b"\x6f\x00"
    wallet.card.deactivate()
    assert wallet.balance == before
    assert wallet.charge("1.00").approved
    assert wallet.balance == before - 1_00


def test_the_client_api_says_that_the_process_died_and_starts_it_again(wallet: QuietWallet) -> None:
    first, before = wallet.tee.pid, wallet.view()
    wallet.kill()
    with pytest.raises(TeeError) as died:
        wallet.view()
    assert (died.value.result, died.value.origin) == (TeeResult.TARGET_DEAD, Origin.COMMS)
    assert wallet.view() == before
    assert wallet.tee.pid not in (None, first)


@pytest.mark.parametrize("step", range(1, len(_STEPS) + 1), ids=_STEPS)
def test_killed_before_a_step_the_balance_is_right_and_the_next_tap_works(wallet: QuietWallet, step: int) -> None:
    before = wallet.balance
    link = KillingLink(wallet, step)
    outcome = wallet.charge("2.00", link)
    approved = _STEPS[step - 1] == "CONFIRM"
    assert outcome.approved is approved
    if _STEPS[step - 1] != "RELAY CHECK":  # the nonce was made before, so that answering it needs no TEE
        assert link.answers[step - 1].sw is StatusWord.NO_PRECISE_DIAGNOSIS
    assert wallet.balance == before - 2_00 * approved
    assert wallet.charge("1.00").approved
    assert wallet.balance == before - 2_00 * approved - 1_00


@pytest.fixture(scope="module")
def torn_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home whose terminal may leave its three reads without a payment behind."""
    made = Home(tmp_path_factory.mktemp("torn"))
    set_up(made, Setup(balance="500.00"))
    return made


@pytest.mark.attack("T4")
@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.002])
def test_killed_within_the_debit_all_or_nothing_is_deducted(torn_home: Home, delay: float) -> None:
    with closing(QuietWallet(torn_home)) as wallet:
        before = wallet.balance
        outcome = wallet.charge("2.00", KillingLink(wallet, 1 + _STEPS.index("DEBIT"), delay))
    with closing(QuietWallet(torn_home)) as wallet:
        deducted = before - wallet.balance
    assert deducted in (0, 2_00)
    assert outcome.kind in (OutcomeKind.APPROVED, OutcomeKind.TORN)
    assert outcome.approved or outcome.charged is None or deducted == 0  # the terminal does not claim to know
    assert deducted == 2_00 or not outcome.approved


@pytest.mark.attack("F6")
def test_no_credential_is_shown_twice_whenever_the_tee_is_killed(wallet: QuietWallet) -> None:
    shown = []
    for step in (5, 0, 5, 0):
        link = KillingLink(wallet, step)
        assert wallet.charge("1.00", link).approved
        shown.append(VirtualCard.decode(link.answers[2].data).certificate.serial)
    assert len(shown) == len(set(shown))


class InsistingLink(KillingLink):
    """Sends one more DEBIT where the terminal would end the tap."""

    def deactivate(self) -> None:
        if self.answers:
            self.answers.append(Response.decode(MemoryLink.transceive(self, _SOME_DEBIT)))
        super().deactivate()


@pytest.mark.attack("F6")
def test_the_channel_of_a_tap_dies_with_the_process(wallet: QuietWallet) -> None:
    before = wallet.balance
    link = InsistingLink(wallet, 1 + _STEPS.index("DEBIT"))
    assert wallet.charge("1.00", link).kind is OutcomeKind.TORN
    assert [one.sw for one in link.answers[-2:]] == [
        StatusWord.NO_PRECISE_DIAGNOSIS,
        StatusWord.CONDITIONS_NOT_SATISFIED,
    ]
    assert wallet.balance == before


@pytest.mark.requirement("A1")
def test_the_client_application_outlives_the_trusted_one_and_keeps_what_is_not_core(laboratory: Laboratory) -> None:
    assert laboratory.charge("3.00").approved
    history = History(laboratory.home.wallet)
    until = time.monotonic() + 5
    while not history.entries() and time.monotonic() < until:
        time.sleep(0.01)
    assert laboratory.phone.tee.pid is not None
    os.kill(laboratory.phone.tee.pid, signal.SIGKILL)
    assert [(one.amount, one.merchant) for one in history.entries()] == [(3_00, "Corner Bakery")]
    history.close()


# --- the root key


@pytest.fixture
def root_key(wallet: QuietWallet) -> Iterator[Path]:
    """The file of the root key while no TEE runs; everything is put back afterwards."""
    wallet.tee.close()
    path = wallet.home.wallet / "device" / "root.key"
    storage = wallet.home.wallet / "tee"
    kept = {one: one.read_bytes() for one in (path, storage / "state.log", storage / "freshness")}
    yield path
    wallet.tee.close()
    for one, content in kept.items():
        one.write_bytes(content)


def test_a_missing_root_key_is_said_in_a_sentence_and_harms_nothing(wallet: QuietWallet, root_key: Path) -> None:
    aside = root_key.rename(root_key.with_name("aside"))
    with pytest.raises(TrustedWorldRefusedError) as refused:
        wallet.view()
    assert str(refused.value) == f"{root_key} is missing, and the storage cannot be read without it; put it back"
    aside.rename(root_key)
    assert wallet.charge("1.00").approved


def test_without_its_root_key_the_card_answers_and_the_command_says_why(wallet: QuietWallet, root_key: Path) -> None:
    aside = root_key.rename(root_key.with_name("aside"))
    wallet.card.activate()
    assert wallet.card.process(select(DEFAULT_NAME).encode()) == b"\x6f\x00"
    wallet.card.deactivate()
    command = [sys.executable, "-m", "wallet", "show", "--home", str(wallet.home.path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    aside.rename(root_key)
    sentence = f"tap-wallet: {root_key} is missing, and the storage cannot be read without it; put it back\n"
    assert (said.returncode, said.stdout, said.stderr) == (2, "", sentence)


@pytest.mark.parametrize("length", [0, 1, 31, 33])
def test_a_root_key_of_another_length_is_said_in_a_sentence(wallet: QuietWallet, root_key: Path, length: int) -> None:
    root_key.write_bytes(bytes(length))
    with pytest.raises(
        TrustedWorldRefusedError, match="does not hold a key of 32 bytes; restore it from where it came"
    ):
        wallet.view()


def test_a_damaged_root_key_is_noticed_and_the_storage_is_left_alone(wallet: QuietWallet, root_key: Path) -> None:
    before, key = wallet.view(), root_key.read_bytes()
    wallet.tee.close()
    log = wallet.home.wallet / "tee" / "state.log"
    content = log.read_bytes()
    root_key.write_bytes(bytes([key[0] ^ 1]) + key[1:])
    with pytest.raises(TrustedWorldRefusedError):
        wallet.view()
    assert log.read_bytes() == content
    root_key.write_bytes(key)
    assert wallet.view() == before


def test_what_the_trusted_world_keeps_is_for_its_owner_only(home: Home) -> None:
    files = [home.wallet / "device" / "root.key", *(home.wallet / "tee").iterdir()]
    assert {one.stat().st_mode & 0o777 for one in files} == {0o600}
    folders = [home.wallet, home.wallet / "device", home.wallet / "tee"]
    assert {one.stat().st_mode & 0o777 for one in folders} == {0o700}


def test_a_tap_ends_quietly_when_the_trusted_world_and_the_next_one_are_gone(
    wallet: QuietWallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends_at_once(start: Start) -> HardwareEnvironment:
        environment = HardwareEnvironment(start)
        os.kill(environment.pid, signal.SIGKILL)
        return environment

    wallet.card.activate()
    assert wallet.card.process(select(DEFAULT_NAME).encode()).endswith(b"\x90\x00")
    wallet.tee.close()
    with monkeypatch.context() as patch:
        patch.setattr(client, "HardwareEnvironment", ends_at_once)
        wallet.card.deactivate()
    assert wallet.charge("1.00").approved
