# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`scripts/demo --key`: a Trusted Key beside the wallet, paired, asked, pressed; it signs the receipt too."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from console.home import Home
from lab import processes
from lab.processes import WalletProcess
from protocol.closing import Closing
from protocol.errors import TapLabError
from wallet.trusted_key.control import ControlClient
from wallet.trusted_key.screen import Button, Showing

LIMIT, KEY_LIMIT = "50.00", "100.00"
_PATIENCE = 20.0


class KeyProcess(Closing):
    """`tap-key serve`, and the fingers of its user."""

    def __init__(self, home: Home) -> None:
        """Make a Key in `home` and start it; TapLabError with its own sentence when it does not."""
        self._home = home
        _run("wallet.trusted_key", "init", home)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wallet.trusted_key", "serve", "--home", str(home.path), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        ready = self._process.stdout.readline() if self._process.stdout else ""
        if not ready or json.loads(ready).get("event") != "ready":
            self._process.wait()
            raise TapLabError("the Key did not start")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def press_ok(self) -> str:
        """Wait until the Key asks something, press OK, and return what it asked."""
        until = time.monotonic() + _PATIENCE
        with ControlClient(self._home.key) as client:
            while time.monotonic() < until:
                frame = client.frame()
                if frame.showing is Showing.QUESTION:
                    client.press(Button.OK, frame.number)
                    return " ".join(frame.text.split())
                time.sleep(0.02)
        raise TapLabError("the Key asked nothing")

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def pair(home: Home, key: KeyProcess) -> str:
    """Pair wallet and Key, let large payments need it, and return the question that the Key asked."""
    answers = home.path / "trusted-ui"
    answers.write_text("confirm\nconfirm\n")
    surface = ("--trusted-ui", f"scripted:{answers}")
    command = [sys.executable, "-m", "wallet", "pair", *surface, "--home", str(home.path), "--json"]
    pairing = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    question = key.press_ok()
    said, _ = pairing.communicate(timeout=_PATIENCE)
    if not said or not json.loads(said).get("done"):
        raise TapLabError("wallet and Key could not be paired")
    _run("wallet", "limits", home, LIMIT, "--key", KEY_LIMIT, *surface)
    return question


def agree(home: Home, key: KeyProcess, wallet: WalletProcess, amount: str, currency: str, link: str) -> str:
    """Tap once, so that the wallet asks; press OK on the Key; return what it asked once the wallet knows."""
    report, _, _ = processes.charge(home.path, amount, currency, link)
    if report["outcome"] != "see phone":
        raise TapLabError(f"the first tap was {report['outcome']}")
    question = key.press_ok()
    wallet.wait_for("consent", _PATIENCE)
    return question


def _run(program: str, command: str, home: Home, *arguments: str) -> None:
    line = [sys.executable, "-m", program, command, *arguments, "--home", str(home.path), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=_PATIENCE)
    if done.returncode:
        raise TapLabError(f"{program} {command} failed: {done.stderr.strip()}")
