# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A card that tells what happened to it."""

from __future__ import annotations

from collections.abc import Callable


class EchoCard:
    """Answers each APDU by a function, with the same bytes by default, and notes what happens to it."""

    def __init__(self, answer: Callable[[bytes], bytes] = bytes) -> None:
        self.answer = answer
        self.events: list[str | bytes] = []

    @property
    def apdus(self) -> list[bytes]:
        """What was sent to it."""
        return [event for event in self.events if isinstance(event, bytes)]

    def activate(self) -> None:
        self.events.append("on")

    def process(self, apdu: bytes) -> bytes:
        self.events.append(apdu)
        return self.answer(apdu)

    def deactivate(self) -> None:
        self.events.append("off")
