# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The trusted world's agent for the Trusted Key: pairing, consent on the Key's screen, its signature, its counter.

The trusted world has no link. What it wants to say to the Key is yielded, and what came back is sent in; the client world
carries both, and through the channel reads neither. Nothing here waits: a question is asked, and looked for again later.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar

from construct import Construct, GreedyBytes, Int16ub, Int64ub, Prefixed
from cryptography.hazmat.primitives.asymmetric import ec

from protocol import channel_certificate, scp03, scp11, signing
from protocol.apdu import MAX_NE, Command, Response
from protocol.certificate import TerminalCertificate
from protocol.channel_certificate import CardVerifiableCertificate, KeyUse
from protocol.commands import KEY_NAME, select
from protocol.errors import Check, DecodeError, TapLabError, VerificationError
from protocol.key_commands import (
    CounterStep,
    CounterValue,
    GenerateKey,
    KeyEvent,
    KeyFci,
    KeyIns,
    KeyKind,
    KeyList,
    KeyModule,
    Named,
    NewCounter,
    PaymentQuestion,
    QuestionNumber,
    QuestionState,
    ReceiptOrder,
    Reply,
    Rule,
    event_length,
    is_done,
    key_command,
    pairing_code,
)
from protocol.key_commands import KeyUse as SlotUse
from protocol.layout import Fields
from protocol.messages import Debit, Receipt, SecretField
from protocol.scp11 import Variant
from protocol.secret import Secret
from protocol.signing import PrivateKey
from protocol.status import StatusError, StatusWord, raise_for_status
from protocol.wire import Wire
from wallet.tee.key_channel import HostIdentity, KeyChannel, PairedKey, open_scp11a, open_scp11b
from wallet.tee.state import MOVED_OUT, ROLLED_BACK
from wallet.tee.storage import SealedStorage
from wallet.tee.trusted_ui import Prompt, TrustedUi

HOST = b"key/host"
PAIRED = b"key/paired"
EPOCH = b"key/epoch/"
KEPT_AT_REISSUE = (HOST, PAIRED)  # how far the Key has counted is learnt anew: what was put back is over
NAME_BYTES = 8
_QUESTION_SECONDS = 60
_LOOK_AGAIN_MS = 150
_COUNTER = b"epoch/"
_YEARS = timedelta(days=20 * 365)
_CURVE = ec.SECP256R1()
_PAIR_LOOK = 0x01
_NO_CERTIFICATE = bytes.fromhex("3003020100")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A command for the Key, and how long to wait before it is sent."""

    command: Command
    pause_ms: int = 0


Known = TypeVar("Known")
Talk = Generator[Outgoing, bytes, Known]
"""What is said to the Key, one command after the other; b"" comes back when it cannot be reached."""


class KeyGoneError(TapLabError):
    """The Key cannot be reached, or is not the one that is paired."""


@dataclass(frozen=True, slots=True)
class _Host(Wire):
    """By what the Key knows this trusted world."""

    scalar: Secret
    certificate: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "scalar" / SecretField(32), "certificate" / Prefixed(Int16ub, GreedyBytes)
    )


@dataclass(frozen=True, slots=True)
class _Epoch(Wire):
    """How often the Key has counted for this storage."""

    value: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("value" / Int64ub)


@dataclass(slots=True)
class Line:
    """A Key that was selected, and the channel to it."""

    modules: tuple[KeyModule, ...]
    channel: KeyChannel
    event_bytes: int = 0


def slot_name(credential_key: bytes) -> bytes:
    """Return the name of the one-time key that backs the credential of this public key."""
    return hashlib.sha256(credential_key).digest()[:NAME_BYTES]


class KeyAgent:
    """One trusted world and the Key that it is paired with."""

    def __init__(self, storage: SealedStorage, ui: TrustedUi, now: Callable[[], float]) -> None:
        """Keep the pairing in `storage`, ask for it on `ui`; `now` is in seconds since 1970, for certificates."""
        self._storage = storage
        self._ui = ui
        self._now = now
        self._newest: Line | None = None

    # --- pairing

    @property
    def paired(self) -> bytes:
        """The first eight bytes of the SHA-256 of the paired Key's certificate; empty without a Key."""
        certificate = self._storage.get(PAIRED)
        return hashlib.sha256(certificate).digest()[:NAME_BYTES] if certificate else b""

    def pair(self) -> Talk[bool]:
        """Take in the Key that is there: its certificate, a code that both sides show, a yes on both.

        False when somebody said no or did not answer; KeyGoneError, StatusError or VerificationError when it cannot be.
        """
        modules = yield from self._select()
        if KeyModule.CHANNEL not in modules or KeyModule.INTERACTION not in modules:
            raise KeyGoneError("this Key cannot be paired: it has no channel, or no screen to ask its user on")
        certificate = yield from self._leaf()
        line = Line(modules, open_scp11b(PairedKey(certificate), self._moment()))
        yield from self._shake(line)
        host = self._host()
        state = yield from self._ask(line, KeyIns.PAIR, host.certificate)
        code = pairing_code(certificate, host.certificate)
        if not self._ui.confirm(Prompt(f"Pair with the Key that shows {code}?")):
            yield from self._select()  # the question on its screen goes with the session
            return False
        if not (yield from self._answered(line, KeyIns.PAIR, state, p1=_PAIR_LOOK)):
            return False
        before = self._storage.get(PAIRED)
        self._storage.commit({PAIRED: certificate})
        try:
            yield from self.count((yield from self.opened()))
        except TapLabError:
            if not self.has_found_a_copy:
                self._storage.commit({PAIRED: before})
            raise
        return True

    @property
    def has_found_a_copy(self) -> bool:
        """Whether a Key has shown that this storage was put back."""
        return self._storage.get(ROLLED_BACK) is not None

    def forget(self) -> None:
        """Forget the Key; the Key keeps its half of the pairing until its owner removes it.

        How far it has counted is not forgotten: pairing again must not hide that storage was put back. A purse that was moved
        there is: this wallet is free for a new one.
        """
        self._storage.commit({PAIRED: None, MOVED_OUT: None})
        self._newest = None

    def _leaf(self) -> Talk[bytes]:
        command = scp11.get_certificates(Variant.SCP11B, 1)
        response = yield from self._say(command)
        raise_for_status(scp11.ChannelIns(command.ins).title, response.sw)
        try:
            chain = scp11.split_certificates(response.data)
        except DecodeError:
            raise VerificationError(Check.CERTIFICATE_FORMAT) from None
        if not chain:
            raise VerificationError(Check.CERTIFICATE_FORMAT)
        return chain[-1]

    def _host(self) -> _Host:
        stored = self._storage.get(HOST)
        if stored is not None:
            return _Host.decode(stored)
        host = _made_host(self._moment())
        self._storage.commit({HOST: host.encode()})
        return host

    # --- in a payment

    def ask_for(self, terminal: TerminalCertificate, debit: Debit) -> Talk[bool]:
        """Let the Key ask its user for exactly this payment; False for anything but a press on OK."""
        question = PaymentQuestion(_QUESTION_SECONDS, debit.amount, debit.currency, terminal)
        try:
            line = yield from self.opened()
            yield from self.count(line)
            state = yield from self._ask(line, KeyIns.CONFIRM_PAYMENT, question)
            return (yield from self._answered(line, KeyIns.POLL, state))
        except (KeyGoneError, StatusError, VerificationError, DecodeError):
            return False

    def make_keys(self, names: Sequence[bytes], kept: Collection[bytes]) -> Talk[tuple[bytes, ...]]:
        """Let the Key make a one-time key of each name and return the points; an error when it does not.

        Keys of ours that are not `kept` go: their cards were shown and not paid with, or never came.
        """
        line = yield from self.opened()
        listed = KeyList.decode((yield from self.secured(line, KeyIns.LIST_KEYS)).data)
        for one in listed.keys:
            if one.use is SlotUse.RECEIPT and one.rule is Rule.CREATOR and one.name not in kept:
                yield from self.secured(line, KeyIns.DELETE_KEY, Named(one.name))
        points = []
        for name in names:
            order = GenerateKey(name, KeyKind.P256, SlotUse.RECEIPT, Rule.CREATOR)
            response = yield from self.secured(line, KeyIns.GENERATE_KEY, order)
            if len(response.data) != signing.POINT_LENGTH:
                raise VerificationError(Check.CHANNEL)
            points.append(response.data)
        return tuple(points)

    def co_sign(self, name: bytes, receipt: Receipt, point: bytes) -> Talk[bytes]:
        """Return the Key's signature over `receipt`, checked; b"" when there is none."""
        try:
            line = yield from self.opened()
            response = yield from self.secured(line, KeyIns.SIGN_RECEIPT, ReceiptOrder(name, receipt))
        except (KeyGoneError, StatusError, VerificationError, DecodeError):
            return b""
        good = len(response.data) == signing.SIGNATURE_LENGTH and signing.is_valid(
            point, response.data, receipt.co_signature_input()
        )
        return response.data if good else b""

    def fetch(self) -> Talk[KeyEvent | None]:
        """Return what the user began on the Key, if anything."""
        line = yield from self.opened()
        yield from self.secured(line, KeyIns.CLEAR)
        if not line.event_bytes:
            return None
        return KeyEvent.decode((yield from self.secured(line, KeyIns.FETCH)).data)

    # --- the counter

    def count(self, line: Line) -> Talk[None]:
        """Advance storage, then the Key; storage that is behind the Key was put back, freshness counter and all."""
        if KeyModule.COMPUTING not in line.modules:
            return
        place = EPOCH + self.paired
        stored = self._storage.get(place)
        value = yield from self._counted(line)
        if stored is not None and value > _Epoch.decode(stored).value:
            self._storage.commit({ROLLED_BACK: b"\x01"})
            raise KeyGoneError("the Key has counted further than this storage: it was put back")
        self._storage.commit({place: _Epoch(value + 1).encode()})
        yield from self._counter(line, CounterStep.ADVANCE, Named(self._counter_name()))

    def _counted(self, line: Line) -> Talk[int]:
        """Return how far the Key has counted for this trusted world; it begins when it never has.

        A refusal is no news: anybody on the way could have said it. What counts is an answer with a MAC.
        """
        name = self._counter_name()
        try:
            return (yield from self._counter(line, CounterStep.READ, Named(name)))
        except StatusError:
            return (yield from self._counter(line, CounterStep.CREATE, NewCounter(name, Rule.CREATOR)))

    def _counter_name(self) -> bytes:
        """Return the name of this trusted world's counter: a Key may be paired with several."""
        return _COUNTER + hashlib.sha256(self._host().certificate).digest()[:NAME_BYTES]

    def _counter(self, line: Line, step: CounterStep, body: Wire) -> Talk[int]:
        response = yield from self.secured(line, KeyIns.COUNTER, body, p1=step)
        return CounterValue.decode(response.data).value

    # --- the line

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)

    def _say(self, command: Command, pause_ms: int = 0) -> Talk[Response]:
        answer = yield Outgoing(command, pause_ms)
        if not answer:
            raise KeyGoneError(
                "the Key cannot be reached; see that `tap-key serve` runs, or say where it is with --key LINK"
            )
        return Response.decode(answer)

    def _select(self) -> Talk[tuple[KeyModule, ...]]:
        response = yield from self._say(select(KEY_NAME))
        if response.sw is not StatusWord.OK:
            raise KeyGoneError("what is there is no Trusted Key")
        try:
            return KeyFci.decode(response.data).offer.modules
        except DecodeError:
            raise KeyGoneError("what is there is no Trusted Key") from None

    def opened(self) -> Talk[Line]:
        """Open SCP11a with the paired Key."""
        certificate = self._storage.get(PAIRED)
        if certificate is None:
            raise KeyGoneError("no Key is paired: tap-wallet pair")
        host = self._host()
        modules = yield from self._select()
        key = ec.derive_private_key(int.from_bytes(host.scalar, "big"), _CURVE)
        identity = HostIdentity(key, (host.certificate,))
        line = Line(modules, open_scp11a(identity, PairedKey(certificate), self._moment()))
        yield from self._shake(line)
        return line

    def _shake(self, line: Line) -> Talk[None]:
        self._newest = line
        while (command := line.channel.next_command()) is not None:
            response = yield from self._say_on(line, command)
            line.channel.take(response)

    def _say_on(self, line: Line, command: Command, pause_ms: int = 0) -> Talk[Response]:
        """Say a command on a line, if it is the newest one by the time of the answer.

        The Key has one session at a time. An answer of an earlier one was held back, and what it says may be so no longer.
        """
        response = yield from self._say(command, pause_ms)
        if line is not self._newest:
            raise KeyGoneError("another conversation with the Key has begun since; do it again")
        return response

    def secured(
        self, line: Line, ins: KeyIns, body: Wire | bytes = b"", *, p1: int = 0, pause_ms: int = 0
    ) -> Talk[Response]:
        """Say one command through the channel; StatusError when the Key refuses it."""
        command = line.channel.wrap(key_command(ins, body, p1=p1, ne=MAX_NE))
        response = line.channel.unwrap((yield from self._say_on(line, command, pause_ms)))
        line.event_bytes = event_length(response.sw)
        if not is_done(response.sw):
            raise_for_status(ins.title, response.sw)
        return response

    def _ask(self, line: Line, ins: KeyIns, body: Wire | bytes) -> Talk[QuestionState]:
        return QuestionState.decode((yield from self.secured(line, ins, body)).data)

    def _answered(self, line: Line, ins: KeyIns, state: QuestionState, *, p1: int = 0) -> Talk[bool]:
        """Look until the question has its answer. The Key ends it after a minute; who holds it longer has no yes."""
        looks = 2 * 1000 * _QUESTION_SECONDS // _LOOK_AGAIN_MS
        for _ in range(looks):
            look = QuestionNumber(state.number)
            response = yield from self.secured(line, ins, look, p1=p1, pause_ms=_LOOK_AGAIN_MS)
            now = QuestionState.decode(response.data)
            if now.number != state.number:
                return False
            if now.reply is not Reply.PENDING:
                return now.reply is Reply.CONFIRMED
        return False


def warm_up() -> None:
    """Do once what a channel needs: certificates read and refused, key agreement, messages there and back."""
    now = datetime.now(UTC)
    host = _made_host(now)
    channel_certificate.read(host.certificate)
    with contextlib.suppress(DecodeError):
        channel_certificate.read(_NO_CERTIFICATE)
    ephemeral = ec.generate_private_key(_CURVE)
    shared = scp11.exchange(ephemeral, scp11.point_of(ephemeral.public_key()))
    state = scp11.start(scp11.derive(shared, shared), bytes(scp11.RECEIPT_LENGTH))
    state, command = scp03.wrap_command(state, key_command(KeyIns.LIST_KEYS, b"\0"))
    with contextlib.suppress(VerificationError):
        scp03.unwrap_response(state, Response(bytes(24), StatusWord.OK))
    command.encode()


def _made_host(now: datetime) -> _Host:
    """Return a new key for key agreement, with a certificate that says no more than that it is one."""
    own = PrivateKey.generate()
    key = ec.derive_private_key(int.from_bytes(own.scalar(), "big"), _CURVE)
    serial = os.urandom(NAME_BYTES)
    unsigned = CardVerifiableCertificate(
        serial,
        serial,
        serial,
        KeyUse.KEY_AGREEMENT,
        now.date(),
        (now + _YEARS).date(),
        scp11.point_of(key.public_key()),
        bytes(signing.SIGNATURE_LENGTH),
    )
    return _Host(own.scalar(), channel_certificate.issue(unsigned, own).encode())
