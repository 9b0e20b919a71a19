# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The internal API: the trusted end of the Message channel. Copies each payload once, then calls the application.

Every exception becomes a result with its origin here, and nowhere else on this side. What is not a TapLabError is a bug:
the answer names its kind and place, never its values.
"""

from __future__ import annotations

import contextlib

from protocol.errors import DecodeError, InUseError, MissingOnMachineError, TapLabError, UsageError, VerificationError
from wallet.environment import message
from wallet.environment.message import Kind, Message
from wallet.environment.shared_memory import REGION, SharedMemory
from wallet.tee.contract import Origin, TeeError, TeeResult
from wallet.tee.key_agent import KeyGoneError
from wallet.tee.payment_ta import PaymentApplication
from wallet.tee.storage import StorageFailedError, StorageUncertainError

_SESSION = 1


class InternalApi:
    """Serves one client, one session at a time."""

    def __init__(self, channel: int, memory: SharedMemory, application: PaymentApplication) -> None:
        """Serve Messages that come over the descriptor `channel`."""
        self._channel = channel
        self._memory = memory
        self._application = application
        self._session = 0
        self._sequence = 0

    def serve(self) -> None:
        """Answer until the other world closes; a malformed Message ends the service, since it is not our client's."""
        self._answer(0, 0, TeeResult.SUCCESS, Origin.TEE, b"")
        while request := self._receive():
            try:
                payload = self._dispatch(request)
            except StorageUncertainError as error:
                self._refuse(request, TeeError(TeeResult.GENERIC, Origin.TRUSTED_APP, str(error)))
                return
            except TapLabError as error:
                self._refuse(request, as_tee_error(error))
            except Exception as error:  # noqa: BLE001 - whatever happens, the other world hears of it and we live on
                self._refuse(request, TeeError(TeeResult.GENERIC, Origin.TRUSTED_APP, _place_of(error)))
            else:
                self._answer(request.sequence, request.session, TeeResult.SUCCESS, Origin.TRUSTED_APP, payload)

    def _receive(self) -> Message | None:
        try:
            request = message.receive(self._channel)
        except DecodeError:
            return None
        return request

    def _dispatch(self, request: Message) -> bytes:
        if request.sequence != self._sequence + 1 or request.length > REGION:
            raise TeeError(TeeResult.BAD_PARAMETERS, Origin.TEE, "the Message is out of sequence or too long")
        self._sequence = request.sequence
        if request.kind is Kind.OPEN_SESSION:
            if self._session:
                raise TeeError(TeeResult.BAD_STATE, Origin.TEE, "there is a session already")
            self._session = _SESSION
            return b""
        if request.session != self._session or not self._session:
            raise TeeError(TeeResult.BAD_STATE, Origin.TEE, "there is no such session")
        if request.kind is Kind.CLOSE_SESSION:
            self._application.close()
            self._session = 0
            return b""
        if request.kind is not Kind.INVOKE_COMMAND:
            raise TeeError(TeeResult.BAD_PARAMETERS, Origin.TEE, "a request that is none")
        return self._application.invoke(request.command, self._memory.read_request(request.length))

    def _refuse(self, request: Message, error: TeeError) -> None:
        self._answer(request.sequence, request.session, error.result, error.origin, str(error).encode())

    def _answer(self, sequence: int, session: int, result: TeeResult, origin: Origin, payload: bytes) -> None:
        self._memory.write_answer(payload)
        answer = Message(Kind.ANSWER, sequence, session or self._session, 0, result, origin, len(payload))
        message.send(self._channel, answer)


def refuse_start(channel: int, memory: SharedMemory, error: TeeError) -> None:
    """Tell the other world why this process will not serve."""
    payload = str(error).encode()
    memory.write_answer(payload)
    answer = Message(Kind.ANSWER, 0, 0, 0, error.result, error.origin, len(payload))
    with contextlib.suppress(OSError):  # who started this process has left
        message.send(channel, answer)


def as_tee_error(error: TapLabError) -> TeeError:
    """Return the result that stands for an error of ours."""
    if isinstance(error, TeeError):
        return error
    for kind, result in (
        (KeyGoneError, TeeResult.COMMUNICATION),
        (VerificationError, TeeResult.SECURITY),
        (DecodeError, TeeResult.BAD_FORMAT),
        (StorageFailedError, TeeResult.STORAGE_NO_SPACE),
        (MissingOnMachineError, TeeResult.NOT_SUPPORTED),
        (InUseError, TeeResult.BUSY),
        (UsageError, TeeResult.BAD_PARAMETERS),
    ):
        if isinstance(error, kind):
            return TeeError(result, Origin.TRUSTED_APP, str(error))
    return TeeError(TeeResult.GENERIC, Origin.TRUSTED_APP, str(error))


def _place_of(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_qualname} line {trace.tb_lineno}" if trace else "an unknown place"
    return f"{type(error).__name__} in {place}"
