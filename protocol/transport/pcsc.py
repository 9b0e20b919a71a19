# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`pcsc:` or `pcsc:READER`: any PC/SC reader through pyscard, for the terminal's end.

A tap is an exclusive connection that begins with a reset: nobody else's APDU comes between. A card that is gone is told
from one that is silent and from a reader or a service that is gone; the service is looked for anew at each activation.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from protocol.errors import (
    CardRemovedError,
    CardSilentError,
    ForeignCardError,
    LinkUnavailableError,
    MissingOnMachineError,
    UsageError,
)
from protocol.log import traffic
from protocol.transport.base import ANSWER_TIMEOUT, NO_CARD_TIMEOUT, Activation, CardLink

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
_HELD_SECONDS = 0.05
_SW_LENGTH = 2
MAX_APDU = 0xFFFF  # a longer command kills vpcd's reader handle (measured with vpcd 3.3)
MAX_DATA = MAX_APDU - 9  # beside header, Lc and Le of an extended command


Result = TypeVar("Result")


def _in_time(call: Callable[[], Result], timeout: float, too_late: Callable[[Result], None]) -> Result:
    """Return what a call of the service returns; TimeoutError when that takes longer.

    The call itself waits for ever, so a thread of its own waits for it, and gives back by `too_late` what came of it when
    nobody waits any more.
    """
    taken = threading.Lock()
    results: queue.SimpleQueue[Result] = queue.SimpleQueue()

    def run() -> None:
        result = call()
        if taken.acquire(blocking=False):
            results.put(result)
        else:
            too_late(result)

    threading.Thread(target=run, name="PC/SC", daemon=True).start()
    try:
        return results.get(timeout=timeout)
    except queue.Empty:
        if taken.acquire(blocking=False):
            raise TimeoutError from None
        return results.get()


class _HeldError(LinkUnavailableError):
    """Another program has the card for itself."""

    def __init__(self) -> None:
        super().__init__("another program holds the card; end it and present the card again")


@dataclass(frozen=True, slots=True)
class ReaderState:
    """One PC/SC reader: its name, and the ATR of the card in it (empty when there is none)."""

    name: str
    atr: bytes


def _scard() -> Any:
    """Return pyscard's bindings; MissingOnMachineError says what to install."""
    try:
        from smartcard import scard
    except ImportError as error:
        raise MissingOnMachineError(
            f"pyscard cannot be used ({error}); on Debian: apt-get install gcc swig libpcsclite-dev, "
            "then `pip install -e '.[pcsc]'`"
        ) from None
    return scard


def require() -> None:
    """Raise MissingOnMachineError, with what to install, unless pyscard can be used."""
    _scard()


def _establish(scard: Any) -> int:
    result, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_USER)
    if result != scard.SCARD_S_SUCCESS:
        raise LinkUnavailableError(
            f"the PC/SC service does not run ({_words(scard, result)}); on Debian: apt-get install pcscd, "
            "then start it with `pcscd` as root"
        )
    return int(context)


def _words(scard: Any, result: int) -> str:
    return str(scard.SCardGetErrorMessage(result)).strip().rstrip(".")


def readers() -> list[ReaderState]:
    """Return every reader and the card in it; LinkUnavailableError when the service does not run."""
    scard = _scard()
    context = _establish(scard)
    try:
        return _states(scard, context)
    finally:
        scard.SCardReleaseContext(context)


def _states(scard: Any, context: int) -> list[ReaderState]:
    result, names = scard.SCardListReaders(context, [])
    if result == scard.SCARD_E_NO_READERS_AVAILABLE:
        return []
    if result != scard.SCARD_S_SUCCESS:
        raise LinkUnavailableError(f"the PC/SC service cannot list its readers: {_words(scard, result)}")
    unaware = [(name, scard.SCARD_STATE_UNAWARE) for name in names]
    result, states = scard.SCardGetStatusChange(context, 0, unaware)
    if result not in (scard.SCARD_S_SUCCESS, scard.SCARD_E_TIMEOUT):
        raise LinkUnavailableError(f"the PC/SC service cannot tell of its readers: {_words(scard, result)}")
    return [ReaderState(name, bytes(atr) if state & scard.SCARD_STATE_PRESENT else b"") for name, state, atr in states]


class PcscLink(CardLink):
    """The terminal's end: waits for a card in the reader whose name holds `reader`, or in any reader."""

    def __init__(self, reader: str = "") -> None:
        """Find the service; the reader may come later."""
        self._scard = _scard()
        self._wanted = reader
        self._context: int | None = _establish(self._scard)
        self._card: int | None = None
        self._protocol = 0

    @property
    def max_data(self) -> int:
        """What every reader carries."""
        return MAX_DATA

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        """Wait for a card, connect to it alone and reset it.

        ForeignCardError when cards lie in several readers and none was named. A card that another program holds is waited
        for, too: such programs often only look what it is.
        """
        self.deactivate()
        deadline = time.monotonic() + timeout
        while True:
            held: _HeldError | None = None
            present = [state for state in self._look() if state.atr and self._wanted.lower() in state.name.lower()]
            if len(present) > 1:
                raise ForeignCardError(
                    f"there are cards in {len(present)} readers; present one card, or name its reader"
                )
            if present:
                try:
                    return self._connect(present[0].name)
                except CardRemovedError:
                    pass  # it went away again while we connected
                except _HeldError as error:
                    held = error
            left = deadline - time.monotonic()
            if left <= 0:
                raise held or CardSilentError("no card was presented in time")
            if held:
                time.sleep(min(_HELD_SECONDS, left))  # the service does not say when a program lets go
            else:
                self._wait(min(_POLL_SECONDS, left))

    def _look(self) -> list[ReaderState]:
        if self._context is None:
            self._context = _establish(self._scard)
        try:
            states = _states(self._scard, self._context)
        except LinkUnavailableError:
            self._release()  # the service may have been started again: ask it anew, once
            self._context = _establish(self._scard)
            states = _states(self._scard, self._context)
        if not any(self._wanted.lower() in state.name.lower() for state in states):
            wanted = (
                f"no PC/SC reader is named like {self._wanted!r}" if self._wanted else "no PC/SC reader is attached"
            )
            raise LinkUnavailableError(f"{wanted}; `tap-pos readers` shows what is")
        return states

    def _wait(self, seconds: float) -> None:
        """Sleep until something changes at a reader."""
        if self._context is None:
            return
        known = [(state.name, self._present(state)) for state in _states(self._scard, self._context)]
        self._scard.SCardGetStatusChange(self._context, int(1000 * seconds), known)

    def _present(self, state: ReaderState) -> int:
        return int(self._scard.SCARD_STATE_PRESENT if state.atr else self._scard.SCARD_STATE_EMPTY)

    def _connect(self, reader: str) -> Activation:
        scard = self._scard
        either = scard.SCARD_PROTOCOL_T0 | scard.SCARD_PROTOCOL_T1
        context, alone = self._context, scard.SCARD_SHARE_EXCLUSIVE

        def give_back(connected: tuple[int, int, int]) -> None:
            _give_back(scard, context, connected[1] if connected[0] == scard.SCARD_S_SUCCESS else None)

        try:
            result, card, protocol = _in_time(
                lambda: scard.SCardConnect(context, reader, alone, either), ANSWER_TIMEOUT, give_back
            )
        except TimeoutError:
            self._context = None  # the thread keeps it until the other program lets the card go
            raise _HeldError from None
        self._require(result)
        self._card, self._protocol = card, protocol
        result, self._protocol = scard.SCardReconnect(card, alone, either, scard.SCARD_RESET_CARD)
        self._require(result)
        result, _, _, _, atr = scard.SCardStatus(card)
        self._require(result)
        return Activation(bytes(atr))

    def _require(self, result: int) -> None:
        """Turn a result of the service into the error that it stands for."""
        scard = self._scard
        if result == scard.SCARD_S_SUCCESS:
            return
        words = _words(scard, result)
        self._drop()
        if result in (scard.SCARD_W_REMOVED_CARD, scard.SCARD_E_NO_SMARTCARD, scard.SCARD_W_RESET_CARD,
                      scard.SCARD_E_NOT_TRANSACTED, scard.SCARD_W_UNPOWERED_CARD, scard.SCARD_W_UNRESPONSIVE_CARD):  # fmt: skip
            raise CardRemovedError(f"the card has left the field ({words})")
        if result == scard.SCARD_E_TIMEOUT:
            raise CardSilentError("the card did not answer in time")
        if result == scard.SCARD_E_SHARING_VIOLATION:
            raise _HeldError
        self._release()
        raise LinkUnavailableError(f"the reader or the PC/SC service is gone ({words})")

    def transceive(self, apdu: bytes) -> bytes:
        """Send a command and return the answer; UsageError above what readers carry."""
        if self._card is None:
            raise CardRemovedError("no card is active")
        _refuse_too_long(apdu)
        traffic(_log, ">", apdu)
        result, answer = self._transmit(self._card, apdu)
        self._require(result)
        if len(answer) < _SW_LENGTH:  # what drivers say when the card left while it was asked
            self._drop()
            raise CardRemovedError("the card has left the field")
        traffic(_log, "<", answer)
        return answer

    def _transmit(self, card: int, apdu: bytes) -> tuple[int, bytes]:
        """Return the service's result and the card's answer."""
        header = (
            self._scard.SCARD_PCI_T1 if self._protocol == self._scard.SCARD_PROTOCOL_T1 else self._scard.SCARD_PCI_T0
        )
        scard, context = self._scard, self._context
        try:
            result, answer = _in_time(
                lambda: scard.SCardTransmit(card, header, list(apdu)),
                ANSWER_TIMEOUT,
                lambda _: _give_back(scard, context, card),
            )
        except TimeoutError:
            self._card = self._context = None  # the thread keeps them until the card says something
            raise CardSilentError("the card did not answer in time") from None
        return result, bytes(answer)

    def deactivate(self) -> None:
        """End the connection and leave the card reset, so that nothing of the tap stays in it."""
        card, self._card = self._card, None
        if card is not None:
            self._scard.SCardDisconnect(card, self._scard.SCARD_RESET_CARD)

    def _drop(self) -> None:
        card, self._card = self._card, None
        if card is not None:
            self._scard.SCardDisconnect(card, self._scard.SCARD_LEAVE_CARD)

    def _release(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            self._scard.SCardReleaseContext(context)

    def close(self) -> None:
        """Let the card and the service go."""
        self.deactivate()
        self._release()


def _give_back(scard: Any, context: int | None, card: int | None) -> None:
    """Let go what a call brought too late: the card reset, so that the next program can have it, and the service."""
    if card is not None:
        scard.SCardDisconnect(card, scard.SCARD_RESET_CARD)
    if context is not None:
        scard.SCardReleaseContext(context)


def _refuse_too_long(apdu: bytes) -> None:
    if len(apdu) > MAX_APDU:
        raise UsageError(f"a command of {len(apdu)} bytes is longer than this link can carry ({MAX_APDU})")
