# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What is being said to the Trusted Key, one command of the contract for each of the Key's answers.

A command that may need the Key answers with a Dialogue: an APDU for the Key, or the answer itself. Several may be under way:
the user is asked at the Key while somebody taps.
"""

from __future__ import annotations

from dataclasses import dataclass

from wallet.tee.contract import Dialogue, KeyAnswer, Origin, TeeError, TeeResult
from wallet.tee.key_agent import Talk

MAX_TALKS = 4


@dataclass(frozen=True, slots=True)
class _Talking:
    """Something that is being said; `in_tap` while a terminal waits for what comes of it."""

    talk: Talk[bytes]
    in_tap: bool


class Talks:
    """The talks that wait for the Key, by number."""

    def __init__(self) -> None:
        """Begin with none."""
        self._waiting: dict[int, _Talking] = {}
        self._last = 0

    def begin(self, talk: Talk[bytes], *, in_tap: bool = False) -> bytes:
        """Let `talk` go to the first thing that it says to the Key, or to its end, and return the Dialogue."""
        self._last += 1
        return self._go_on(_Talking(talk, in_tap), self._last)

    def go_on(self, answer: KeyAnswer) -> bytes:
        """Give the Key's answer to its talk and return the next Dialogue; BAD_STATE when there is no such talk."""
        talking = self._waiting.pop(answer.talk, None)
        if talking is None:
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "nothing was said to the Key, or its tap is over")
        return self._go_on(talking, answer.talk, answer.apdu)

    def _go_on(self, talking: _Talking, number: int, answer: bytes | None = None) -> bytes:
        try:
            outgoing = next(talking.talk) if answer is None else talking.talk.send(answer)
        except StopIteration as ended:
            return Dialogue(0, 0, b"", ended.value).encode()
        self._waiting[number] = talking
        if len(self._waiting) > MAX_TALKS:
            self._waiting.pop(min(self._waiting)).talk.close()  # one that nobody went on with
        return Dialogue(number, outgoing.pause_ms, outgoing.command.encode(), b"").encode()

    def is_in_tap(self, number: int) -> bool:
        """Tell whether a terminal waits for what comes of this talk."""
        return number in self._waiting and self._waiting[number].in_tap

    def end_tap(self) -> None:
        """End what a tap had begun to say: its payment is not made."""
        self._end([number for number, one in self._waiting.items() if one.in_tap])

    def close(self) -> None:
        """End all of them."""
        self._end(list(self._waiting))

    def _end(self, numbers: list[int]) -> None:
        for number in numbers:
            self._waiting.pop(number).talk.close()
