# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The screen and the buttons of the Key: four lines of twenty characters, and what is shown on them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LINES = 4
COLUMNS = 20
IDLE = "TapLab Trusted Key"


class Button(StrEnum):
    """The four buttons."""

    OK = "ok"
    CANCEL = "cancel"
    UP = "up"
    DOWN = "down"


class Showing(StrEnum):
    """What is on the screen: nothing of anybody's, a text, a question that waits for a press, or the user's menu."""

    IDLE = "idle"
    TEXT = "text"
    QUESTION = "question"
    MENU = "menu"


@dataclass(frozen=True, slots=True)
class Frame:
    """The screen at one moment. `number` grows with every change, so that a press can say what it was an answer to."""

    number: int
    showing: Showing
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines as one, as a person reads them."""
        return " ".join(line.strip() for line in self.lines if line.strip())


def laid_out(text: str) -> tuple[str, ...]:
    """Return `text` in lines broken between words; ValueError when it does not fit whole.

    Nothing is ever cut off or scrolled away: a question that cannot be seen at once is not asked. Spaces stay as they are,
    but where a line is broken.
    """
    if not text or not all(" " <= char <= "~" for char in text):
        raise ValueError("a text has printable ASCII characters only")
    lines: list[str] = []
    rest = text
    while len(rest) > COLUMNS:
        at = rest.rfind(" ", 0, COLUMNS + 1)
        if at <= 0:
            raise ValueError(f"a word is longer than a line of {COLUMNS} characters")
        lines.append(rest[:at])
        rest = rest[at + 1 :]
    lines.append(rest)
    if len(lines) > LINES:
        raise ValueError(f"the text does not fit {LINES} lines of {COLUMNS} characters")
    return filled(lines)


def filled(lines: list[str]) -> tuple[str, ...]:
    """Return four lines of exactly twenty characters."""
    return tuple(line.ljust(COLUMNS) for line in [*lines, *[""] * LINES][:LINES])
