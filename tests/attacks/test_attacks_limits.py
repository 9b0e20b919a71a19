# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What does not stop an attacker, shown: the limits that docs/threat-model.md states, and what bounds each of them."""

from __future__ import annotations

import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from issuer.register import Register
from pos.journal import State
from pos.outcome import OutcomeKind
from pos.relay import RelayPolicy
from pos.settlement import _claim
from protocol.apdu import Command, Response
from protocol.commands import DEFAULT_NAME, Ins
from protocol.errors import Check, TapLabError
from protocol.fci import ApplicationFci
from protocol.messages import Result
from protocol.money import Amount
from protocol.settlement import TerminalReport, Verdict
from protocol.status import StatusWord
from protocol.transcript import Record
from protocol.transport.base import CardHandler
from tests.attacks.stage import EURO, Stage
from tests.end_to_end.parties import ToldLaboratory, link_to
from tests.end_to_end.soft_wallet import SoftWallet
from tests.wallet.near_wallet import NearSession, NearTrustedWorld
from wallet.key_line import KeyLine
from wallet.tee.contract import BegunTap, CardRequest, ChannelAnswer, ChannelRequest, CommandId
from wallet.tee.state import signer

# --- fair exchange


def test_a_merchant_can_say_that_it_failed_and_claim_and_the_shopper_has_evidence(home: Path, stage: Stage) -> None:
    with ToldLaboratory(home) as laboratory:
        outcome = laboratory.charge("10.00")
        assert outcome.approved  # "it failed, please pay cash"
        (record,) = laboratory.terminal.journal.records()
        assert stage.say(TerminalReport((_claim(stage.certified, record),), ())) == (Verdict.PAID,)
        entry = next(one for one in laboratory.history() if one.amount)
        assert (entry.result, entry.amount, entry.merchant) == (Result.APPROVED, 1000, "Corner Bakery")


# --- storage and counter copied back together


def _copy_of(world: NearTrustedWorld) -> dict[str, bytes]:
    return {name: (world._folder / name).read_bytes() for name in ("state.log", "freshness")}


def _put_back(world: NearTrustedWorld, copy: dict[str, bytes]) -> None:
    for name, content in copy.items():
        (world._folder / name).write_bytes(content)
    world.start_again()


def test_storage_and_counter_copied_back_together_pay_twice_until_the_wallet_syncs(stage: Stage) -> None:
    copy, terminal = _copy_of(stage.world), stage.terminal(stage.certified)
    for _ in range(2):
        _put_back(stage.world, copy)
        assert terminal.charge(EURO, link_to(stage.card)).approved
        assert (stage.balance, stage.world.view().locked) == (9000, False)  # the wallet notices nothing
    claims = tuple(_claim(stage.certified, one) for one in terminal.journal.records())
    assert stage.say(TerminalReport(claims, ())) == (Verdict.PAID, Verdict.PAID)
    stage.issuer.ahead = 2.0  # a claim of the same second is no older than the list
    stage.sync()
    register = Register(stage.home / "issuer")
    (wallet,) = register.wallets()
    register.close()
    assert (wallet.blocked, wallet.holds.minor, wallet.paid.minor) == (True, 8000, 2000)  # its list lacks one of them


# --- who can read the device folder


def test_who_reads_the_root_key_is_the_wallet_and_nobody_else_is(home: Path, tmp_path: Path) -> None:
    root = home / "wallet" / "device" / "root.key"
    assert stat.S_IMODE(root.stat().st_mode) == 0o600
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o700
    thief = NearTrustedWorld(home / "wallet")
    assert len(signer(thief.application._vault.device.signing_scalar).public) == 33
    thief.close()
    other = shutil.copytree(home / "wallet", tmp_path / "without the key")
    (other / "device" / "root.key").write_bytes(bytes(32))
    with pytest.raises(TapLabError, match="cannot be read with this device key"):
        NearTrustedWorld(other)


def test_keys_taken_out_of_a_wallet_pay_without_its_purse_within_the_offline_ceiling(stage: Stage) -> None:
    taken = stage.world.application._vault.next_credential()
    thief = SoftWallet(stage.home, signer(taken.scalar), taken.certificate, taken.number)
    terminal = stage.terminal(stage.certified)
    for amount in ("90.00", "90.00", "1000.01"):  # the purse holds 100.00, a receipt may claim 1000.00
        terminal.charge(Amount.parse(amount, "EUR"), link_to(thief))
    records = [one for one in terminal.journal.records() if one.state is State.APPROVED]
    verdicts = [stage.say(TerminalReport((_claim(stage.certified, one),), ()))[0] for one in records]
    assert verdicts == [Verdict.PAID, Verdict.PAID, Verdict.NOT_VALID]
    warned = replace(stage.certified, blocked=replace(stage.certified.blocked, numbers=(taken.number,)))
    outcome = stage.terminal(warned).charge(EURO, link_to(thief))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_VERIFIED, Check.CARD_BLOCKED.value)


# --- relays


@dataclass
class Clock:
    """The time that the terminal measures by: it passes only when somebody says so."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("pos.session.time", made)
    return made


@dataclass
class Relayed:
    """A card that is elsewhere: every command takes `delay` seconds more."""

    card: CardHandler
    clock: Clock
    delay: float

    def activate(self) -> None:
        self.card.activate()

    def process(self, apdu: bytes) -> bytes:
        self.clock.now += self.delay
        return self.card.process(apdu)

    def deactivate(self) -> None:
        self.card.deactivate()


@pytest.mark.attack("R1")
@pytest.mark.parametrize("delay_ms", [0, 1, 5, 10, 19, 21, 30, 40, 50])
def test_a_relay_is_noticed_from_the_bound_on_and_not_below(stage: Stage, clock: Clock, delay_ms: int) -> None:
    terminal = stage.terminal(relay=RelayPolicy.DECLINE, relay_bound_ms=20.0)
    outcome = terminal.charge(EURO, link_to(Relayed(stage.card, clock, delay_ms / 1000)))
    assert outcome.approved == (delay_ms < 20)
    assert outcome.relay is not None
    assert outcome.relay.excess_ms == pytest.approx(delay_ms)


@dataclass
class DishonestClient:
    """A client application that serves a card far away: its accomplice at the terminal has the nonce before it is asked."""

    tee: NearSession
    clock: Clock
    transcript: bytes = b""
    nonce: bytes = b""

    def activate(self) -> None:
        self.transcript = b""

    def process(self, apdu: bytes) -> bytes:
        command = Command.decode(apdu)
        if command.ins != Ins.RELAY_CHECK:
            self.clock.now += 0.1
        response = Response(self._answer(command), StatusWord.OK)
        self.transcript += Record.of_command(command).encode() + Record.of_response(response).encode()
        return response.encode()

    def _answer(self, command: Command) -> bytes:
        if command.ins == Ins.SELECT:
            self.nonce = self.tee.invoke(CommandId.BEGIN_TAP, BegunTap).nonce
            return ApplicationFci(DEFAULT_NAME, (1,), (1,)).encode()
        if command.ins == Ins.RELAY_CHECK:
            return self.nonce
        if command.ins == Ins.GET_VIRTUAL_CARD:
            request = CardRequest(self.transcript, command.p1, command.p2, command.data)
            return self.tee.invoke_command(CommandId.GET_VIRTUAL_CARD, request)
        request_in_channel = ChannelRequest(command.unchained_header, command.data)
        return ChannelAnswer.decode(KeyLine().converse(self.tee, CommandId.CHANNEL, request_in_channel)).body

    def deactivate(self) -> None:
        pass


def test_a_dishonest_client_application_can_answer_the_relay_check_from_nearby(stage: Stage, clock: Clock) -> None:
    terminal = stage.terminal(relay=RelayPolicy.DECLINE, relay_bound_ms=20.0)
    assert terminal.charge(EURO, link_to(DishonestClient(stage.tee, clock))).approved
    assert clock.now == pytest.approx(0.4)  # every other command went a long way
