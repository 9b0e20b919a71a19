# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Exit codes by outcome. docs/commands.md has the table; a test keeps it equal to this."""

from __future__ import annotations

from enum import IntEnum

from protocol.errors import (
    InUseError,
    LinkUnavailableError,
    MissingOnMachineError,
    TapLabError,
    TransportError,
    UsageError,
)


class ExitCode(IntEnum):
    """What a command's exit status says."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DECLINED = 10
    SEE_PHONE = 11
    TORN = 12
    NO_APPLICATION = 13
    NOT_VERIFIED = 14
    NOT_ACCEPTED = 15
    NO_CARD = 16
    UNAVAILABLE = 69
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """The code in a sentence, as the documentation's table has it."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done; for `charge`: approved",
    ExitCode.FAILED: "something failed; the sentence on standard error says what",
    ExitCode.USAGE: "the command line or the input makes no sense; nothing was changed",
    ExitCode.DECLINED: "the wallet refused the payment (the reason is shown); nothing was deducted",
    ExitCode.SEE_PHONE: "the wallet wants its user's consent; tap again after it was given",
    ExitCode.TORN: "the card left, or Ctrl-C came, too early; the screen says whether something may have been charged",
    ExitCode.NO_APPLICATION: "the card has no payment application that this terminal knows",
    ExitCode.NOT_VERIFIED: "the card, or what it said, failed a check; it is not to be trusted",
    ExitCode.NOT_ACCEPTED: "the wallet does not accept this terminal; its owner's history says why",
    ExitCode.NO_CARD: "no card was presented in time",
    ExitCode.UNAVAILABLE: "something here is missing or in use; the sentence says what to install, start or wait for",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C; nothing is left broken and nothing was being charged",
}


def code_of(error: TapLabError) -> ExitCode:
    """Return the exit code of an error that ended a command."""
    if isinstance(error, UsageError):
        return ExitCode.USAGE
    if isinstance(error, MissingOnMachineError | LinkUnavailableError | InUseError):
        return ExitCode.UNAVAILABLE
    return ExitCode.TORN if isinstance(error, TransportError) else ExitCode.FAILED
