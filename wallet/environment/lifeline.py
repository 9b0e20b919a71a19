# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The trusted world and its dialogs end with the phone, however that ends: killed, or its terminal closed under a dialog.

Its standard input is a pipe that nothing is ever written to. Once nobody holds the other end, the kernel ends the process
group with SIGIO (fcntl(2), O_ASYNC). The trusted world may be waiting for its user and would not look; and locked down it
can neither look nor end a dialog, which would go on reading the keyboard.
"""

from __future__ import annotations

import fcntl
import os
import stat

_STANDARD_INPUT = 0


def end_with_the_phone() -> tuple[int, ...]:
    """Let this process group end when standard input does, if that is a pipe; return the descriptor to keep open for it."""
    if not stat.S_ISFIFO(os.fstat(_STANDARD_INPUT).st_mode):
        return ()
    lifeline = os.dup(_STANDARD_INPUT)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        os.read(lifeline, 1)
    except BlockingIOError:
        return (lifeline,)
    raise SystemExit(1)  # it ended before the kernel was asked
