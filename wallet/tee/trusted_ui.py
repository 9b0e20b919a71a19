# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The trusted UI: what the user is asked by the trusted world itself, on a surface of its own.

`none` shows nothing and grants nothing. `scripted:FILE` is a stand-in for tests and demonstrations: it is only there
when it was chosen, takes its answers from the lines of FILE (`confirm` or `cancel`) and writes what it showed to
FILE.shown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import UsageError
from protocol.money import Amount

NONE = ""
_SCRIPTED = "scripted:"


@dataclass(frozen=True, slots=True)
class PaymentPrompt:
    """What the user sees before agreeing: from the verified certificate and the verified DEBIT only."""

    merchant: str
    terminal_id: str
    amount: Amount

    @property
    def text(self) -> str:
        """The line that is shown."""
        return f"Pay {self.amount} to {self.merchant}?"


class TrustedUi(Protocol):
    """A surface that only the trusted world draws on."""

    def confirm(self, prompt: PaymentPrompt) -> bool:
        """Show the prompt and return whether the user agreed."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that it needs once the process is locked down."""


class NoUi:
    """No surface at all: nobody can agree."""

    descriptors = ()

    def confirm(self, prompt: PaymentPrompt) -> bool:
        """Return False."""
        return False


class ScriptedUi:
    """Answers from a file, in order; cancels when they are used up."""

    def __init__(self, path: str) -> None:
        """Read the answers and open the file of what was shown, both before the process is locked down."""
        try:
            answers = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._shown = os.open(f"{path}.shown", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"the scripted trusted UI cannot use {path}: {error.strerror}") from None
        with os.fdopen(answers) as file:
            self._answers = file.read().split()
        unknown = set(self._answers).difference({"confirm", "cancel"})
        if unknown:
            raise UsageError(f"{path} holds {sorted(unknown)[0]!r}; a script has `confirm` or `cancel` on each line")

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The file of what was shown."""
        return (self._shown,)

    def confirm(self, prompt: PaymentPrompt) -> bool:
        """Write the prompt down and take the next answer."""
        os.write(self._shown, f"{prompt.text}\n".encode())
        return bool(self._answers) and self._answers.pop(0) == "confirm"


def open_ui(choice: str) -> TrustedUi:
    """Return the surface that `choice` names; UsageError when there is none of that name."""
    if choice == NONE:
        return NoUi()
    if choice.startswith(_SCRIPTED):
        return ScriptedUi(choice.removeprefix(_SCRIPTED))
    raise UsageError(f"there is no trusted UI {choice!r}; scripted:FILE is one")
