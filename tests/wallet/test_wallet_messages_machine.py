# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Message channel: the real internal API on a thread, and a client that keeps to the rules only now and then.

The model says what each Message is answered; test_wallet_messages.py asks a real TEE process the same, case by case.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

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

from protocol.errors import DecodeError
from protocol.issuing import Anchors, decode_message
from protocol.signing import POINT_LENGTH
from protocol.vouchers import LoadRequest
from protocol.wire import Wire
from tests.wallet.near_wallet import NearTrustedWorld
from wallet.environment import shared_memory
from wallet.environment.message import MESSAGE_LENGTH, Kind, Message
from wallet.environment.shared_memory import REGION, SharedMemory
from wallet.tee.contract import (
    ApplyRequest,
    BegunTap,
    CardRequest,
    ChannelRequest,
    CommandId,
    Installation,
    LoadOrder,
    Nothing,
    Origin,
    StatementOrder,
    TeeResult,
)
from wallet.tee.internal_api import InternalApi

EURO = 978
_NO_PARAMETERS = (CommandId.BEGIN_TAP, CommandId.END_TAP, CommandId.ASK_CONSENT, CommandId.SHOW, CommandId.REPORT)
_OF_NO_USE = {TeeResult.SECURITY, TeeResult.BAD_STATE, TeeResult.BAD_FORMAT, TeeResult.ACCESS_DENIED}

Said = tuple[int, int]
"""Result and origin."""

_WELL_FORMED: dict[CommandId, st.SearchStrategy[Wire]] = {
    **dict.fromkeys(_NO_PARAMETERS, st.just(Nothing())),
    CommandId.GET_VIRTUAL_CARD: st.builds(
        CardRequest, st.binary(max_size=60), st.integers(0, 2), st.integers(0, 2), st.binary(max_size=300)
    ),
    CommandId.CHANNEL: st.builds(ChannelRequest, st.binary(min_size=4, max_size=4), st.binary(max_size=60)),
    CommandId.APPLY: st.builds(ApplyRequest, st.sampled_from([0, 840, EURO]), st.sampled_from([0, 1, 2, 65, 255])),
    CommandId.INSTALL: st.builds(Installation, st.binary(max_size=40), st.binary(max_size=40)),
    CommandId.REQUEST_LOAD: st.builds(LoadOrder, st.integers(1, 10**6), st.sampled_from([EURO, 840])),
    CommandId.REQUEST_STATEMENT: st.builds(StatementOrder, st.binary(min_size=16, max_size=16)),
}
_commands = st.sampled_from(CommandId) | st.sampled_from([0, 6, 99, 0xFFFFFFFF])


@dataclass(frozen=True)
class Request:
    """A Message and what lies in shared memory when it is sent."""

    message: Message
    payload: bytes


class ChangingMemory(SharedMemory):
    """The trusted side's mapping of memory that the other world changes right after each time it is read."""

    change: bytes | None = None

    def read_request(self, length: int) -> bytes:
        copied = super().read_request(length)
        if self.change is not None:
            self.write_request(self.change)
        return copied


class MessagesMachine(RuleBasedStateMachine):
    """One client of one trusted world, which ends and is started again when it is sent what is no Message."""

    wallet: ClassVar[Path]

    @initialize()
    def begin(self) -> None:
        self.world = NearTrustedWorld(self.wallet)
        self.before = self.world.view()
        self.nonces: set[bytes] = set()
        self._start()

    def _start(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.theirs = theirs
        descriptor = shared_memory.create()
        self.memory, self.trusted_memory = SharedMemory(descriptor), ChangingMemory(descriptor)
        api = InternalApi(theirs.fileno(), self.trusted_memory, self.world.application)
        self.service = threading.Thread(target=api.serve)
        self.service.start()
        self.sequence, self.session = 0, 0
        self.has_tap = self.has_nonce = False
        self.answered: list[Message] = []
        assert self._receive() == Message(Kind.ANSWER, 0, origin=Origin.TEE)

    def _stop(self) -> None:
        self.socket.close()
        self.service.join(20)
        assert not self.service.is_alive()
        self.theirs.close()
        self.memory.close()
        self.trusted_memory.close()

    def _receive(self) -> Message:
        data = self.socket.recv(4096)
        assert len(data) == MESSAGE_LENGTH
        return Message.decode(data)

    # --- what is answered, by the documents

    def _answer_to(self, request: Request) -> set[Said]:
        """Return what may be answered, and be in the state that follows."""
        message = request.message
        if message.sequence != self.sequence + 1 or message.length > REGION:
            return {(TeeResult.BAD_PARAMETERS, Origin.TEE)}
        self.sequence = message.sequence
        if message.kind is Kind.OPEN_SESSION:
            was, self.session = self.session, 1
            return {(TeeResult.BAD_STATE if was else TeeResult.SUCCESS, Origin.TEE if was else Origin.TRUSTED_APP)}
        if message.session != self.session or not self.session:
            return {(TeeResult.BAD_STATE, Origin.TEE)}
        if message.kind is Kind.CLOSE_SESSION:
            self.session, self.has_tap, self.has_nonce = 0, False, False
            return {(TeeResult.SUCCESS, Origin.TRUSTED_APP)}
        if message.kind is Kind.ANSWER:
            return {(TeeResult.BAD_PARAMETERS, Origin.TEE)}
        return {(result, Origin.TRUSTED_APP) for result in self._results(message.command, request.payload)}

    def _results(self, command: int, payload: bytes) -> set[TeeResult]:
        if command not in set(CommandId):
            return {TeeResult.NOT_SUPPORTED}
        try:
            self.world.application._entries[CommandId(command)].takes.decode(payload)
        except DecodeError:
            return {TeeResult.BAD_FORMAT}
        if command == CommandId.GET_VIRTUAL_CARD:
            had, self.has_nonce = self.has_nonce, False
            return {TeeResult.SECURITY if had else TeeResult.BAD_STATE}
        if command == CommandId.CHANNEL:
            return {TeeResult.BAD_STATE}
        if command in _NO_PARAMETERS:
            if command in (CommandId.BEGIN_TAP, CommandId.END_TAP):
                self.has_tap = self.has_nonce = command == CommandId.BEGIN_TAP
            return {TeeResult.SUCCESS}
        if command in (CommandId.APPLY, CommandId.REQUEST_LOAD):
            return {TeeResult.SUCCESS, TeeResult.BAD_PARAMETERS}
        return {TeeResult.SUCCESS} if command == CommandId.REQUEST_STATEMENT else _OF_NO_USE

    def _ask(self, request: Request) -> bytes:
        self.memory.write_request(request.payload)
        self.socket.send(request.message.encode())
        return self._heard(request)

    def _heard(self, request: Request) -> bytes:
        expected = self._answer_to(request)
        answer = self._receive()
        assert (answer.kind, answer.sequence) == (Kind.ANSWER, request.message.sequence)
        assert (answer.result, answer.origin) in expected, (TeeResult(answer.result), expected)
        assert answer.length <= REGION
        self.answered.append(request.message)
        said = self.memory.read_answer(answer.length)
        if answer.result != TeeResult.SUCCESS:
            assert said.decode()
        return said

    def _next(self, kind: Kind, command: int = 0, payload: bytes = b"") -> Request:
        return Request(Message(kind, self.sequence + 1, self.session, command, length=len(payload)), payload)

    # --- a client that keeps to the rules

    @rule()
    def open_session(self) -> None:
        self._ask(self._next(Kind.OPEN_SESSION))

    @rule()
    def close_session(self) -> None:
        self._ask(self._next(Kind.CLOSE_SESSION))

    @rule(data=st.data(), command=st.sampled_from(sorted(_WELL_FORMED)))
    def invoke(self, data: st.DataObject, command: CommandId) -> None:
        self._ask(self._next(Kind.INVOKE_COMMAND, command, data.draw(_WELL_FORMED[command]).encode()))

    @precondition(lambda self: self.session)
    @rule()
    def begin_tap(self) -> None:
        nonce = BegunTap.decode(self._ask(self._next(Kind.INVOKE_COMMAND, CommandId.BEGIN_TAP))).nonce
        assert nonce not in self.nonces
        self.nonces.add(nonce)

    # --- one that does not

    @rule(
        kind=st.sampled_from(Kind), ahead=st.sampled_from([1, 1, 1, 0, 2, -1, 1000]),
        session=st.sampled_from([0, 1, 1, 1, 2, 0xFFFF]), command=_commands, payload=st.binary(max_size=60),
        length=st.none() | st.sampled_from([0, 1, 23, 4096, REGION, REGION + 1, 2**31, 2**32 - 1]),
    )  # fmt: skip
    def say_what_does_not_fit(
        self, kind: Kind, ahead: int, session: int, command: int, payload: bytes, length: int | None
    ) -> None:
        size = len(payload) if length is None else length
        sequence = max(self.sequence + ahead, 0)
        self.memory.write_request(payload)
        read = self.memory.read_request(size) if size <= REGION else payload
        request = Request(Message(kind, sequence, session, command, length=size), read)
        self.socket.send(request.message.encode())
        self._heard(request)

    @precondition(lambda self: self.answered)
    @rule(data=st.data())
    def say_a_message_again(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.answered[-20:]))
        before = self.sequence
        self._ask(Request(old, b""))
        assert self.sequence == before or old.sequence == before + 1

    @rule(data=st.data(), count=st.integers(2, 8))
    def say_many_without_listening(self, data: st.DataObject, count: int) -> None:
        sequence = self.sequence
        self.memory.write_request(b"")
        asked = []
        for number in range(1, count + 1):
            ahead = number + data.draw(st.sampled_from([0, 0, 0, 1]))
            kind = data.draw(st.sampled_from([Kind.INVOKE_COMMAND, Kind.OPEN_SESSION, Kind.CLOSE_SESSION]))
            asked.append(Request(Message(kind, sequence + ahead, 1, CommandId.SHOW), b""))
            self.socket.send(asked[-1].message.encode())
        self._heard_without_payload(asked)

    def _heard_without_payload(self, asked: list[Request]) -> None:
        """Check the answers in their order; only the last one's payload is still in memory."""
        for request in asked:
            expected, answer = self._answer_to(request), self._receive()
            assert (answer.kind, answer.sequence) == (Kind.ANSWER, request.message.sequence)
            assert (answer.result, answer.origin) in expected

    @precondition(lambda self: self.session)
    @rule(checked=st.integers(1, 10**6), changed=st.integers(1, 10**6))
    def change_the_memory_after_it_was_read(self, checked: int, changed: int) -> None:
        self.trusted_memory.change = LoadOrder(changed, EURO).encode()
        said = self._ask(self._next(Kind.INVOKE_COMMAND, CommandId.REQUEST_LOAD, LoadOrder(checked, EURO).encode()))
        self.trusted_memory.change = None
        request = decode_message(said)
        assert isinstance(request, LoadRequest)
        assert request.amount == checked

    @precondition(lambda self: self.session)
    @rule(key=st.binary(min_size=POINT_LENGTH, max_size=POINT_LENGTH))
    def pin_other_anchors(self, key: bytes) -> None:
        anchors = Anchors(b"ISS1", key, key, b"ACQ1", key)
        self._ask(self._next(Kind.INVOKE_COMMAND, CommandId.PIN_ANCHORS, anchors.encode()))

    @rule(data=st.data())
    def say_what_is_no_message(self, data: st.DataObject) -> None:
        good = bytearray(self._next(Kind.INVOKE_COMMAND, CommandId.SHOW).message.encode())
        good[data.draw(st.integers(0, 4))] ^= data.draw(st.sampled_from([0x80, 0x40, 0x10]))
        self.socket.send(data.draw(st.just(bytes(good)) | st.binary(min_size=1, max_size=23) | st.just(bytes(25))))
        self.service.join(20)
        assert not self.service.is_alive()
        self.theirs.close()  # as the end of its process would
        assert self.socket.recv(4096) == b""
        self._stop()
        self.world.start_again()
        self._start()

    # --- what holds after every step

    @invariant()
    def nothing_that_was_said_is_money(self) -> None:
        now = self.world.view()
        assert (now.balance, now.loads, now.cards_left) == (
            self.before.balance,
            self.before.loads,
            self.before.cards_left,
        )
        assert not now.locked

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._still_serves()
        finally:
            self._stop()
            self.world.close()

    def _still_serves(self) -> None:
        if not self.session:
            self.open_session()
        self._ask(self._next(Kind.INVOKE_COMMAND, CommandId.SHOW))
        self.begin_tap()


def test_every_message_gets_the_documented_answer(made_home: Path) -> None:
    MessagesMachine.wallet = made_home / "wallet"
    run_state_machine_as_test(
        MessagesMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
