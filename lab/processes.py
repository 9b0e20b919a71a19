# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Wallet and terminal as the processes that users start, for demonstration and measurement."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from protocol.closing import Closing
from protocol.errors import TapLabError

_STOP_SECONDS = 10.0


class WalletProcess(Closing):
    """`tap-wallet serve --json`: what it prints is collected in `events`."""

    def __init__(self, home: Path, link: str, *options: str) -> None:
        """Start it and wait until it serves; TapLabError with its own sentence when it does not."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wallet", "serve", link, "--home", str(home), "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._process.stdout is None or self._process.stderr is None:
            raise TapLabError("the wallet process has no output")
        self._lines = self._process.stdout
        first = self._lines.readline()
        ready = json.loads(first) if first else {}
        if ready.get("step") != "ready":
            self._process.wait()
            said = self._process.stderr.read().strip() or ready.get("error", "it ended")
            raise TapLabError(f"the wallet process did not start: {said}")
        self.ready: dict[str, Any] = ready
        self.events: list[dict[str, Any]] = []
        self._ended = threading.Condition()
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()

    def _collect(self) -> None:
        for line in self._lines:
            with self._ended:
                self.events.append(json.loads(line))
                self._ended.notify_all()

    @property
    def processes(self) -> dict[str, int]:
        """Process ids of wallet and TEE."""
        pids: dict[str, int] = self.ready["processes"]
        return pids

    def wait_for(self, step: str, timeout: float = 5.0, *, since: int = 0) -> None:
        """Wait until an event with this step was printed, of a time after `since` (nanoseconds); TapLabError when none is."""

        def came() -> bool:
            return any(one["step"] == step and one.get("at", 0) >= since for one in self.events)

        with self._ended:
            if not self._ended.wait_for(came, timeout):
                raise TapLabError(f"the wallet did not say {step!r} in {timeout} s")

    def close(self) -> None:
        """End the process as Ctrl-C would, and wait for it."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()


def charge(home: Path, amount: str, currency: str, link: str) -> tuple[dict[str, Any], int, int]:
    """Run `tap-pos charge --json` and return its JSON, its exit code and its process id."""
    command = [sys.executable, "-m", "pos", "charge", amount, currency, link, "--home", str(home), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate()
    if not output.strip():
        raise TapLabError(f"the terminal process failed: {errors.strip()}")
    return json.loads(output), process.returncode, process.pid
