# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Payments that need a Trusted Key, in trouble: the Key gone or killed while it is asked or while it signs, the trusted world
killed while it talks to the Key, and taps torn whose receipt the Key has signed. After each of them a whole one must work.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from console.home import Home
from lab.fixtures import set_up
from lab.key_process import KeyProcess, pair
from lab.torture.arena import SETUP, Arena, Tally, charge
from lab.torture.tears import Meter
from pos.outcome import Outcome
from pos.terminal import Terminal
from protocol.closing import Closing
from protocol.errors import TapLabError, TransportError
from protocol.transport.base import CardLink
from protocol.transport.fault import Fault, FaultKind, Where, inject
from protocol.transport.memory import MemoryPort
from protocol.transport.opening import open_terminal_end
from wallet.trusted_key.control import ControlClient
from wallet.trusted_key.screen import Button, Showing

_LIMIT, _KEY_LIMIT = "0.50", "0.80"  # the sale is above both, the next customer's below
_PATIENCE = 30.0
_KEY_SECONDS = 0.2
_LOOK_SECONDS = 0.01
_COMMAND_SECONDS = 0.01


class _Hand(Closing):
    """The user's, who agrees to whatever the Key asks, as long as there is a Key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._press, daemon=True)
        self._thread.start()

    def _press(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            with contextlib.suppress(TapLabError), ControlClient(self._folder) as client:
                while not self._closed.wait(_LOOK_SECONDS):
                    frame = client.frame()
                    if frame.showing is Showing.QUESTION:
                        client.press(Button.OK, frame.number)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


class _Way:
    """The card that the wallet finds where it looks for its Key: it hands everything to the Key's process and back.

    At one of the commands and answers that go by, something happens.
    """

    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._url = url
        self._link: CardLink | None = None
        self._strike: Callable[[], None] | None = None
        self._at = 0
        self.passed = 0
        self.lay()

    def lay(self) -> None:
        """Let the Key be there, from now on."""
        self._port = MemoryPort(self._name)
        self._port.present(self)

    def vanish(self) -> None:
        """Take the Key away; it can be found again at once, but what was being said is over."""
        self._port.close()
        self.lay()

    def plan(self, at: int, strike: Callable[[], None]) -> None:
        """Let `strike` happen when that many more commands and answers have gone by; 0 for never."""
        self.passed, self._at, self._strike = 0, at, strike

    def activate(self) -> None:
        self._link = open_terminal_end(self._url)
        with contextlib.suppress(TransportError):
            self._link.activate(_KEY_SECONDS)

    def process(self, apdu: bytes) -> bytes:
        """Carry a command and its answer; a Key that does not answer has left."""
        self._pass()
        try:
            answer = self._link.transceive(apdu) if self._link else b""
        except TransportError:
            self.vanish()
            return b""
        self._pass()
        return answer

    def _pass(self) -> None:
        self.passed += 1
        if self.passed == self._at and self._strike:
            self._strike()

    def deactivate(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def close(self) -> None:
        self._port.close()


class _Shop(Closing):
    """A laboratory whose wallet has a Key: a process of its own, reached by a way that can be struck."""

    def __init__(self, folder: Path, seed: int, tick: Callable[[], None]) -> None:
        home = Home(folder)
        set_up(home, SETUP)
        self.key = KeyProcess(home)
        pair(home, self.key, _LIMIT, _KEY_LIMIT)
        self._hand = _Hand(home.key)
        self._way = _Way(str(home.key), home.key_link)
        self.arena = Arena(folder, seed, tick, key_link=f"memory:{home.key}")
        self._passes, self._frames = self._measured()

    def _measured(self) -> tuple[int, int]:
        """Return how many commands and answers go to the Key for one payment, and how many frames its second tap has."""
        link = self.arena.link()
        meter = link.frames = Meter(link.frames)
        self._way.plan(0, lambda: None)
        self.whole("the start", link)
        return self._way.passed, meter.frames

    def pay(self, terminal: Terminal, link: CardLink | None = None) -> Outcome | None:
        """Tap, agree on the Key, tap again, the second time over `link`."""
        first = charge(terminal, self.arena.link())
        if first is None or first.approved:
            return first
        self._rest()
        return charge(terminal, link or self.arena.link())

    def whole(self, after: str, link: CardLink | None = None) -> None:
        """Pay without trouble: the Key must still be good for it."""
        said: list[Outcome | None] = []
        self.arena.case(f"whole, after {after}", lambda terminal: said.append(self.pay(terminal, link)), kind="")
        if said[0] is None or not said[0].approved:
            self.arena.tally.find("bricked", f"the Key, after {after}")

    def _rest(self) -> None:
        if not self.arena.laboratory.phone.rest(_PATIENCE):
            raise TapLabError("the wallet's housekeeping does not end")

    def vanish(self) -> str:
        """Take the Key out of reach for a moment, at one of the commands and answers."""
        at = self._any_pass()
        name = f"key gone at {at}"
        self._struck(name, at, self._way.vanish, "torn")
        return name

    def kill_key(self) -> str:
        """Kill the Key's process at one of the commands and answers, or while it works; it is started again afterwards."""
        return self._kill("key", lambda: self.key.pid)

    def kill_tee(self) -> str:
        """Kill the trusted world at one of the commands to the Key and its answers, or a moment later."""
        return self._kill("trusted world", lambda: self.arena.laboratory.phone.tee.pid)

    def tear(self) -> str:
        """Take the wallet away at one of the frames of the tap that the Key signs for."""
        fault = Fault(FaultKind.TEAR, Where.FRAME, 1 + self.arena.random.randrange(self._frames))
        name = f"with a Key, {fault}"
        self.arena.case(name, lambda terminal: self.pay(terminal, inject(self.arena.link(), fault)))
        return name

    def _any_pass(self) -> int:
        return 1 + self.arena.random.randrange(self._passes)

    def _kill(self, party: str, pid: Callable[[], int | None]) -> str:
        at = self._any_pass()
        delay = self.arena.random.choice([0.0, self.arena.random.uniform(0, _COMMAND_SECONDS)])
        name = f"{party} killed at {at} + {1000 * delay:.2f} ms"
        later = threading.Timer(delay, _kill, [pid])
        self._struck(name, at, later.start if delay else lambda: _kill(pid), "killed", later)
        return name

    def _struck(
        self, name: str, at: int, strike: Callable[[], None], kind: str, later: threading.Timer | None = None
    ) -> None:
        def attempt(terminal: Terminal) -> None:
            self._way.plan(at, strike)
            self.pay(terminal)
            self._rest()
            self._way.plan(0, lambda: None)
            if later is not None and later.is_alive():
                later.join()
            if not self.key.is_alive:
                self.key.restart()

        self.arena.case(f"with a Key, {name}", attempt, kind=kind)

    def close(self) -> None:
        """End every process."""
        self.arena.close()
        self._way.close()
        self._hand.close()
        self.key.close()


def _kill(pid: Callable[[], int | None]) -> None:
    number = pid()
    if number is not None:
        os.kill(number, signal.SIGKILL)


def trouble(folder: Path, seed: int, cases: int, tick: Callable[[], None]) -> Tally:
    """Let the Key be in trouble `cases` times, in each way in turn; after each time pay whole."""
    with _Shop(folder, seed, tick) as shop:
        ways = (shop.vanish, shop.kill_key, shop.kill_tee, shop.tear)
        for number in range(cases):
            shop.whole(ways[number % len(ways)]())
        shop.arena.close_books("with a Key")
        return shop.arena.tally
