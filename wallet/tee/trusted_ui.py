# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The trusted UI: what the user is asked by the trusted world itself, on a surface of its own.

`none` shows nothing and grants nothing. `pinentry` or `pinentry:PROGRAM` is GnuPG's dialog on the user's terminal.
`scripted:FILE` is a stand-in for tests and demonstrations: it is only there when it was chosen, takes its answers from the
lines of FILE (`confirm`, `cancel`, or `type` and what a user would type) and writes what it showed to FILE.shown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import UsageError
from protocol.money import Amount
from protocol.secret import Secret
from wallet.tee import pinentry
from wallet.tee.pinentry import Pinentry, Terminal

NONE = ""
PINENTRY = "pinentry"
DIALOG_SECONDS = 60
_SCRIPTED = "scripted:"
_TYPE = "type "


class Shown(Protocol):
    """Something to show: a text of a line or two."""

    @property
    def text(self) -> str:
        """What is shown."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question or sentence of the trusted world's."""

    text: str


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

    def confirm(self, prompt: Shown) -> bool:
        """Show the prompt and return whether the user agreed."""

    def ask_pin(self, prompt: Shown, error: str) -> Secret | None:
        """Let the user type something that is not shown; None when it was cancelled. `error` is what was wrong before."""

    def tell(self, text: str) -> None:
        """Show a sentence until it was read."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that it needs once the process is locked down."""


class NoUi:
    """No surface at all: nobody can agree."""

    descriptors = ()

    def confirm(self, prompt: Shown) -> bool:
        """Return False."""
        return False

    def ask_pin(self, prompt: Shown, error: str) -> Secret | None:
        """Return None."""
        return None

    def tell(self, text: str) -> None:
        """Show nothing."""


class PinentryUi:
    """GnuPG's dialogs on the user's terminal."""

    def __init__(self, program: str, terminal: Terminal) -> None:
        """Start them; MissingOnMachineError or UsageError says why there are none."""
        self._dialogs = Pinentry(pinentry.find(program), terminal, DIALOG_SECONDS)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The pipes to the program."""
        return self._dialogs.descriptors

    def confirm(self, prompt: Shown) -> bool:
        """Ask for yes or no."""
        return self._dialogs.confirm(prompt.text, "Yes", "No")

    def ask_pin(self, prompt: Shown, error: str) -> Secret | None:
        """Ask for what is typed unseen."""
        return self._dialogs.ask(prompt.text, "PIN:", error)

    def tell(self, text: str) -> None:
        """Show a sentence."""
        self._dialogs.message(text)


class ScriptedUi:
    """Answers from a file, in order; cancels when they are used up."""

    def __init__(self, path: str) -> None:
        """Read the answers and open the file of what was shown, both before the process is locked down."""
        try:
            answers = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._shown = os.open(f"{path}.shown", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"the scripted trusted UI cannot use {path}: {error.strerror}") from None
        try:
            with os.fdopen(answers) as file:
                self._answers = [line.strip() for line in file if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"the scripted trusted UI cannot use {path}: it is no text file") from None
        for number, one in enumerate(self._answers, 1):
            if one not in ("confirm", "cancel") and not one.startswith(_TYPE):  # it may be a PIN: it is not shown
                raise UsageError(
                    f"answer {number} in {path} is none; a script has `confirm`, `cancel` or `type 1234` on each line"
                )

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The file of what was shown."""
        return (self._shown,)

    def _next(self, shown: str) -> str:
        os.write(self._shown, f"{shown}\n".encode())
        return self._answers.pop(0) if self._answers else "cancel"

    def confirm(self, prompt: Shown) -> bool:
        """Write the prompt down and take the next answer."""
        return self._next(prompt.text) == "confirm"

    def ask_pin(self, prompt: Shown, error: str) -> Secret | None:
        """Write the prompt down and type the next answer."""
        answer = self._next(f"{error}: {prompt.text}" if error else prompt.text)
        return Secret(answer.removeprefix(_TYPE).encode()) if answer.startswith(_TYPE) else None

    def tell(self, text: str) -> None:
        """Write the sentence down; nobody need answer it."""
        os.write(self._shown, f"{text}\n".encode())


def open_ui(choice: str, terminal: Terminal | None = None) -> TrustedUi:
    """Return the surface that `choice` names; UsageError when there is none of that name, or no `terminal` for it."""
    if choice == NONE:
        return NoUi()
    if choice.startswith(_SCRIPTED):
        return ScriptedUi(choice.removeprefix(_SCRIPTED))
    kind, _, program = choice.partition(":")
    if kind != PINENTRY:
        raise UsageError(f"there is no trusted UI {choice!r}; pinentry and scripted:FILE are two")
    if terminal is None:
        raise UsageError("the trusted UI needs a terminal to appear on; run this in one")
    return PinentryUi(program, terminal)
