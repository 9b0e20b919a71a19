# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Starting the trusted world as a process of its own and carrying Messages to it; starting it again when it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import DecodeError, InUseError, MissingOnMachineError, TapLabError, UsageError
from wallet.environment import message, shared_memory
from wallet.environment.message import Kind, Message
from wallet.environment.shared_memory import REGION, SharedMemory

_log = logging.getLogger(__name__)
START_SECONDS = 20.0
ANSWER_SECONDS = 10.0
_STOP_SECONDS = 1.0


class TrustedWorldGoneError(TapLabError):
    """The TEE process has ended or does not answer."""


class TrustedWorldRefusedError(TapLabError):
    """The TEE process would not start; the text is its own sentence."""


class TrustedWorldBusyError(TrustedWorldRefusedError, InUseError):
    """Another process of this wallet has the TEE."""


class TrustedWorldLacksError(TrustedWorldRefusedError, MissingOnMachineError):
    """The TEE process needs what is not on this machine."""


class TrustedWorldMisusedError(TrustedWorldRefusedError, UsageError):
    """The TEE process was told something that makes no sense."""


# Why a TEE process would not start, by the result it ends with: GlobalPlatform TEE Client API §4.4.2.
_REFUSALS: dict[int, type[TrustedWorldRefusedError]] = {
    0xFFFF0006: TrustedWorldMisusedError,
    0xFFFF000A: TrustedWorldLacksError,
    0xFFFF000D: TrustedWorldBusyError,
}


@dataclass(frozen=True, slots=True)
class Start:
    """How to start the TEE: the wallet's device and storage folders, and which trusted UI it has ("" for none).

    `tty` and `term` are the terminal that the trusted UI appears on, and its type; `at_once` lets it ask within a tap.
    `reads` is for a new wallet: how many cards a terminal may see in ten minutes without asking for a payment.
    """

    device: Path
    storage: Path
    trusted_ui: str = ""
    require_sandbox: bool = False
    reads: int | None = None
    tty: str = ""
    term: str = "dumb"
    at_once: bool = False

    def arguments(self, channel: int, memory: int) -> list[str]:
        """Return the command line of the process; it names folders and descriptors, nothing else."""
        options = ["--device", str(self.device), "--storage", str(self.storage)]
        options += ["--channel", str(channel), "--memory", str(memory)]
        options += ["--trusted-ui", self.trusted_ui] if self.trusted_ui else []
        options += ["--require-sandbox"] if self.require_sandbox else []
        options += ["--reads", str(self.reads)] if self.reads is not None else []
        options += ["--tty", self.tty, "--term", self.term] if self.tty else []
        options += ["--at-once"] if self.at_once else []
        return [sys.executable, "-I", "-m", "wallet.tee", *options]


class HardwareEnvironment:
    """One running TEE process: its Message socket and its shared memory."""

    def __init__(self, start: Start) -> None:
        """Start the process and wait until it is locked down; TrustedWorldRefusedError says why it will not."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = shared_memory.create()
        try:
            self._memory = SharedMemory(memory)
            self._process = subprocess.Popen(
                start.arguments(theirs.fileno(), memory),
                stdin=subprocess.PIPE,  # its lifeline; Popen keeps the other end
                pass_fds=(theirs.fileno(), memory),
                env={},
                start_new_session=True,
                close_fds=True,
            )
        finally:
            theirs.close()
            os.close(memory)
        self._socket = ours
        self._sequence = 0
        self._wait_until_ready()

    @property
    def pid(self) -> int:
        """The process id of the trusted world."""
        return self._process.pid

    def _wait_until_ready(self) -> None:
        try:
            ready = self._receive(START_SECONDS)
        except TrustedWorldGoneError:
            self.close()
            raise TrustedWorldRefusedError(
                "the TEE process ended before it was ready; `python -m wallet.tee --help` shows whether it is installed"
            ) from None
        if ready.result:
            reason = self._memory.read_answer(ready.length).decode()
            self.close()
            raise _REFUSALS.get(ready.result, TrustedWorldRefusedError)(reason)

    def trigger(self, request: Message, payload: bytes, timeout: float = ANSWER_SECONDS) -> tuple[Message, bytes]:
        """Carry one request over and return the answer with its payload; TrustedWorldGoneError when there is none."""
        self._memory.write_request(payload)
        self._sequence += 1
        numbered = Message(request.kind, self._sequence, request.session, request.command, length=len(payload))
        try:
            message.send(self._socket.fileno(), numbered)
        except OSError:
            raise TrustedWorldGoneError("the TEE process has ended") from None
        answer = self._receive(timeout)
        if answer.kind is not Kind.ANSWER or answer.sequence != self._sequence or answer.length > REGION:
            raise TrustedWorldGoneError("the TEE process answers out of turn")
        _log.debug("command %d: %d bytes, result %08X, %d bytes", request.command, len(payload), answer.result,
                   answer.length)  # fmt: skip
        return answer, self._memory.read_answer(answer.length)

    def _receive(self, timeout: float) -> Message:
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(message.MESSAGE_LENGTH + 1)
        except OSError:
            raise TrustedWorldGoneError("the TEE process does not answer") from None
        if not data:
            raise TrustedWorldGoneError("the TEE process has ended")
        try:
            return Message.decode(data)
        except DecodeError:
            raise TrustedWorldGoneError("the TEE process answers what is no Message") from None

    def interrupt(self) -> None:
        """End the wait of another thread for an answer, as if the process had ended."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, which ends the process, and wait for it."""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        if self._process.poll() is None:  # it waits for its user, who is no longer asked
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)  # its dialogs, which do not notice by themselves
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._memory.close()
