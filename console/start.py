# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The first module of every command: it imports next to nothing, so that Ctrl-C is told in a sentence from the start."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

INTERRUPTED = 130


def start(program: str, module: str) -> None:
    """Import `module`, the command line, and run its `main`; Ctrl-C meanwhile ends the process, which has done nothing yet."""

    def end(*_: object) -> None:
        sys.stderr.write(f"{program}: interrupted\n")
        sys.stderr.flush()
        os._exit(INTERRUPTED)

    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # in the background it is ignored
    if is_usual:
        signal.signal(signal.SIGINT, end)
    command_line = import_module(module)
    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line.main()
