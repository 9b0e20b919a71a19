# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A wrapper that keeps what went over a link: each APDU, its answer and the time that took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardHandler, CardLink


@dataclass(frozen=True, slots=True)
class Exchange:
    """One command APDU and its answer as they went over the link, and the round trip in seconds."""

    command: bytes
    answer: bytes
    seconds: float

    @property
    def lengths(self) -> tuple[int, int]:
        """Bytes of command and answer."""
        return len(self.command), len(self.answer)


@dataclass(slots=True)
class TracingLink(CardLink):
    """Wraps the terminal's end of any link; `exchanges` starts anew at each activation."""

    link: CardLink
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def max_data(self) -> int:
        """What the link within carries."""
        return self.link.max_data

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        """Begin a tap with an empty trace."""
        self.exchanges.clear()
        return self.link.activate(timeout)

    def transceive(self, apdu: bytes) -> bytes:
        """Pass the APDU on and note it with its answer."""
        started = time.perf_counter()
        answer = self.link.transceive(apdu)
        self.exchanges.append(Exchange(apdu, answer, time.perf_counter() - started))
        return answer

    def deactivate(self) -> None:
        """End the tap; the trace stays."""
        self.link.deactivate()

    def close(self) -> None:
        """Close the link within."""
        self.link.close()


class TracingCard:
    """Wraps a card and hands each exchange to `watcher` once it was answered."""

    def __init__(self, card: CardHandler, watcher: Callable[[Exchange], None]) -> None:
        """Watch `card`."""
        self._card = card
        self._watcher = watcher

    def activate(self) -> None:
        """A tap begins."""
        self._card.activate()

    def deactivate(self) -> None:
        """The tap is over."""
        self._card.deactivate()

    def process(self, apdu: bytes) -> bytes:
        """Let the card answer and show what was said."""
        started = time.perf_counter()
        answer = self._card.process(apdu)
        self._watcher(Exchange(apdu, answer, time.perf_counter() - started))
        return answer
