# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`memory:NAME`: both ends in one process, for tests that want no socket. The card answers on the caller's thread."""

from __future__ import annotations

import threading

from protocol.errors import CardRemovedError, CardSilentError
from protocol.transport.base import (
    NO_CARD_TIMEOUT,
    Activation,
    CardHandler,
    CardLink,
    CardPort,
    card_historical,
    contactless_atr,
)

_cards: dict[str, MemoryPort] = {}
_changed = threading.Condition()


class MemoryPort(CardPort):
    """The card's end: present from `serve` to `close`."""

    def __init__(self, name: str, *, extended: bool = True) -> None:
        """Name the link; `extended` is what the card states of its lengths."""
        self._name = name
        self.atr = contactless_atr(card_historical(extended=extended))
        self._closed = threading.Event()
        self.card: CardHandler | None = None

    def serve(self, card: CardHandler) -> None:
        """Lay the card into the field and wait until `close`."""
        self.present(card)
        self._closed.wait()

    def present(self, card: CardHandler) -> None:
        """Lay the card into the field and return at once."""
        with _changed:
            if self._closed.is_set():
                return
            self.card = card
            _cards[self._name] = self
            _changed.notify_all()

    def close(self) -> None:
        """Take the card away."""
        self._closed.set()
        with _changed:
            if _cards.get(self._name) is self:
                del _cards[self._name]
            card, self.card = self.card, None
        if card is not None:
            card.deactivate()


class MemoryLink(CardLink):
    """The terminal's end."""

    def __init__(self, name: str) -> None:
        """Name the link."""
        self._name = name
        self._port: MemoryPort | None = None

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        """Wait for a port of this name and begin a tap with its card."""
        with _changed:
            if not _changed.wait_for(lambda: self._name in _cards, timeout):
                raise CardSilentError("no card was presented in time")
            self._port = _cards[self._name]
        if self._port.card is not None:
            self._port.card.activate()
        return Activation(self._port.atr)

    def transceive(self, apdu: bytes) -> bytes:
        """Let the card answer."""
        port = self._port
        card = port.card if port is not None else None
        if port is None or card is None:
            raise CardRemovedError("the card has left the field")
        answer = card.process(apdu)
        if port.card is None:
            raise CardRemovedError("the card has left the field")
        return answer

    def deactivate(self) -> None:
        """End the tap."""
        port, self._port = self._port, None
        if port is not None and port.card is not None:
            port.card.deactivate()

    def close(self) -> None:
        """End the tap and forget the port."""
        self.deactivate()
