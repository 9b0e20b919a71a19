# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A terminal with its real journal, and a certified wallet that answers right, wrong, twice, half, or not at all."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from pos import identity as identities
from pos import terminal as terminals
from pos.identity import Identity
from pos.journal import Journal, Record, State
from pos.outcome import Outcome, OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol import channel
from protocol.apdu import Command, Response
from protocol.certificate import CredentialCertificate, Usage, failed_checks
from protocol.commands import Ins
from protocol.errors import CardRemovedError, CardSilentError
from protocol.messages import (
    NOTHING_OPEN,
    Cancel,
    Cancellation,
    Confirmed,
    Debit,
    DebitResult,
    Receipt,
    Result,
    Settled,
    certificate_hash,
)
from protocol.money import Amount
from protocol.signing import SIGNATURE_LENGTH, PrivateKey
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink, card_historical, contactless_atr
from protocol.transport.chaining import CardChaining
from tests.end_to_end.parties import flip
from tests.end_to_end.soft_wallet import SoftWallet, credential_like

EURO = 978
_NO_SIGNATURE = bytes(SIGNATURE_LENGTH)
_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Fate(Enum):
    """What becomes of one answer. DEAF: the wallet never got the command; SILENT: its answer is lost."""

    FINE = "fine"
    FLIP = "flip"
    CUT = "cut"
    GROW = "grow"
    STATUS = "status"
    NOISE = "noise"
    OLD = "old"
    SILENT = "silent"
    DEAF = "deaf"


@dataclass(frozen=True)
class Lie:
    """How a wallet departs from the truth in one charge; the defaults are the truth."""

    result: Result = Result.APPROVED
    signs_amount: int | None = None
    signs_with: str = "its own key"
    currency: int = EURO
    certificate: str = "good"
    tells_open: int | None = None
    settles_as: Result | None = None
    spoils_plaintext: bool = False


Spoiling = tuple[Fate, int, bytes, int]
"""What becomes of an answer, where in it, and with which bytes and status word."""

_statuses = st.sampled_from([0x6A82, 0x6985, 0x6982, 0x6283, 0x6F00, 0x6C10, 0x6110, 0x61FF, 0x9001, 0x0000])
_fate = st.tuples(st.sampled_from(Fate), st.integers(0, 400), st.binary(min_size=1, max_size=20), _statuses)
_fates = st.dictionaries(st.integers(0, 9) | st.integers(3, 4), _fate, max_size=2)
_lies = st.one_of(
    st.just(Lie()),
    st.builds(Lie, result=st.sampled_from(Result), settles_as=st.none() | st.sampled_from(Result)),
    st.builds(Lie, signs_amount=st.integers(1, 10**6)),
    st.builds(Lie, signs_with=st.just("another key"), settles_as=st.none() | st.just(Result.APPROVED)),
    st.builds(Lie, currency=st.just(840)),
    st.builds(Lie, certificate=st.sampled_from(["foreign", "of a terminal"])),
    st.builds(Lie, tells_open=st.integers(-1, 6), settles_as=st.none() | st.sampled_from(Result)),
    st.builds(Lie, spoils_plaintext=st.just(True)),
)


@dataclass
class Known:
    """What the wallet has signed about one transaction, if anything."""

    unsigned: Cancellation
    result: Result = Result.UNKNOWN
    signature: bytes = _NO_SIGNATURE


@dataclass
class LyingWallet(SoftWallet):
    """A certified wallet that remembers its transactions and says about them what `lie` tells it to."""

    lie: Lie = field(default_factory=Lie)
    known: dict[bytes, Known] = field(default_factory=dict)
    certificates: dict[str, CredentialCertificate] = field(default_factory=dict)
    other_key: PrivateKey = field(default_factory=PrivateKey.generate)

    def be(self, lie: Lie) -> None:
        self.lie, self.result, self.currency = lie, lie.result, lie.currency
        self.certificate = self.certificates[lie.certificate]
        self.receipt_key = self.other_key if lie.signs_with == "another key" else self.key
        self.debit_changes = {} if lie.signs_amount is None else {"amount": lie.signs_amount}
        self.edit_plaintext = self._edit

    def _edit(self, plaintext: bytes) -> bytes:
        told = plaintext[:-16] + self._open_id()
        return flip(told, 3) if self.lie.spoils_plaintext else told

    def _open_id(self) -> bytes:
        """Return the oldest one that nobody confirmed, or whatever the lie says: made up, settled long ago."""
        if self.lie.tells_open is None:
            own = self._keys.transaction_id if self._keys else NOTHING_OPEN
            return next((one for one in self.known if one != own), NOTHING_OPEN)
        everything = [b"made up by a liar", *self.known]
        return everything[(self.lie.tells_open + 1) % len(everything)][:16]

    def _virtual_card(self, command: Command) -> bytes:
        answer = super()._virtual_card(command)
        assert self._keys is not None
        assert self.certificate is not None
        new = self._keys.transaction_id
        self.known[new] = Known(Cancellation(1, 1, certificate_hash(self.certificate), self._terminal_hash, 1, new))
        return answer

    def _in_channel(self, command: Command) -> bytes:
        assert self._keys is not None
        plaintext = channel.open_command(self._keys, self._messages, command)
        if command.ins == Ins.DEBIT:
            body = self._debit(Debit.decode(plaintext))
        elif command.ins == Ins.CANCEL:
            body = self._settle(Cancel.decode(plaintext).transaction_id).encode()
        else:
            self.known.pop(plaintext or self._keys.transaction_id, None)
            body = Confirmed(self._open_id()).encode()
        sealed = channel.seal_response(self._keys, self._messages, command.ins, body)
        self._messages += 1
        return sealed

    def _debit(self, debit: Debit) -> bytes:
        assert self._keys is not None
        body = super()._debit(debit)
        answer = DebitResult.decode(body)
        known = self.known[self._keys.transaction_id]
        known.result, known.signature = answer.result, answer.evidence
        return body

    def _settle(self, transaction_id: bytes) -> Settled:
        known = self.known.get(transaction_id)
        if known is None:
            return Settled(self.lie.settles_as or Result.UNKNOWN, NOTHING_OPEN, _NO_SIGNATURE)
        if known.result is Result.UNKNOWN or self.lie.settles_as is Result.CANCELLED:
            key = self.receipt_key or self.key
            known.result, known.signature = Result.CANCELLED, key.sign(known.unsigned.signature_input())
        return Settled(self.lie.settles_as or known.result, NOTHING_OPEN, known.signature)


@dataclass
class BadField(CardLink):
    """The terminal's link to that wallet, which spoils answers; it calls `leaving` with each command that leaves."""

    wallet: LyingWallet
    fates: dict[int, Spoiling]
    leaving: Callable[[int], None]
    extended: bool
    asked: int = 0
    answers: list[bytes] = field(default_factory=lambda: [b"\x90\x00"])

    def __post_init__(self) -> None:
        self._chaining = CardChaining(lambda command: Response.decode(self._process(command.encode())))

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        self.wallet.activate()
        return Activation(contactless_atr(card_historical(extended=self.extended)))

    def transceive(self, apdu: bytes) -> bytes:
        self.leaving(apdu[1])
        fate, position, noise, status = self.fates.get(self.asked, (Fate.FINE, 0, b"", 0))
        self.asked += 1
        if fate is Fate.DEAF:
            raise CardSilentError("the card does not answer")
        answer = self._chaining.process(apdu)
        self.answers.append(answer)
        if fate is Fate.SILENT:
            raise CardRemovedError("the card has left the field")
        spoiled = {
            Fate.FLIP: flip(answer, position % len(answer), 1 << position % 8),
            Fate.CUT: answer[: position % len(answer)],
            Fate.GROW: answer[:-2] + noise + answer[-2:],
            Fate.STATUS: answer[:-2] + status.to_bytes(2, "big"),
            Fate.NOISE: noise,
            Fate.OLD: self.answers[-1 - position % len(self.answers)],
        }
        return spoiled.get(fate, answer)

    def _process(self, apdu: bytes) -> bytes:
        try:
            return self.wallet.process(apdu)
        except Exception:  # noqa: BLE001 - what a liar's wallet cannot make sense of, after an answer was spoiled
            return b"\x6f\x00"

    def deactivate(self) -> None:
        pass

    def close(self) -> None:
        pass


class PosMachine(RuleBasedStateMachine):
    """One terminal, one wallet, charge after charge."""

    home: ClassVar[Path]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="taplab-pos-", dir=_MEMORY))
        self.journal = Journal(self.folder)
        self.identity: Identity = identities.load(self.home / "pos")
        self.wallet = LyingWallet(self.home)
        assert self.wallet.certificate is not None
        self.wallet.certificates = {
            "good": self.wallet.certificate,
            "foreign": credential_like(self.home, self.wallet.key, self.wallet.other_key),
            "of a terminal": credential_like(self.home, self.wallet.key, usage=Usage.TERMINAL),
        }
        self.before: dict[bytes, Record] = {}

    @rule(
        cents=st.integers(1, 10**6), fates=_fates, lie=_lies, again=st.sampled_from([0, 0, 2]), extended=st.booleans()
    )
    def charge(self, cents: int, fates: dict[int, Spoiling], lie: Lie, again: int, extended: bool) -> None:
        amount, left = Amount.parse(f"{cents // 100}.{cents % 100:02d}", "EUR"), []

        def leaving(ins: int) -> None:
            left.append(ins)
            if ins == Ins.DEBIT:
                self._is_written_down(cents)

        self.wallet.be(lie)
        link = BadField(self.wallet, fates, leaving, extended)
        terminal = Terminal(self.identity, self.journal, TerminalOptions(again=again))
        outcome = terminal.charge(amount, link)
        self._is_true(outcome, cents, has_debited=Ins.DEBIT in left)
        self._a_record_leaves_open_once()
        for record in self._records().values():
            if record != self.before.get(record.transaction_id):
                self._is_signed_by_a_certified_credential(record)
        self.before = self._records()

    def _records(self) -> dict[bytes, Record]:
        return {one.transaction_id: one for one in self.journal.records()}

    def _is_written_down(self, cents: int) -> None:
        """DEBIT leaves: the journal holds it already, as open."""
        newest = self.journal.records(1)[0]
        assert (newest.state, newest.amount) == (State.OPEN, cents)
        assert newest.transaction_id not in self.before

    # --- what an outcome must be worth

    def _is_true(self, outcome: Outcome, cents: int, *, has_debited: bool) -> None:
        new = [one for one in self._records().values() if one.transaction_id not in self.before]
        assert bool(new) == has_debited
        assert all(one.amount == cents for one in new)
        approved = [one for one in new if one.state is State.APPROVED]
        assert len(approved) == outcome.approved
        assert (outcome.charged is True) == outcome.approved == (outcome.kind is OutcomeKind.APPROVED)
        if outcome.charged is False:
            assert all(one.state in (State.REFUSED, State.CANCELLED) for one in new)
        if outcome.charged is None:
            assert any(one.state is State.OPEN for one in new)
        if approved:
            assert outcome.receipt_verified
            assert Receipt.decode(approved[0].receipt).debit.amount == cents

    def _a_record_leaves_open_once(self) -> None:
        now = self._records()
        for transaction_id, old in self.before.items():
            written = now[transaction_id]
            if old.state is not State.OPEN:
                assert replace(written, confirmed=old.confirmed) == old
            assert (written.amount, written.receipt, written.credential) == (old.amount, old.receipt, old.credential)
            assert written.confirmed >= old.confirmed

    def _is_signed_by_a_certified_credential(self, record: Record) -> None:
        credential = CredentialCertificate.decode(record.credential)
        assert not failed_checks(credential, Usage.CREDENTIAL, self.identity.issuer, credential.valid_from)
        receipt = Receipt.decode(record.receipt)
        assert (receipt.transaction_id, receipt.debit.amount) == (record.transaction_id, record.amount)
        if record.state is State.CANCELLED:
            assert receipt.cancellation().is_shown_by(record.signature, credential)
        elif record.state is not State.OPEN:
            results = [one for one in Result if (one is Result.APPROVED) == (record.state is State.APPROVED)]
            said = [replace(receipt, result=one) for one in results]
            assert any(one.is_shown_by(record.signature, credential) for one in said)

    def teardown(self) -> None:
        if not hasattr(self, "journal"):
            return
        try:
            self._still_charges()
        finally:
            self.journal.close()
            shutil.rmtree(self.folder)

    def _still_charges(self) -> None:
        self.wallet.known.clear()
        self.wallet.be(Lie())
        link = BadField(self.wallet, {}, lambda _: None, extended=True)
        assert Terminal(self.identity, self.journal).charge(Amount.parse("1.00", "EUR"), link).approved


def test_terminal_is_sound_whatever_a_card_answers(made_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    clock = SimpleNamespace(time=time.time, time_ns=time.time_ns, monotonic=lambda: next(ticks), sleep=lambda _: None)
    monkeypatch.setattr(terminals, "time", clock)
    PosMachine.home = made_home
    run_state_machine_as_test(
        PosMachine,
        settings=settings(
            max_examples=30,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
