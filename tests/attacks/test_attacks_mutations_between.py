# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Attacks by somebody between the parties, or on what they keep: each fails, and succeeds with exactly one check taken out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, time
from time import time as seconds
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from issuer.clearing import Clearing
from pos import tap_key
from pos.journal import State
from pos.session import signed
from pos.settlement import _claim
from pos.terminal import Terminal
from protocol import channel, tally
from protocol.apdu import Command
from protocol.commands import DEFAULT_NAME, Ins, get_virtual_card
from protocol.errors import Check, TapLabError, VerificationError
from protocol.fci import ApplicationFci
from protocol.messages import Debit, GetVirtualCard
from protocol.secret import Secret
from protocol.settlement import Claim, TerminalReport, Verdict
from protocol.signing import PrivateKey
from protocol.tally import Operation
from protocol.transcript import Digests, digests
from protocol.transport.base import CardHandler
from tests.attacks.stage import EURO, Mutation, Mutations, Patch, Stage
from tests.end_to_end.parties import HostileTerminal, WatchedLink, flip, link_to, terminal_like
from tests.end_to_end.soft_wallet import SoftWallet
from wallet.card import Card
from wallet.environment import shared_memory
from wallet.environment.shared_memory import SharedMemory
from wallet.payment import PaymentClient
from wallet.tee import tap as tee_tap
from wallet.tee.state import CREDENTIAL, Credential
from wallet.tee.vault import Vault

GROUP_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # n of P-256, SEC 2 §2.4.2
DEBIT = Debit(100, 978, date(2026, 1, 2), time(3, 4, 5))
MUTATIONS = Mutations()
attack = MUTATIONS.attack


@dataclass
class Between:
    """Somebody between the terminal and `card`, who does as `turn` says with each command."""

    card: CardHandler
    turn: Callable[[Between, bytes], bytes]
    taps: int = 0
    kept: list[bytes] = field(default_factory=list)

    def activate(self) -> None:
        self.taps += 1
        self.card.activate()

    def process(self, apdu: bytes) -> bytes:
        return self.turn(self, apdu)

    def deactivate(self) -> None:
        self.card.deactivate()


# --- answers that are not for this terminal, or not of this tap


def _one_key_for_ever(patch: Patch) -> None:
    made = tap_key.make(Secret(bytes(32)), 0)
    patch.setattr(tap_key, "make", lambda *_: made)


@attack("F2", _one_key_for_ever)
def _whole_tap_played_again(stage: Stage) -> bool:
    def record_then_play(self: Between, apdu: bytes) -> bytes:
        if self.taps == 1:
            self.kept.append(self.card.process(apdu))
            return self.kept[-1]
        return self.kept.pop(0)

    identity, card = terminal_like(stage.home), Between(stage.card, record_then_play)
    now = seconds()
    assert stage.terminal(identity, clock=lambda: now).charge(EURO, link_to(card)).approved
    return stage.terminal(identity, clock=lambda: now).charge(EURO, link_to(card)).approved  # no wallet is there


def _transcript_not_bound(*, t1: bool) -> Callable[[Patch], None]:
    def bound_to_nothing(prefix: bytes, command: Command) -> Digests:
        whole = digests(prefix, command)
        return Digests(bytes(32) if t1 else whole.t1, bytes(32))

    def take_out(patch: Patch) -> None:
        patch.setattr(tee_tap, "digests", bound_to_nothing)
        patch.setattr("pos.session.digests", bound_to_nothing)

    return take_out


@attack("B1", _transcript_not_bound(t1=False))
def _answer_for_one_terminal_shown_to_another(stage: Stage) -> bool:
    """A terminal of the attacker's asks for a card that only the victim's terminal can open, and shows it there."""
    own = terminal_like(stage.home)
    asking: list[HostileTerminal] = []

    def ask_in_own_name(self: Between, apdu: bytes) -> bytes:
        if apdu[1] in (Ins.SELECT, Ins.RELAY_CHECK):
            return self.card.process(apdu)
        if apdu[1] == Ins.GET_VIRTUAL_CARD:
            asking.append(stage.hostile(own))
            asking[0].approach()
            theirs = GetVirtualCard.decode(Command.decode(apdu).data)
            unsigned = GetVirtualCard(own.certificate, theirs.tap_key, bytes(64))
            t1 = asking[0].session.digests(unsigned).t1
            hello = signed(unsigned, own.key.sign(GetVirtualCard.signature_input(t1)))
            return asking[0].link.transceive(get_virtual_card(1, 1, hello).encode())
        return asking[0].link.transceive(apdu)

    stage.charge(Between(stage.card, ask_in_own_name))
    return stage.balance == 9000


@attack("B3", _transcript_not_bound(t1=True))
def _name_swapped(stage: Stage) -> bool:
    other = bytes.fromhex("F054415000")

    def swap(self: Between, apdu: bytes) -> bytes:
        if apdu[1] != Ins.SELECT:
            return self.card.process(apdu)
        self.card.process(apdu[:4] + bytes([len(other)]) + other + b"\0")
        return ApplicationFci(DEFAULT_NAME, (1,), (1,)).encode() + b"\x90\x00"

    card = Card([PaymentClient(name, stage.tee, stage.events) for name in (DEFAULT_NAME, other)])
    return stage.charge(Between(card, swap)).approved


# --- the channel


def _no_tag(patch: Patch) -> None:
    def decrypt(key: bytes, nonce: bytes, data: bytes, _: bytes) -> bytes:
        counter = nonce + (2).to_bytes(4, "big")  # NIST SP 800-38D §7.1: the first block of GCM is the one after J0
        return Cipher(algorithms.AES(key), modes.CTR(counter)).decryptor().update(data[:-16])

    patch.setattr(channel, "_open", decrypt)


@attack("B2", _no_tag)
def _amount_changed_on_the_way(stage: Stage) -> bool:
    def make_it_twenty(self: Between, apdu: bytes) -> bytes:
        return self.card.process(flip(apdu, 9, 0x30) if apdu[1] == Ins.DEBIT else apdu)  # n12: 10 00 becomes 20 00

    stage.charge(Between(stage.card, make_it_twenty))
    return stage.balance == 8000


@attack("B2 command", lambda patch: patch.setattr(channel, "_command_aad", lambda _: b""))
def _question_turned_into_a_thank_you(stage: Stage) -> bool:
    """CANCEL asks what became of a payment; as CONFIRM it would tell the wallet that the terminal knows."""

    def turn(self: Between, apdu: bytes) -> bytes:
        answer = self.card.process(bytes([0x80, Ins.CONFIRM]) + apdu[2:] if apdu[1] == Ins.CANCEL else apdu)
        return b"" if apdu[1] == Ins.DEBIT else answer

    return _is_never_told(stage, turn, taps=2)


def _no_tag_on_nothing(patch: Patch) -> None:
    whole = channel.open_command
    patch.setattr(channel, "open_command", lambda keys, n, command: whole(keys, n, command) if command.data else b"")


@attack("B8", _no_tag_on_nothing)
def _empty_thank_you(stage: Stage) -> bool:
    """The answer to DEBIT is kept back, and the wallet is told in the terminal's name that it has arrived."""

    def turn(self: Between, apdu: bytes) -> bytes:
        answer = self.card.process(apdu)
        if apdu[1] != Ins.DEBIT:
            return answer
        self.card.process(bytes([0x80, Ins.CONFIRM, 0, 0]))
        return b""

    return _is_never_told(stage, turn, taps=1)


def _is_never_told(stage: Stage, turn: Callable[[Between, bytes], bytes], taps: int) -> bool:
    """Tell whether a terminal whose taps were interfered with still does not know, after an honest tap, that it was paid."""
    terminal, card = stage.terminal(), Between(stage.card, turn)
    for _ in range(taps):
        terminal.charge(EURO, link_to(card))
    assert stage.balance == 9000
    terminal.charge(EURO, link_to(stage.card))
    return terminal.journal.records()[0].state is State.OPEN


def _numbers_not_counted(patch: Patch) -> None:
    patch.setattr(channel, "_nonce", lambda iv, _: bytes(iv))


@attack("F4 recorded", _numbers_not_counted)
def _recorded_debit_sent_again(stage: Stage) -> bool:
    recorded: list[bytes] = []
    terminal = stage.hostile(link=WatchedLink(link_to(stage.card), recorded.append))
    terminal.read_card()
    terminal.session.debit(DEBIT)
    return terminal.link.transceive(recorded[-1])[-2:] == b"\x90\x00"


# --- torn taps


def _answer_lost_once(stage: Stage, then: CardHandler) -> Between:
    def turn(self: Between, apdu: bytes) -> bytes:
        if self.taps > 1:
            self.card = then
        answer = self.card.process(apdu)
        return b"" if self.taps == 1 and apdu[1] == Ins.DEBIT else answer

    return Between(stage.card, turn)


@attack("T2", lambda patch: patch.setattr(Terminal, "_was_paid", lambda *_: False))
def _charged_again_after_a_lost_answer(stage: Stage) -> bool:
    stage.charge(_answer_lost_once(stage, stage.card), again=5.0)
    return stage.balance == 8000


def _any_card_inherits(patch: Patch) -> None:
    whole = Terminal._was_paid

    def inherits(self: Terminal, known: Any) -> bool:
        record = self._journal.find(known.in_progress) if known.in_progress else None
        return False if record is not None and record.state is State.OPEN else whole(self, known)

    patch.setattr(Terminal, "_was_paid", inherits)


@attack("T3", _any_card_inherits)
def _another_card_charged_for_the_same_sale(stage: Stage) -> bool:
    outcome = stage.charge(_answer_lost_once(stage, SoftWallet(stage.home)), again=0.3)
    assert stage.balance == 9000
    return outcome.approved


# --- money, memory, and what a stranger learns


def _claims_by_bytes(patch: Patch) -> None:
    whole, good = Clearing.claim, Clearing._is_good

    def by_bytes(self: Clearing, claim: Claim) -> Verdict:
        credential = self.books.credential_by_serial(claim.credential)
        if credential is None or not good(self, claim, credential):
            return Verdict.NOT_VALID
        name = hashlib.sha256(claim.evidence).digest()[:16]
        return whole(self, replace(claim, receipt=replace(claim.receipt, transaction_id=name)))

    patch.setattr(Clearing, "_is_good", lambda *_: True)
    patch.setattr(Clearing, "claim", by_bytes)


@attack("M4", _claims_by_bytes)
def _claimed_under_both_forms_of_the_signature(stage: Stage) -> bool:
    terminal = stage.terminal(stage.certified)
    assert terminal.charge(EURO, link_to(stage.card)).approved
    (record,) = terminal.journal.records()
    s = GROUP_ORDER - int.from_bytes(record.signature[32:], "big")
    other = replace(record, signature=record.signature[:32] + s.to_bytes(32, "big"))
    stage.say(TerminalReport(tuple(_claim(stage.certified, one) for one in (record, other)), ()))
    return stage.paid == 2000


def _memory_not_copied(patch: Patch) -> None:
    patch.setattr(SharedMemory, "_read", lambda self, at, length: memoryview(self._map)[at : at + length])


@attack("I3", _memory_not_copied)
def _payload_changed_after_it_was_read(_: Stage) -> bool:
    memory = SharedMemory(shared_memory.create())
    memory.write_request(b"checked")
    payload = memory.read_request(7)
    memory.write_request(b"changed")
    return bytes(payload) == b"changed"


def _cards_are_not_spent(patch: Patch) -> None:
    def first(self: Vault, *, with_key: bool) -> Credential:
        return next(Credential.decode(value) for _, value in self._storage.items(CREDENTIAL))

    patch.setattr(Vault, "next_credential", first)


@attack("N1", _cards_are_not_spent)
def _two_taps_linked_by_the_certificate(stage: Stage) -> bool:
    shown = [stage.hostile().read_card().credential.encode() for _ in range(2)]
    return shown[0] == shown[1]


def _refused_at_once(patch: Patch) -> None:
    def refuse(check: Check, _: object) -> None:
        raise VerificationError(check)

    patch.setattr(tee_tap, "refuse_alike", refuse)


@attack("N3", _refused_at_once)
def _refusals_told_apart_by_their_work(stage: Stage) -> bool:
    work = []
    for position in (0, -1):  # a certificate that cannot be read, a signature that is wrong
        terminal = stage.hostile()
        terminal.approach()
        request = get_virtual_card(1, 1, terminal.hello())
        before = tally.snapshot()
        assert terminal.link.transceive(request.with_data(flip(request.data, position)).encode()) == bytes.fromhex(
            "6982"
        )
        work.append(tally.since(before)[Operation.VERIFY])
        terminal.leave()
    return work[0] != work[1]


@attack("V3", lambda patch: patch.setattr(tee_tap, "require_proof", lambda *_: None))
def _user_asked_for_a_stranger(stage: Stage) -> bool:
    terminal = stage.hostile(replace(terminal_like(stage.home), key=PrivateKey.generate()))
    with suppress(TapLabError):
        terminal.read_card()
        terminal.session.debit(replace(DEBIT, amount=60_00))
    return stage.world.application._consents._asking is not None


every_mutation = pytest.mark.parametrize("mutation", MUTATIONS.parameters())


@every_mutation
def test_the_attack_fails(stage: Stage, mutation: Mutation) -> None:
    assert not mutation.attack(stage)


@every_mutation
def test_the_attack_succeeds_without_its_check(stage: Stage, monkeypatch: Patch, mutation: Mutation) -> None:
    mutation.take_out(monkeypatch)
    assert mutation.attack(stage)
