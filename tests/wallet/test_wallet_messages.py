# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Message channel of a real TEE, driven from the client's end by hand: malformed, out of order, flooded, raced."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.home import Home
from issuer.service import Issuer
from lab.fixtures import Setup, set_up_issuer, set_up_wallet
from protocol.errors import TapLabError
from protocol.issuing import Application, decode_message
from protocol.vouchers import LoadRequest, Voucher
from wallet.environment import shared_memory
from wallet.environment.message import MESSAGE_LENGTH, Kind, Message
from wallet.environment.shared_memory import REGION, SharedMemory
from wallet.phone import PhoneOptions, start_of
from wallet.tee.contract import (
    ApplyRequest,
    BegunTap,
    CommandId,
    Dialogue,
    LoadOrder,
    Nothing,
    Origin,
    TeeResult,
    WalletView,
)
from wallet.tee.contract import Report as TeeReport

EUR = 978


class RawTee:
    """A TEE process, and this test at the other end of its socket and its memory."""

    def __init__(self, wallet: Path) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptor = shared_memory.create()
        self.memory = SharedMemory(self.descriptor)
        self.bytes = mmap.mmap(self.descriptor, 2 * REGION)
        self.process = subprocess.Popen(
            start_of(wallet, PhoneOptions()).arguments(theirs.fileno(), self.descriptor),
            pass_fds=(theirs.fileno(), self.descriptor),
            env={},
            start_new_session=True,
        )
        theirs.close()
        self.socket.settimeout(20)
        self.sequence = 0
        self.ready = self.receive()

    def receive(self) -> Message:
        return Message.decode(self.socket.recv(4096))

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def number(self) -> int:
        self.sequence += 1
        return self.sequence

    def ask(self, kind: Kind, command: int = 0, payload: bytes = b"", session: int = 1) -> tuple[Message, bytes]:
        """Send a well-formed Message under the next number and return the answer and its payload."""
        self.memory.write_request(payload)
        self.send(Message(kind, self.number(), session, command, length=len(payload)).encode())
        answer = self.receive()
        assert (answer.kind, answer.sequence) == (Kind.ANSWER, self.sequence)
        return answer, self.memory.read_answer(answer.length)

    def invoke(self, command: int, payload: bytes = b"") -> tuple[Message, bytes]:
        return self.ask(Kind.INVOKE_COMMAND, command, payload)

    def open(self) -> RawTee:
        answer, _ = self.ask(Kind.OPEN_SESSION, session=0)
        assert (answer.result, answer.session) == (TeeResult.SUCCESS, 1)
        return self

    def view(self) -> WalletView:
        answer, data = self.invoke(CommandId.SHOW)
        assert answer.result == TeeResult.SUCCESS
        return WalletView.decode(data)

    def close(self) -> None:
        self.socket.close()
        self.process.wait(10)
        self.memory.close()
        self.bytes.close()
        os.close(self.descriptor)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """An issuer and a wallet with 100.00 EUR."""
    made = Home(tmp_path_factory.mktemp("home"))
    set_up_issuer(made)
    set_up_wallet(made, Setup())
    return made


@pytest.fixture(scope="module")
def tee(home: Home) -> Iterator[RawTee]:
    """The TEE process of that wallet with a session; every test leaves it as it was."""
    raw = RawTee(home.wallet).open()
    yield raw
    raw.close()


@pytest.fixture
def empty_wallet(tmp_path: Path) -> Path:
    """The folder of a wallet that has not applied for anything."""
    for folder in ("device", "tee"):
        (tmp_path / folder).mkdir()
    return tmp_path


@pytest.fixture
def new_tee(empty_wallet: Path) -> Iterator[RawTee]:
    """A TEE process of an empty wallet, before any session."""
    raw = RawTee(empty_wallet)
    yield raw
    raw.close()


# --- what is no Message ends the process, since our client never sends such a thing


def _changed(at: int, value: int) -> bytes:
    good = bytearray(Message(Kind.INVOKE_COMMAND, 2, 1, CommandId.SHOW).encode())
    good[at] = value
    return bytes(good)


_NO_MESSAGES = {
    "1 byte": b"T",
    "one byte short": bytes(Message(Kind.INVOKE_COMMAND, 2, 1, CommandId.SHOW).encode()[:-1]),
    "one byte long": Message(Kind.INVOKE_COMMAND, 2, 1, CommandId.SHOW).encode() + b"\0",
    "two in one": Message(Kind.INVOKE_COMMAND, 2, 1, CommandId.SHOW).encode() * 2,
    "very long": bytes(60_000),
    "wrong magic": _changed(0, ord("X")),
    "kind 0": _changed(4, 0),
    "kind 5": _changed(4, 5),
    "kind 255": _changed(4, 255),
    "empty": b"",
}


@pytest.mark.attack("I4")
@pytest.mark.parametrize("data", _NO_MESSAGES.values(), ids=_NO_MESSAGES)
def test_what_is_no_message_is_never_answered_and_ends_the_process(new_tee: RawTee, data: bytes) -> None:
    new_tee.open().send(data)
    assert new_tee.socket.recv(MESSAGE_LENGTH) == b""
    assert new_tee.process.wait(10) == 0


def _applied_keys(tee: RawTee) -> tuple[bytes, ...]:
    answer, data = tee.invoke(CommandId.APPLY, ApplyRequest(EUR, 5).encode())
    assert answer.result == TeeResult.SUCCESS
    application = decode_message(Dialogue.decode(data).answer)
    assert isinstance(application, Application)
    return application.credential_keys


def test_nothing_is_lost_when_the_process_ended_so(empty_wallet: Path, new_tee: RawTee) -> None:
    before = _applied_keys(new_tee.open())
    new_tee.send(b"T")
    new_tee.process.wait(10)
    again = RawTee(empty_wallet).open()
    assert _applied_keys(again) == before
    again.close()


# --- Messages that do not fit


@pytest.mark.attack("I4")
@pytest.mark.parametrize("ahead", [-1, 0, 2, 1000])
def test_a_message_out_of_sequence_is_refused_and_the_right_one_still_works(tee: RawTee, ahead: int) -> None:
    tee.send(Message(Kind.INVOKE_COMMAND, tee.sequence + ahead, 1, CommandId.SHOW).encode())
    answer = tee.receive()
    assert (answer.result, answer.origin) == (TeeResult.BAD_PARAMETERS, Origin.TEE)
    assert tee.view().balance >= 100_00


@pytest.mark.parametrize("session", [0, 2, 0xFFFF])
def test_an_unknown_session_is_refused(tee: RawTee, session: int) -> None:
    answer, _ = tee.ask(Kind.INVOKE_COMMAND, CommandId.SHOW, session=session)
    assert (answer.result, answer.origin) == (TeeResult.BAD_STATE, Origin.TEE)
    assert tee.view().balance >= 100_00


def test_no_command_works_before_a_session_is_open(new_tee: RawTee) -> None:
    for command, session in itertools.product(CommandId, (0, 1)):
        answer, _ = new_tee.ask(Kind.INVOKE_COMMAND, command, session=session)
        assert (answer.result, answer.origin) == (TeeResult.BAD_STATE, Origin.TEE)


def test_a_second_session_is_refused_and_the_first_one_lives(tee: RawTee) -> None:
    answer, _ = tee.ask(Kind.OPEN_SESSION, session=0)
    assert (answer.result, answer.origin) == (TeeResult.BAD_STATE, Origin.TEE)
    assert tee.view().balance >= 100_00


def test_nothing_works_in_a_closed_session_and_another_can_be_opened(tee: RawTee) -> None:
    assert tee.ask(Kind.CLOSE_SESSION)[0].result == TeeResult.SUCCESS
    assert tee.invoke(CommandId.SHOW)[0].result == TeeResult.BAD_STATE
    assert tee.open().view().balance >= 100_00


def test_a_closed_session_takes_its_tap_with_it(tee: RawTee) -> None:
    assert tee.invoke(CommandId.BEGIN_TAP)[0].result == TeeResult.SUCCESS
    tee.ask(Kind.CLOSE_SESSION)
    tee.open()
    assert tee.invoke(CommandId.CHANNEL, bytes(4))[0].result == TeeResult.BAD_STATE


def test_an_answer_is_no_request(tee: RawTee) -> None:
    answer, _ = tee.ask(Kind.ANSWER)
    assert (answer.result, answer.origin) == (TeeResult.BAD_PARAMETERS, Origin.TEE)


@pytest.mark.attack("I4")
@pytest.mark.parametrize("command", [0, 17, 19, 30, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_unknown_command_is_not_supported(tee: RawTee, command: int) -> None:
    answer, _ = tee.invoke(command)
    assert (answer.result, answer.origin) == (TeeResult.NOT_SUPPORTED, Origin.TRUSTED_APP)


@pytest.mark.attack("I4")
@pytest.mark.parametrize("length", [REGION + 1, 2 * REGION, 2**31, 2**32 - 1])
def test_a_length_beyond_the_memory_is_refused(tee: RawTee, length: int) -> None:
    tee.send(Message(Kind.INVOKE_COMMAND, tee.sequence + 1, 1, CommandId.SHOW, length=length).encode())
    answer = tee.receive()
    assert (answer.result, answer.origin) == (TeeResult.BAD_PARAMETERS, Origin.TEE)
    assert tee.view().balance >= 100_00


def test_the_greatest_length_is_read_and_refused_by_the_application(tee: RawTee) -> None:
    answer, _ = tee.invoke(CommandId.SHOW, bytes(REGION))
    assert (answer.result, answer.origin) == (TeeResult.BAD_FORMAT, Origin.TRUSTED_APP)


# --- parameters that make no sense


@pytest.mark.parametrize(
    "command", [CommandId.BEGIN_TAP, CommandId.END_TAP, CommandId.ASK_CONSENT, CommandId.SHOW, CommandId.REPORT]
)
def test_a_command_without_parameters_takes_none(tee: RawTee, command: CommandId) -> None:
    assert tee.invoke(command, b"\x01")[0].result == TeeResult.BAD_FORMAT
    assert tee.invoke(command)[0].result == TeeResult.SUCCESS


@given(command=st.sampled_from(CommandId), payload=st.binary(max_size=300))
@settings(deadline=None, max_examples=400)
def test_any_bytes_to_any_command_are_answered_with_a_result(tee: RawTee, command: CommandId, payload: bytes) -> None:
    answer, _ = tee.invoke(command, payload)
    assert TeeResult(answer.result) is not TeeResult.TARGET_DEAD
    assert answer.origin == Origin.TRUSTED_APP
    assert tee.process.poll() is None


def _load_request(tee: RawTee, amount: int) -> LoadRequest:
    answer, data = tee.invoke(CommandId.REQUEST_LOAD, LoadOrder(amount, EUR).encode())
    assert answer.result == TeeResult.SUCCESS
    request = decode_message(data)
    assert isinstance(request, LoadRequest)
    return request


def _voucher(home: Home, tee: RawTee, amount: int) -> Voucher:
    issuer = Issuer(home.issuer)
    voucher = decode_message(issuer.handle(b"\x03" + _load_request(tee, amount).encode()))
    issuer.close()
    assert isinstance(voucher, Voucher)
    return voucher


def test_a_voucher_with_any_byte_changed_is_refused(home: Home, tee: RawTee) -> None:
    good = _voucher(home, tee, 1_00).encode()
    before = tee.view().balance
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 0x01]) + good[at + 1 :]
        assert tee.invoke(CommandId.LOAD, bad)[0].result in (TeeResult.SECURITY, TeeResult.BAD_FORMAT)
    assert tee.view().balance == before
    assert tee.invoke(CommandId.LOAD, good)[0].result == TeeResult.SUCCESS
    assert tee.view().balance == before + 1_00


@pytest.mark.parametrize("count", [0, 65, 255])
def test_an_impossible_application_does_not_spoil_the_next_one(new_tee: RawTee, count: int) -> None:
    refused, _ = new_tee.open().invoke(CommandId.APPLY, ApplyRequest(EUR, count).encode())
    assert refused.result != TeeResult.SUCCESS
    assert len(_applied_keys(new_tee)) == 5


# --- flood


@pytest.mark.attack("I4")
def test_two_thousand_messages_without_a_pause_are_answered_in_order(tee: RawTee) -> None:
    answers: list[int] = []
    first = tee.sequence + 1
    reader = threading.Thread(target=lambda: answers.extend(tee.receive().sequence for _ in range(2000)))
    reader.start()
    for _ in range(2000):
        tee.send(Message(Kind.INVOKE_COMMAND, tee.number(), 1, CommandId.SHOW).encode())
    reader.join(30)
    assert answers == list(range(first, first + 2000))
    assert tee.view().balance >= 100_00


def test_a_client_that_never_reads_its_answers_is_the_only_one_to_suffer(tee: RawTee) -> None:
    tee.socket.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            tee.send(Message(Kind.INVOKE_COMMAND, tee.sequence + 1, 1, CommandId.SHOW).encode())
            sent += bool(tee.number())
    tee.socket.settimeout(20)
    assert [tee.receive().result for _ in range(sent)] == [TeeResult.SUCCESS] * sent
    assert tee.view().balance >= 100_00


# --- shared memory


@pytest.mark.requirement("A3")
@pytest.mark.parametrize("size", [0, 1, 2 * REGION - 1, 2 * REGION + 1, 4 * REGION])
def test_shared_memory_cannot_be_resized(tee: RawTee, size: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(tee.descriptor, size)
    assert tee.view().balance >= 100_00


@pytest.mark.requirement("A3")
def test_the_seals_cannot_be_changed(tee: RawTee) -> None:
    seals = fcntl.fcntl(tee.descriptor, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    with pytest.raises(PermissionError):
        fcntl.fcntl(tee.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@pytest.mark.requirement("A3")
def test_a_message_has_one_size_and_the_payload_lies_in_shared_memory_only(tee: RawTee) -> None:
    payload = LoadOrder(0x1122334455, EUR).encode()
    tee.memory.write_request(payload)
    request = Message(Kind.INVOKE_COMMAND, tee.number(), 1, CommandId.REQUEST_LOAD, length=len(payload)).encode()
    tee.send(request)
    answer = tee.socket.recv(4096)
    data = tee.memory.read_answer(Message.decode(answer).length)
    assert len(request) == len(answer) == MESSAGE_LENGTH
    assert (payload[:5] in request, data[:5] in answer) == (False, False)
    assert isinstance(decode_message(data), LoadRequest)
    assert tee.bytes[REGION : REGION + len(data)] == data


@pytest.mark.attack("I3")
def test_what_was_copied_does_not_change_with_the_memory() -> None:
    memory = SharedMemory(shared_memory.create())
    memory.write_request(b"checked")
    copy = memory.read_request(7)
    memory.write_request(b"changed")
    assert copy == b"checked"
    memory.close()


def test_what_is_too_long_for_the_memory_is_an_error_of_ours() -> None:
    memory = SharedMemory(shared_memory.create())
    with pytest.raises(TapLabError, match="do not fit into the memory"):
        memory.write_request(bytes(REGION + 1))
    memory.close()


@pytest.mark.parametrize("length", [-1, REGION + 1])
def test_nobody_reads_beyond_the_memory(length: int) -> None:
    memory = SharedMemory(shared_memory.create())
    with pytest.raises(ValueError, match="does not fit the shared memory"):
        memory.read_answer(length)
    memory.close()


class Flipper:
    """Writes two payloads in turn, as fast as it can, while the TEE reads them."""

    def __init__(self, tee: RawTee, *payloads: bytes) -> None:
        self._write = tee.memory.write_request
        self._payloads = payloads
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            for payload in self._payloads:
                self._write(payload)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.attack("I3")
def test_a_payload_changed_while_it_is_checked_never_counts(home: Home, tee: RawTee) -> None:
    before, loaded, seen = tee.view().balance, 0, set()
    for _ in range(300):
        good = _voucher(home, tee, 1)
        forged = replace(good, amount=999_00)
        with Flipper(tee, good.encode(), forged.encode()):
            tee.send(Message(Kind.INVOKE_COMMAND, tee.number(), 1, CommandId.LOAD, length=len(good.encode())).encode())
            result = TeeResult(tee.receive().result)
        seen.add(result)
        loaded += result is TeeResult.SUCCESS
        assert tee.view().balance == before + loaded
        if len(seen) > 1 and loaded > 1:
            break
    assert seen == {TeeResult.SUCCESS, TeeResult.SECURITY}


# --- which layer answers


@pytest.mark.requirement("A4")
def test_the_internal_api_answers_for_itself_and_the_application_for_itself(tee: RawTee) -> None:
    by_internal_api, _ = tee.ask(Kind.INVOKE_COMMAND, CommandId.SHOW, session=9)
    by_application, _ = tee.invoke(CommandId.CHANNEL, bytes(4))
    assert (by_internal_api.origin, by_application.origin) == (Origin.TEE, Origin.TRUSTED_APP)


_PLAIN: dict[CommandId, Callable[[bytes], object]] = {
    CommandId.BEGIN_TAP: BegunTap.decode,
    CommandId.END_TAP: Nothing.decode,
    CommandId.SHOW: WalletView.decode,
    CommandId.REPORT: TeeReport.decode,
}


@pytest.mark.requirement("A4")
@pytest.mark.parametrize("command", _PLAIN)
def test_an_answer_decodes_as_the_contract_says(tee: RawTee, command: CommandId) -> None:
    answer, data = tee.invoke(command)
    assert (answer.result, answer.origin) == (TeeResult.SUCCESS, Origin.TRUSTED_APP)
    _PLAIN[command](data)
