# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A client of pinentry, GnuPG's dialog for PINs, over the Assuan protocol (Libassuan manual, "Assuan protocol").

The program is started before the trusted world is locked down, and speaks through pipes that only the trusted world holds.
A dialog that was closed for good ends the program, so a spare one stands by. What is shown comes from the trusted world; what
is typed goes to it and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import MissingOnMachineError, TapLabError, UsageError
from protocol.secret import Secret

PROGRAMS = ("pinentry-curses", "pinentry-tty")
_SPARE = 2
_LINE_BYTES = 1000  # Assuan's limit on a line
_GREETING_SECONDS = 5.0
_TITLE = "TapLab trusted world"


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal that the dialogs appear on: its device, and its type as TERM has it."""

    device: str
    kind: str


class _EndedError(TapLabError):
    """The program has ended."""


class NoDialogLeftError(TapLabError):
    """Every program has ended, and a locked-down world starts no other."""


def find(program: str) -> str:
    """Return the path of `program`, or of the first pinentry for terminals; MissingOnMachineError when there is none."""
    for name in (program,) if program else PROGRAMS:
        path = shutil.which(name) or shutil.which(name, path="/usr/bin:/usr/local/bin")
        if path:
            return path
    raise MissingOnMachineError(
        f"{program or 'pinentry'} is not installed; on Debian: apt-get install pinentry-curses, or pinentry-tty"
    )


class _Program:
    """One running pinentry."""

    def __init__(self, path: str, terminal: Terminal, timeout: int) -> None:
        process = subprocess.Popen(
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"TERM": terminal.kind, "LC_CTYPE": "C.UTF-8"},
        )  # in the trusted world's process group, so that whoever ends that ends the dialogs
        if process.stdin is None or process.stdout is None:
            raise _EndedError("pinentry has no input or output")
        self.pid = process.pid
        self.input, self.output = os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno())
        process.stdin.close()
        process.stdout.close()
        process.returncode = 0  # it ends with its pipes; the locked-down world cannot wait for it
        self._buffer = b""
        self._greeting(path)
        for line in (
            f"OPTION ttyname={terminal.device}",
            f"OPTION ttytype={terminal.kind}",
            "OPTION lc-ctype=C.UTF-8",
            "OPTION no-grab",
            f"SETTITLE {_escape(_TITLE)}",
            f"SETTIMEOUT {timeout}",
        ):
            self.say(line)

    def _greeting(self, path: str) -> None:
        """Take the greeting; UsageError when `path` is another kind of program. Later answers take as long as a person does."""
        said, _, _ = select.select([self.output], [], [], _GREETING_SECONDS)
        with contextlib.suppress(_EndedError):
            if said and self._line().startswith(b"OK"):
                return
        os.kill(self.pid, signal.SIGKILL)
        raise UsageError(f"{path} is no pinentry: it does not greet as one")

    def say(self, line: str) -> tuple[bool, bytes]:
        """Send one command; return whether it was answered OK, and the data that came before that."""
        encoded = line.encode("utf-8")
        if len(encoded) > _LINE_BYTES:
            raise UsageError("what is to be shown is too long for a dialog")
        try:
            os.write(self.input, encoded + b"\n")
        except OSError:
            raise _EndedError("pinentry has ended") from None
        return self._answer()

    def _answer(self) -> tuple[bool, bytes]:
        data = b""
        while True:
            line = self._line()
            if line.startswith(b"D "):
                data += _unescape(line[2:])
            elif line == b"OK" or line.startswith(b"OK "):
                return True, data
            elif line.startswith(b"ERR "):
                return False, b""

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            piece = os.read(self.output, 4096)
            if not piece:
                raise _EndedError("pinentry has ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


class Pinentry:
    """The dialogs. A cancelled, timed out or vanished dialog is a no; NoDialogLeftError once none can be shown."""

    def __init__(self, path: str, terminal: Terminal, timeout: int) -> None:
        """Start the program; MissingOnMachineError or UsageError says why there can be no dialog."""
        if not Path(terminal.device).is_char_device():
            raise UsageError("the trusted UI needs a terminal to appear on; run this in one")
        self._programs = [_Program(path, terminal, timeout) for _ in range(_SPARE)]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The pipes."""
        return tuple(one for program in self._programs for one in (program.input, program.output))

    def confirm(self, text: str, yes: str, no: str) -> bool:
        """Ask a question and return whether `yes` was chosen."""
        asked = (f"SETDESC {_escape(text)}", f"SETOK _{yes}", f"SETCANCEL _{no}", "CONFIRM")
        return self._dialog(asked) is not None

    def ask(self, text: str, prompt: str, error: str = "") -> Secret | None:
        """Ask for something that is not shown while it is typed; None when nobody answered."""
        asked = [f"SETDESC {_escape(text)}", f"SETPROMPT {_escape(prompt)}"]
        asked += [f"SETERROR {_escape(error)}"] if error else []
        answer = self._dialog((*asked, "SETOK _OK", "SETCANCEL _Cancel", "GETPIN"))
        return Secret(answer) if answer is not None else None

    def message(self, text: str) -> None:
        """Show something until it was read."""
        self._dialog((f"SETDESC {_escape(text)}", "SETOK _OK", "MESSAGE"))

    def _dialog(self, lines: tuple[str, ...]) -> bytes | None:
        """Say every line to the first program that lives; return the data of the last, None unless that was OK."""
        if not self._programs:
            raise NoDialogLeftError("nobody can be asked any more: the dialog programs have ended; start this again")
        try:
            *before, last = lines
            for line in before:
                self._programs[0].say(line)
            done, data = self._programs[0].say(last)
        except _EndedError:
            self._programs.pop(0)
            return None  # whoever closed the dialog for good has answered
        return data if done else None


def _escape(text: str) -> str:
    """Return `text` as an Assuan argument: percent-escaped where a line would end, and nothing that steers a terminal."""
    shown = "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
    return shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _unescape(data: bytes) -> bytes:
    parts = data.split(b"%")
    return parts[0] + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in parts[1:])
