# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Starts an ordinary process and a TEE, tries to read the memory of both as the same user, and prints how that went.

Root may read everything by CAP_SYS_PTRACE, so it is given up first, for good and for all that is started here.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

from wallet.environment.launcher import HardwareEnvironment
from wallet.phone import PhoneOptions, start_of

_PR_CAPBSET_DROP = 24
_CAP_SYS_PTRACE = 19
_GIVEN_UP = "given up"


def _give_up_tracing() -> None:
    """Drop the capability from the bounding set; it is gone after the next exec. Who is not root never had it."""
    if sys.argv[-1] != _GIVEN_UP:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_SYS_PTRACE, 0, 0, 0)
        os.execv(sys.executable, [sys.executable, "-I", *sys.argv, _GIVEN_UP])  # noqa: S606


def _read_memory(pid: int) -> str:
    try:
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def main() -> None:
    """Take the wallet's folder from the command line."""
    _give_up_tracing()
    wallet = Path(sys.argv[1])
    environment = HardwareEnvironment(start_of(wallet, PhoneOptions()))
    ordinary = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    outcome = {"ordinary": _read_memory(ordinary.pid), "tee": _read_memory(environment.pid)}
    ordinary.communicate(b"\n")
    environment.close()
    sys.stdout.write(json.dumps(outcome))


if __name__ == "__main__":
    main()
