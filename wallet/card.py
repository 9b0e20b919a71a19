# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The phone as a card: applications by name, and the only place where an exception becomes a status word."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from protocol.apdu import Command, Response
from protocol.commands import CLA_INTERINDUSTRY, CLA_PROPRIETARY, Ins, Occurrence
from protocol.errors import UsageError
from protocol.status import StatusWord
from protocol.transcript import Record
from protocol.transport.chaining import CardChaining
from wallet.environment.launcher import TrustedWorldRefusedError
from wallet.tee.contract import TeeError, TeeResult

_log = logging.getLogger(__name__)
_MAX_TRANSCRIPT = 1 << 16
_REGISTERED_SCHEMES = tuple(
    bytes.fromhex(rid)
    for rid in ("A000000003", "A000000004", "A000000025", "A000000065", "A000000152", "A000000277", "A000000333")
)

_STATUS_OF = {
    TeeResult.SECURITY: StatusWord.SECURITY_STATUS_NOT_SATISFIED,
    TeeResult.BAD_FORMAT: StatusWord.SECURITY_STATUS_NOT_SATISFIED,
    TeeResult.BAD_STATE: StatusWord.CONDITIONS_NOT_SATISFIED,
    TeeResult.ACCESS_DENIED: StatusWord.CONDITIONS_NOT_SATISFIED,
    TeeResult.ITEM_NOT_FOUND: StatusWord.REFERENCED_DATA_NOT_FOUND,
    TeeResult.STORAGE_NO_SPACE: StatusWord.MEMORY_FAILURE,
    TeeResult.NOT_SUPPORTED: StatusWord.INS_NOT_SUPPORTED,
    TeeResult.BAD_PARAMETERS: StatusWord.WRONG_DATA,
}


class Application(Protocol):
    """One application of the card."""

    name: bytes

    def select(self) -> Response:
        """Answer SELECT: the application becomes the current one."""

    def answer(self, command: Command, prefix: bytes) -> Response:
        """Answer any other command; `prefix` is the transcript of the tap before it."""

    def reset(self) -> None:
        """The tap is over."""


@runtime_checkable
class ChannelApplication(Application, Protocol):
    """An application with a secure channel of its own.

    It gets other classes than 80 as well, say 84 and 04 for secure messaging, and its sessions may be of any length, as
    no transcript of them is needed.
    """

    classes: frozenset[int]


class StatusWordError(Exception):
    """Raised by an application to answer a status word and nothing else."""

    def __init__(self, sw: StatusWord) -> None:
        """Keep the status word."""
        super().__init__(str(sw))
        self.sw = sw


class Card:
    """A CardHandler: any byte string is answered with a status word, and the card lives on."""

    def __init__(self, applications: Sequence[Application], *, allow_schemes: bool = False) -> None:
        """Hold `applications`, first ones first; UsageError for a name of a registered payment scheme."""
        for application in applications:
            if not allow_schemes and application.name.startswith(_REGISTERED_SCHEMES):
                raise UsageError(
                    f"{application.name.hex().upper()} belongs to a registered payment scheme; "
                    "this wallet answers to such a name only when told so explicitly"
                )
        self._applications = applications
        self._chaining = CardChaining(self._answer)
        self._selected: Application | None = None
        self._channel_classes: frozenset[int] = frozenset()
        self._transcript = b""

    def activate(self) -> None:
        """A tap begins: nothing is selected, nothing was said."""
        self.deactivate()

    def deactivate(self) -> None:
        """The tap is over."""
        self._chaining.reset()
        self._transcript = b""
        selected, self._selected = self._selected, None
        if selected is not None:
            selected.reset()

    def process(self, apdu: bytes) -> bytes:
        """Answer one command APDU, whatever its bytes are."""
        return self._chaining.process(apdu)

    def _answer(self, command: Command) -> Response:
        try:
            response = self._dispatch(command)
        except Exception as error:  # noqa: BLE001 - a card never dies of what it is sent
            response = Response(b"", status_of(error))
        said = Record.of_command(command).encode() + Record.of_response(response).encode()
        self._transcript = (self._transcript + said)[: _MAX_TRANSCRIPT + 1]
        return response

    def _dispatch(self, command: Command) -> Response:
        if command.cla == CLA_INTERINDUSTRY and command.ins == Ins.SELECT:
            return self._select(command)
        if self._selected is not None and command.unchained_header[0] in self._channel_classes:
            return self._selected.answer(command, b"")
        if command.cla == CLA_INTERINDUSTRY:
            raise StatusWordError(StatusWord.INS_NOT_SUPPORTED)
        if command.unchained_header[0] != CLA_PROPRIETARY:
            raise StatusWordError(StatusWord.CLA_NOT_SUPPORTED)
        if self._selected is None or len(self._transcript) > _MAX_TRANSCRIPT:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return self._selected.answer(command, self._transcript)

    def _select(self, command: Command) -> Response:
        """SELECT by DF name: exact or right-truncated, first or next occurrence (ISO 7816-4:2020 §11.2.2)."""
        if command.p1 != 0x04 or command.p2 not in set(Occurrence):
            raise StatusWordError(StatusWord.WRONG_P1_P2)
        if not 1 <= len(command.data) <= 16:
            raise StatusWordError(StatusWord.WRONG_LENGTH)
        fitting = [one for one in self._applications if one.name.startswith(command.data)]
        if command.p2 == Occurrence.NEXT and self._selected in fitting:
            fitting = fitting[fitting.index(self._selected) + 1 :]
        if not fitting:
            raise StatusWordError(StatusWord.NOT_FOUND)  # the current application stays selected
        if self._selected is not None:
            self._selected.reset()
        self._selected = fitting[0]
        self._channel_classes = _channel_classes(self._selected)
        return self._selected.select()


def _channel_classes(application: Application) -> frozenset[int]:
    return application.classes if isinstance(application, ChannelApplication) else frozenset()


def status_of(error: Exception) -> StatusWord:
    """Return the status word that tells a terminal of an error, which is little on purpose."""
    if isinstance(error, StatusWordError):
        return error.sw
    if isinstance(error, TeeError):
        return _STATUS_OF.get(error.result, StatusWord.NO_PRECISE_DIAGNOSIS)
    if not isinstance(error, TrustedWorldRefusedError):
        _log.error("a command failed: %s", type(error).__name__, exc_info=error)
    return StatusWord.NO_PRECISE_DIAGNOSIS
