# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-key serve` as a process beside the wallet's, and the fingers of its user: for the demonstration and for torture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from console.home import Home
from protocol.closing import Closing
from protocol.errors import TapLabError
from wallet.trusted_key.control import ControlClient
from wallet.trusted_key.screen import Button, Showing

_PATIENCE = 20.0


class KeyProcess(Closing):
    """`tap-key serve`, and the fingers of its user."""

    def __init__(self, home: Home) -> None:
        """Make a Key in `home` and start it; TapLabError with its own sentence when it does not."""
        self._home = home
        _run("wallet.trusted_key", "init", home)
        self._process = _serve(home)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def restart(self) -> None:
        """Start it again from the flash that it left."""
        self.close()
        self._process = _serve(self._home)

    def press_ok(self) -> str:
        """Wait until the Key asks something, press OK, and return what it asked."""
        return press(self._home.key, Button.OK)

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def press(folder: Path, button: Button) -> str:
    """Wait until the Key that serves from `folder` asks something, press a button, and return what it asked."""
    until = time.monotonic() + _PATIENCE
    with ControlClient(folder) as client:
        while time.monotonic() < until:
            frame = client.frame()
            if frame.showing is Showing.QUESTION:
                client.press(button, frame.number)
                return " ".join(frame.text.split())
            time.sleep(0.02)
    raise TapLabError("the Key asked nothing")


def pair(home: Home, key: KeyProcess, limit: str, key_limit: str) -> str:
    """Pair wallet and Key, let payments above `key_limit` need it, and return the question that the Key asked."""
    answers = home.path / "trusted-ui"
    answers.write_text("confirm\nconfirm\n")
    surface = ("--trusted-ui", f"scripted:{answers}")
    command = [sys.executable, "-m", "wallet", "pair", *surface, "--home", str(home.path), "--json"]
    pairing = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    question = key.press_ok()
    said, _ = pairing.communicate(timeout=_PATIENCE)
    if not said or not json.loads(said).get("done"):
        raise TapLabError("wallet and Key could not be paired")
    _run("wallet", "limits", home, limit, "--key", key_limit, *surface)
    return question


def _serve(home: Home) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "wallet.trusted_key", "serve", "--home", str(home.path), "--json"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    ready = process.stdout.readline() if process.stdout else ""
    if not ready or json.loads(ready).get("event") != "ready":
        process.wait()
        raise TapLabError("the Key did not start")
    return process


def _run(program: str, command: str, home: Home, *arguments: str) -> None:
    line = [sys.executable, "-m", program, command, *arguments, "--home", str(home.path), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=_PATIENCE)
    if done.returncode:
        raise TapLabError(f"{program} {command} failed: {done.stderr.strip()}")
