# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The card application in any order: honest steps, hostile ones, half ones, the field going and the TEE dying between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, time
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import ClassVar, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pos.identity import Identity
from pos.verifier import Trust, VerifiedCard, verify
from protocol.apdu import MAX_NE, SHORT_MAX_NE, Command, Response
from protocol.commands import DEFAULT_NAME, Ins, Occurrence, relay_check, select
from protocol.fci import DIRECTORY_NAME, ApplicationFci, DirectoryEntry, encode_directory
from protocol.messages import NOTHING_OPEN, Debit, Receipt, RelayCheck, Result, certificate_hash
from protocol.signing import PrivateKey
from protocol.status import StatusError, StatusWord
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink, card_historical, contactless_atr
from tests.end_to_end.parties import HostileTerminal, flip, terminal_like
from tests.wallet.near_wallet import NearSession, NearTrustedWorld
from wallet.card import Card
from wallet.directory import Directory
from wallet.events import Event
from wallet.payment import PaymentClient

Answer = TypeVar("Answer")

EURO, DOLLAR = 978, 840
READS = 3
NO_PIN_LIMIT = 50_00
_KNOWN = frozenset(StatusWord) - {
    StatusWord.NO_PRECISE_DIAGNOSIS,  # the trusted world never fails here
    StatusWord.MEMORY_FAILURE,  # and neither does its disk
    StatusWord.WRONG_DATA,  # which no command of the tap is answered
    StatusWord.CHAINING_NOT_SUPPORTED,
}
_IN_CHANNEL = (Ins.DEBIT, Ins.CONFIRM, Ins.CANCEL)
_OPEN_TO_ALL = (
    ApplicationFci(DEFAULT_NAME, (1,), (1,)).encode(),
    encode_directory((DirectoryEntry(DEFAULT_NAME, "TAPLAB", 1),)),
)

_amounts = st.integers(1, 3000) | st.sampled_from([1, 50_00, 50_01, 99_99, 100_00, 100_01, 1000_01, 10**12 - 1])
_well_formed: st.SearchStrategy[bytes] = st.builds(
    Command,
    st.sampled_from([0x00, 0x80, 0x90, 0x10, 0x84]),
    st.sampled_from([*Ins, 0xFF]),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([b"", DEFAULT_NAME, DIRECTORY_NAME, bytes(8), bytes(32)]) | st.binary(max_size=300),
    st.sampled_from([None, 1, 16, SHORT_MAX_NE, MAX_NE]),
).map(Command.encode)
_halves = st.builds(
    Command,
    st.sampled_from([0x10, 0x90]),
    st.sampled_from(Ins),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([0, 1]),
    st.binary(max_size=255),
).map(Command.encode)
_any_bytes = st.binary(max_size=300)
_steps = st.lists(
    st.sampled_from(
        [
            "pay",
            "pay",
            "pay_again",
            "confirm",
            "settle",
            "settle_what_is_another_terminals",
            "say_what_is_not_encrypted",
            "leave_without_a_word",
        ]
    ),
    min_size=1,
    max_size=6,
)
_begins_a_tap = st.sampled_from(
    [
        select(DEFAULT_NAME).encode(),
        select(DEFAULT_NAME[:3]).encode(),
        select(DEFAULT_NAME, Occurrence.NEXT).encode(),
        select(DIRECTORY_NAME).encode(),
        relay_check(RelayCheck(b"c" * 8)).encode(),
        Command(0x00, Ins.GET_RESPONSE, 0, 0, b"", 5).encode(),
        Command(0x90, Ins.RELAY_CHECK, 0, 0, b"half").encode(),
        Command(0x80, Ins.RELAY_CHECK, 0, 0, b"half", 4).encode(),
    ]
)


@dataclass
class Read:
    """One card that was shown to a terminal, and what it may still become there."""

    card: VerifiedCard
    receipt: Receipt
    result: Result | None = None
    signature: bytes = b""
    confirmed: bool = False

    @property
    def id(self) -> bytes:
        return self.card.keys.transaction_id


@dataclass
class Merchant:
    """A terminal and all that it has seen. A session is open while `current` is there."""

    identity: Identity
    reads: dict[bytes, Read] = field(default_factory=dict)

    def unconfirmed(self) -> list[Read]:
        return [one for one in self.reads.values() if not one.confirmed]

    def unpaid(self) -> int:
        """How many cards it saw without asking for a payment."""
        return sum(one.result in (None, Result.CANCELLED) for one in self.reads.values())


class CheckedField(CardLink):
    """The field of a terminal: every command goes through the machine, which looks at the answer."""

    def __init__(self, machine: CardMachine, *, extended: bool) -> None:
        self._machine = machine
        self._activation = Activation(contactless_atr(card_historical(extended=extended)))

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        self._machine.card.activate()
        return self._activation

    def transceive(self, apdu: bytes) -> bytes:
        return self._machine.send(apdu)

    def deactivate(self) -> None:
        self._machine.card.deactivate()

    def close(self) -> None:
        pass


class CardMachine(RuleBasedStateMachine):
    """Two terminals, a stranger without a certificate, and whoever sends bytes; the last tap is a third terminal's."""

    wallet: ClassVar[Path]
    identities: ClassVar[tuple[Identity, ...]]
    stranger: ClassVar[Identity]

    @initialize()
    def begin(self) -> None:
        self.world = NearTrustedWorld(self.wallet)
        self.events: SimpleQueue[Event | None] = SimpleQueue()
        client = PaymentClient(DEFAULT_NAME, NearSession(self.world), self.events)
        self.card = Card([client, Directory((DEFAULT_NAME,))])
        self.merchants = [Merchant(identity) for identity in self.identities]
        self.seen: list[bytes] = [select(DEFAULT_NAME).encode()]
        self.nonces: set[bytes] = set()
        self.balance = self.world.view().balance
        self.lost_notes = False
        self.proves_itself = self.talks_in_channel = False
        self._field_goes()

    # --- every command goes through here

    def send(self, apdu: bytes) -> bytes:
        self.seen.append(apdu)
        answer = self.card.process(apdu)
        assert len(answer) >= 2
        response = Response.decode(answer)
        assert response.sw in _KNOWN or response.sw >> 8 == 0x61, response.sw
        self._nothing_for_strangers(apdu, response)
        return answer

    def _nothing_for_strangers(self, apdu: bytes, response: Response) -> None:
        """What is not open to all is said to who proved itself in this tap, and within its channel."""
        if not response.data or self.proves_itself or self.talks_in_channel:
            return
        if any(response.data in public for public in _OPEN_TO_ALL):
            return
        assert apdu[1] in (Ins.RELAY_CHECK, Ins.GET_RESPONSE)
        assert len(response.data) <= 8

    @contextmanager
    def _honest(self, *, proves: bool = False) -> Iterator[None]:
        self.proves_itself, self.talks_in_channel = proves, not proves
        try:
            yield
        finally:
            self.proves_itself = self.talks_in_channel = False

    def _field_goes(self) -> None:
        self.card.deactivate()
        self.card.activate()
        self.terminal: HostileTerminal | None = None
        self.merchant: Merchant | None = None
        self.current: Read | None = None
        self.debited: tuple[Debit, bytes] | None = None

    def _channel_is_over(self) -> None:
        self.terminal = None

    # --- bytes of any kind

    @rule(data=st.data(), count=st.integers(1, 5))
    def say_anything(self, data: st.DataObject, count: int) -> None:
        self._channel_is_over()
        again = st.sampled_from(self.seen[-30:])
        for _ in range(count):
            self.send(data.draw(_begins_a_tap | _well_formed | _halves | again | _bit_flipped(again) | _any_bytes))

    @rule(dies=st.booleans())
    def field_goes_off_and_on(self, dies: bool) -> None:
        if dies:
            self.world.start_again()
            self.lost_notes = True
        self._field_goes()

    # --- terminals

    def _approach(self, identity: Identity, *, extended: bool, leaves_out_relay_check: bool = False) -> HostileTerminal:
        self._field_goes()
        terminal = HostileTerminal(CheckedField(self, extended=extended), identity)
        if leaves_out_relay_check:
            assert terminal.session.select(DEFAULT_NAME) is not None
            return terminal
        with self._honest(proves=True):
            terminal.approach()
        nonce = self.card._transcript[-10:-2]
        assert nonce not in self.nonces
        self.nonces.add(nonce)
        return terminal

    @rule(which=st.integers(0, 1), extended=st.booleans(), steps=_steps, data=st.data())
    @precondition(lambda self: self.world.view().cards_left > 1)
    def tap(self, which: int, extended: bool, steps: list[str], data: st.DataObject) -> None:
        merchant = self.merchants[which]
        self._read(self._approach(merchant.identity, extended=extended), merchant)
        self._talk(steps, data)

    @precondition(lambda self: self.terminal is not None)
    @rule(steps=_steps, data=st.data())
    def tap_goes_on(self, steps: list[str], data: st.DataObject) -> None:
        self._talk(steps, data)

    def _talk(self, steps: list[str], data: st.DataObject) -> None:
        for step in steps:
            if self.terminal is not None:
                getattr(self, f"_{step}")(data)

    def _read(self, terminal: HostileTerminal, merchant: Merchant) -> None:
        before = self.world.view().cards_left
        with self._honest(proves=True):
            verified = _answer_or_status(partial(_read_on, terminal))
        if isinstance(verified, StatusWord):
            assert verified is StatusWord.CONDITIONS_NOT_SATISFIED
            assert merchant.unpaid() >= READS
            assert self.world.view().cards_left == before
            return
        assert merchant.unpaid() < READS or self.lost_notes
        assert self.world.view().cards_left == before - 1
        self._wallet_says_what_is_open(merchant, verified.card.open_id)
        self.terminal, self.merchant = terminal, merchant
        self.current = Read(verified, _receipt(verified, merchant.identity))
        merchant.reads[self.current.id] = self.current

    def _wallet_says_what_is_open(self, merchant: Merchant, said: bytes) -> None:
        waiting = [one for one in merchant.unconfirmed() if one is not self.current]
        if said == NOTHING_OPEN:
            assert not waiting
            return
        told = merchant.reads[said]
        assert told in waiting or self.lost_notes
        approved = [one for one in waiting if one.result is Result.APPROVED]
        assert told.result is Result.APPROVED or not approved

    @rule(which=st.integers(0, 2), extended=st.booleans(), position=st.none() | st.integers(-64, 200))
    def impostor_asks_for_the_card(self, which: int, extended: bool, position: int | None) -> None:
        """A stranger, or a terminal whose words were changed on their way, or that left something out."""
        identity = (*self.identities[:2], self.stranger)[which]
        is_stranger = which == 2
        terminal = self._approach(
            identity, extended=extended, leaves_out_relay_check=not is_stranger and position is None
        )
        hello = terminal.hello().encode()
        told = hello if position is None else flip(hello, position)
        refused = self._refused(Command(0x80, Ins.GET_VIRTUAL_CARD, 1, 1, told, MAX_NE))
        left_out = not is_stranger and position is None
        assert refused is (
            StatusWord.CONDITIONS_NOT_SATISFIED if left_out else StatusWord.SECURITY_STATUS_NOT_SATISFIED
        )

    def _refused(self, command: Command) -> StatusWord:
        before = self.world.view()
        response = Response.decode(self.send(command.encode()))
        assert response.data == b""
        assert self.world.view() == before
        return response.sw

    # --- in the channel

    def _pay(self, data: st.DataObject) -> None:
        currency = data.draw(st.sampled_from([EURO, EURO, EURO, EURO, DOLLAR]))
        at_most = min(self.balance, NO_PIN_LIMIT)
        amount = data.draw(_amounts | st.sampled_from([max(at_most, 1), at_most + 1]))
        self._debit(Debit(amount, currency, date(2026, 7, 15), time(12, 0)))

    def _pay_again(self, _: st.DataObject) -> None:
        if self.debited is not None:
            self._debit(self.debited[0])

    def _debit(self, debit: Debit) -> None:
        assert self.terminal is not None
        assert self.current is not None
        current = self.current
        is_first = current.result is None
        with self._honest():
            answer = _answer_or_status(partial(self.terminal.session.debit, debit))
        if isinstance(answer, StatusWord):
            assert answer is StatusWord.CONDITIONS_NOT_SATISFIED
            assert not is_first
            assert self.debited is None or self.debited[0] != debit
            self._channel_is_over()
            return
        assert is_first or self.debited == (debit, answer.evidence)
        receipt = replace(current.receipt, debit=debit, result=answer.result)
        assert receipt.is_shown_by(answer.evidence, current.card.credential)
        if is_first and answer.result is Result.APPROVED:
            assert (debit.currency, debit.amount <= self.balance) == (EURO, True)
            self.balance -= debit.amount
        current.result, current.receipt, current.signature = answer.result, receipt, answer.evidence
        self.debited = debit, answer.evidence

    def _confirm(self, _: st.DataObject | None = None) -> None:
        assert self.terminal is not None
        assert self.merchant is not None
        assert self.current is not None
        with self._honest():
            answer = _answer_or_status(self.terminal.session.confirm)
        if isinstance(answer, StatusWord):
            assert answer is StatusWord.REFERENCED_DATA_NOT_FOUND
            assert self.current.result is None
            self._channel_is_over()
            return
        assert self.current.result is not None
        self.current.confirmed = True
        self._wallet_says_what_is_open(self.merchant, answer.open_id)

    def _settle(self, data: st.DataObject) -> None:
        """Cancel one of this terminal's transactions, this session's own one included, and perhaps confirm it."""
        assert self.terminal is not None
        assert self.merchant is not None
        known = data.draw(st.sampled_from(list(self.merchant.reads)))
        self._cancel(self.merchant.reads[known])
        if data.draw(st.booleans()):
            with self._honest():
                self.terminal.session.confirm(known)
            self.merchant.reads[known].confirmed = True

    def _cancel(self, read: Read) -> None:
        assert self.terminal is not None
        with self._honest():
            answer = self.terminal.session.cancel(read.id)
        if answer.result is Result.UNKNOWN:
            assert read.confirmed
            return
        if read.result is None:
            read.result = Result.CANCELLED
        assert answer.result is read.result
        receipt, certificate = replace(read.receipt, result=answer.result), read.card.credential
        signed = receipt.cancellation() if answer.result is Result.CANCELLED else receipt
        assert signed.is_shown_by(answer.evidence, certificate)

    def _settle_what_is_another_terminals(self, data: st.DataObject) -> None:
        assert self.terminal is not None
        made_up = data.draw(st.binary(min_size=16, max_size=16))
        others = [one for other in self.merchants if other is not self.merchant for one in other.reads]
        with self._honest():
            assert self.terminal.session.cancel((others or [made_up])[-1]).result is Result.UNKNOWN

    def _say_what_is_not_encrypted(self, data: st.DataObject) -> None:
        self._channel_is_over()
        plain = Command(0x80, data.draw(st.sampled_from(_IN_CHANNEL)), 0, 0, data.draw(st.binary(max_size=60)), 256)
        assert self._refused(plain) is StatusWord.SECURITY_STATUS_NOT_SATISFIED
        assert self._refused(plain) is StatusWord.CONDITIONS_NOT_SATISFIED

    def _leave_without_a_word(self, _: st.DataObject) -> None:
        self._field_goes()

    # --- what holds after every step

    @invariant()
    def only_an_approved_debit_changes_the_balance(self) -> None:
        assert self.world.view().balance == self.balance >= 0

    @invariant()
    def client_is_told_no_card_number(self) -> None:
        while not self.events.empty():
            told = self.events.get()
            assert told is not None
            numbers = [read.card.card.number for one in self.merchants for read in one.reads.values()]
            assert all(number.digits not in repr(told) for number in numbers)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._still_pays()
        finally:
            self.world.close()

    def _still_pays(self) -> None:
        last = Merchant(self.identities[2])
        self._read(self._approach(last.identity, extended=True), last)
        assert self.current is not None
        expected = Result.APPROVED if self.balance else Result.INSUFFICIENT_FUNDS
        self._debit(Debit(1, EURO, date(2026, 7, 15), time(12, 0)))
        assert self.current.result is expected
        self._confirm()
        self.only_an_approved_debit_changes_the_balance()


@st.composite
def _bit_flipped(draw: st.DrawFn, apdus: st.SearchStrategy[bytes]) -> bytes:
    apdu = draw(apdus.filter(len))
    return flip(apdu, draw(st.integers(0, len(apdu) - 1)))


def _answer_or_status(ask: Callable[[], Answer]) -> Answer | StatusWord:
    try:
        return ask()
    except StatusError as error:
        return error.status


def _read_on(terminal: HostileTerminal) -> VerifiedCard:
    """Do what follows RELAY CHECK, honestly."""
    terminal.key = X25519PrivateKey.generate()
    hello = terminal.hello()
    t2 = terminal.session.digests(hello).t2
    trust = Trust(terminal.identity.issuer, terminal.identity.certificate.valid_from, ())
    verified = verify(terminal.session.get_virtual_card(hello), t2, terminal.key, trust)
    terminal.session.open_channel(verified.keys)
    return verified


def _receipt(verified: VerifiedCard, identity: Identity) -> Receipt:
    nothing = Debit(1, EURO, date(2026, 7, 15), time(12, 0))
    return Receipt(
        1,
        1,
        certificate_hash(verified.credential),
        certificate_hash(identity.certificate),
        verified.card.counter,
        verified.keys.transaction_id,
        nothing,
        Result.APPROVED,
    )


def test_card_is_sound_whatever_is_said_to_it(made_home: Path) -> None:
    CardMachine.wallet = made_home / "wallet"
    CardMachine.identities = tuple(terminal_like(made_home) for _ in range(3))
    CardMachine.stranger = terminal_like(made_home, PrivateKey.generate())
    run_state_machine_as_test(
        CardMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
