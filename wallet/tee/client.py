# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The client API (GlobalPlatform TEE Client API §4.5): context, session, invoke_command. The client application's side.

A context that lost its TEE process starts it again at the next session; what the process had on disk is all there.
"""

from __future__ import annotations

import threading
from typing import TypeVar

from protocol.wire import Wire
from wallet.environment.launcher import ANSWER_SECONDS, HardwareEnvironment, Start, TrustedWorldGoneError
from wallet.environment.message import Kind, Message
from wallet.tee.contract import CommandId, KeyAwayError, Nothing, Origin, TeeError, TeeResult, as_origin, as_result

AnyWire = TypeVar("AnyWire", bound=Wire)


class TeeSession:
    """A session with the payment application. Calls from several threads are taken one after the other."""

    def __init__(self, start: Start) -> None:
        """Start the TEE process and open the session."""
        self._start = start
        self._lock = threading.RLock()
        self._environment: HardwareEnvironment | None = None
        self._session = 0
        self._open()

    @property
    def pid(self) -> int | None:
        """The process id of the TEE, None when it is not running."""
        return self._environment.pid if self._environment else None

    def _open(self) -> HardwareEnvironment:
        environment = HardwareEnvironment(self._start)
        try:
            answer, _ = environment.trigger(Message(Kind.OPEN_SESSION, 0), b"")
        except TrustedWorldGoneError:
            environment.close()
            raise
        self._environment, self._session = environment, answer.session
        return environment

    def invoke_command(
        self, command: CommandId, parameters: Wire | None = None, timeout: float = ANSWER_SECONDS
    ) -> bytes:
        """Run one command and return its answer.

        Raises TeeError: with TARGET_DEAD and origin COMMS when the process died (it is started again with the next
        call), else with what the trusted world answered.
        """
        payload = (parameters or Nothing()).encode()
        with self._lock:
            try:
                environment = self._environment or self._open()
                request = Message(Kind.INVOKE_COMMAND, 0, self._session, command)
                answer, data = environment.trigger(request, payload, timeout)
            except TrustedWorldGoneError as error:
                self.close()
                raise TeeError(TeeResult.TARGET_DEAD, Origin.COMMS, str(error)) from None
        if answer.result != TeeResult.SUCCESS:
            kind = KeyAwayError if answer.result == TeeResult.COMMUNICATION else TeeError
            raise kind(as_result(answer.result), as_origin(answer.origin), data.decode("utf-8", "replace"))
        return data

    def invoke(self, command: CommandId, answer: type[AnyWire], parameters: Wire | None = None) -> AnyWire:
        """Run one command and return its answer as a value."""
        return answer.decode(self.invoke_command(command, parameters))

    def interrupt(self) -> None:
        """End the command that another thread waits for; it fails there as if the process had died, and the process ends."""
        environment = self._environment
        if environment is not None:
            environment.interrupt()

    def close(self) -> None:
        """Close the session and end the process."""
        with self._lock:
            environment, self._environment = self._environment, None
            if environment is not None:
                environment.close()
