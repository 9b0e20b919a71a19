# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The client world's part of the Trusted Key: a link to it, and bytes carried between it and the trusted world, unread."""

from __future__ import annotations

import contextlib
import threading

from protocol.apdu import Command
from protocol.closing import Closing
from protocol.errors import CardSilentError, DecodeError, TransportError
from protocol.transport.base import Activation, CardLink
from protocol.transport.chaining import TerminalChaining
from protocol.transport.opening import LinkUrl, open_terminal_end
from protocol.wire import Wire
from wallet.environment.launcher import ANSWER_SECONDS
from wallet.tee.client import TeeSession
from wallet.tee.contract import CommandId, Dialogue, KeyAnswer

KEY_SECONDS = 1.0
_LOOK_SECONDS = 0.2
_NOT_THERE = b""


class KeyLine(Closing):
    """The way to the Key at a link, opened when something is to be said; without a link there is no Key."""

    def __init__(self, url: str = "", timeout: float = KEY_SECONDS) -> None:
        """Reach the Key at `url`; it must be there within `timeout` seconds."""
        self._url = url
        self._timeout = timeout
        self._lock = threading.Lock()
        self._carrier: _Carrier | None = None
        self._closed = threading.Event()

    @property
    def is_there(self) -> bool:
        """Whether this wallet has a link for a Key at all."""
        return bool(self._url)

    def converse(
        self,
        tee: TeeSession,
        command: CommandId,
        parameters: Wire | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> bytes:
        """Run a command that may need the Key, and return its answer. TeeError as from `invoke_command`.

        `timeout` is for each step. What needs no Key waits for nobody. Conversations are carried one after the other: for
        who finds the Key asking its user something else, it is not there.
        """
        dialogue = Dialogue.decode(tee.invoke_command(command, parameters, timeout))
        if not dialogue.apdu:
            return dialogue.answer
        is_ours = self._lock.acquire(timeout=self._timeout)
        try:
            with _Carrier(self._url if is_ours else "", self._timeout, self._closed) as carrier:
                self._carrier = carrier if is_ours else self._carrier
                while dialogue.apdu:
                    over = self._closed.wait(dialogue.pause_ms / 1000)
                    answer = KeyAnswer(dialogue.talk, _NOT_THERE if over else carrier.carry(dialogue.apdu))
                    dialogue = Dialogue.decode(tee.invoke_command(CommandId.KEY_ANSWER, answer, timeout))
        finally:
            if is_ours:
                self._carrier = None
                self._lock.release()
        return dialogue.answer

    def close(self) -> None:
        """End the conversation that is being carried: for the trusted world the Key is gone."""
        self._closed.set()
        carrier = self._carrier
        if carrier is not None:
            carrier.interrupt()


class _Carrier(Closing):
    """The link for one conversation. Once it has failed nothing goes through: half a conversation is none."""

    def __init__(self, url: str, timeout: float, closed: threading.Event) -> None:
        self._closed = closed
        self._link: CardLink | None = None
        self._chaining: TerminalChaining | None = None
        if url:
            with contextlib.suppress(TransportError, DecodeError):
                self._link = open_terminal_end(url)
                activation = self._found(self._link, timeout)
                extended = activation.takes_extended_length and not LinkUrl.parse(url).short
                max_data = self._link.max_data
                self._chaining = TerminalChaining(self._link.transceive, extended=extended, max_data=max_data)

    def _found(self, link: CardLink, timeout: float) -> Activation:
        """Wait for the Key as `activate` does, but not on and on when this end is being closed."""
        for _ in range(round(timeout / _LOOK_SECONDS) - 1):
            with contextlib.suppress(CardSilentError):
                return link.activate(_LOOK_SECONDS)
            if self._closed.is_set():
                break
        return link.activate(_LOOK_SECONDS)

    def carry(self, apdu: bytes) -> bytes:
        """Return the Key's answer, empty when it cannot be reached."""
        if self._chaining is None:
            return _NOT_THERE
        try:
            return self._chaining.exchange(Command.decode(apdu)).encode()
        except (TransportError, DecodeError):
            self._chaining = None
            return _NOT_THERE

    def interrupt(self) -> None:
        """Let a command that another thread waits for fail, where the link can do that."""
        if self._link is not None:
            self._link.interrupt()

    def close(self) -> None:
        if self._link is not None:
            with contextlib.suppress(TransportError):
                self._link.deactivate()
            self._link.close()
