# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A PC/SC service of our own for demonstrations and measurements, with the vpcd driver in it; ended by who started it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time

from protocol.closing import Closing
from protocol.errors import LinkUnavailableError, MissingOnMachineError

_STARTS = 2  # after a service that just ended its port or its files may not be free at once
_START_SECONDS = 8.0
_STOP_SECONDS = 5.0
_RETRY_SECONDS = 0.02
_VPCD = ("127.0.0.1", 35963)
SEARCHED = "/usr/sbin:/sbin"  # which few users have in their PATH


class PcscService(Closing):
    """`pcscd --foreground` with both vpcd slots."""

    def __init__(self) -> None:
        """Start it and wait until vpcd listens; MissingOnMachineError names what is not installed."""
        program = shutil.which("pcscd") or shutil.which("pcscd", path=SEARCHED)
        if program is None:
            raise MissingOnMachineError("pcscd is not installed; on Debian: apt-get install pcscd vsmartcard-vpcd")
        if _vpcd_listens():
            raise LinkUnavailableError(
                "a PC/SC service with vpcd runs already; stop it, or use its readers with pcsc: and vpcd:"
            )
        for _ in range(_STARTS):
            self._process = subprocess.Popen(
                [program, "--foreground"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            if self._comes_up():
                return
            self.close()
        raise MissingOnMachineError(
            "pcscd does not start with the vpcd driver; on Debian: apt-get install pcscd vsmartcard-vpcd, "
            "and run this as root"
        )

    def _comes_up(self) -> bool:
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if _vpcd_listens():
                return True
            time.sleep(_RETRY_SECONDS)
        return False

    def close(self) -> None:
        """End the service."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


def _vpcd_listens() -> bool:
    try:
        socket.create_connection(_VPCD, timeout=1).close()
    except OSError:
        return False
    return True
