# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Terminal and wallet as child processes that are about to meet trouble.

They come from a fork server that has everything imported, so that a case costs a tap and not a start. A child can be told to
kill itself at the n-th call of a function of its party (no step of the code is left out, and a seed repeats it), or to live on
a disk whose system calls fail: the kernel refuses them by a seccomp filter, which the trusted world inherits.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any

from console.home import Home
from lab.torture.arena import SALE, Arena, charge
from pos.terminal import Terminal, TerminalOptions
from protocol.errors import TapLabError
from protocol.transport.base import CardHandler
from protocol.transport.opening import open_card_end, open_terminal_end
from wallet.phone import Phone

NEVER = 1 << 30
_PRELOAD = ["lab.torture.children", "pos.terminal", "wallet.phone", "protocol.transport.socket_link", "pyseccomp"]
_PATIENCE = 20.0
_LOOK_AGAIN = 0.005
_LAST_WORDS = 0.03  # seconds that a wallet goes on after the tap before it ends


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a disk: which system calls fail, and how."""

    name: str
    calls: tuple[str, ...]
    error: int


NO_SYNC = Trouble("does not sync", ("fsync", "fdatasync"), errno.EIO)
NO_WRITE = Trouble("cannot be written", ("pwrite64", "pwritev", "ftruncate", "fsync", "fdatasync"), errno.EROFS)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a child meets: its death at a step, a disk in trouble, or nothing."""

    die_at: int = NEVER
    trouble: Trouble | None = None


def _fail_calls(trouble: Trouble) -> None:
    """Let the kernel refuse these calls of this process, and of those that it starts from now on."""
    import pyseccomp

    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    for name in trouble.calls:
        rules.add_rule(pyseccomp.ERRNO(trouble.error), name)
    rules.load()


def _die_at(call: int, party: str, steps: Any) -> None:
    """Kill this process at the `call`-th call of a function of `party` from now on; `steps` counts the calls."""
    own = f"{os.sep}{party}{os.sep}"

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and own in frame.f_code.co_filename:
            steps.value += 1
            if steps.value == call:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)


def _be_terminal(home: str, link: str, plan: Plan, steps: Any) -> None:
    with contextlib.suppress(TapLabError), Terminal.open(Path(home), TerminalOptions(timeout=5.0)) as terminal:
        opened = open_terminal_end(link)
        if plan.trouble:
            _fail_calls(plan.trouble)
        _die_at(plan.die_at, "pos", steps)
        terminal.charge(SALE, opened)
        sys.setprofile(None)
        opened.close()


def _be_wallet(home: str, link: str, plan: Plan, steps: Any, ready: Any) -> None:
    if plan.trouble:
        _fail_calls(plan.trouble)
    with contextlib.suppress(TapLabError), Phone(Home(Path(home)).wallet, Home(Path(home)).issuer_url) as phone:
        port = open_card_end(link)
        ready.set()
        port.serve(_CountedCard(phone.card, plan, steps))


class _CountedCard:
    """A card whose process begins to count its steps when the first tap begins."""

    def __init__(self, card: CardHandler, plan: Plan, steps: Any) -> None:
        self._card = card
        self._plan = plan
        self._steps = steps

    def activate(self) -> None:
        """A tap begins."""
        if not self._steps.value:
            _die_at(self._plan.die_at, "wallet", self._steps)
        self._card.activate()

    def process(self, apdu: bytes) -> bytes:
        """Let the card answer."""
        return self._card.process(apdu)

    def deactivate(self) -> None:
        """The tap is over."""
        self._card.deactivate()


class Children:
    """Puts a child in the place of one of an arena's parties for one charge of the sale."""

    def __init__(self, arena: Arena) -> None:
        """Prepare the fork server."""
        self._arena = arena
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)
        self._home = str(arena.laboratory.home.path)
        self._link = f"socket:{self._home}/torture.sock"

    def terminal(self, plan: Plan) -> int:
        """Let a terminal process charge the arena's wallet; return how many steps it took."""
        laboratory = self._arena.laboratory
        port = open_card_end(self._link)
        serving = threading.Thread(target=port.serve, args=(laboratory.phone.card,), daemon=True)
        serving.start()
        laboratory.terminal.close()
        steps = self._context.Value("q", 0)
        child = self._context.Process(target=_be_terminal, args=(self._home, self._link, plan, steps))
        child.start()
        child.join(_PATIENCE)
        _end(child)
        port.close()
        serving.join(_PATIENCE)
        laboratory.terminal = Terminal.open(laboratory.home.path, TerminalOptions(timeout=1.0))
        return int(steps.value)

    def wallet(self, plan: Plan, charges: int = 1) -> int:
        """Let the arena's terminal charge a wallet process; return how many steps that took."""
        self._arena.leave_wallet()
        steps, ready = self._context.Value("q", 0), self._context.Event()
        child = self._context.Process(target=_be_wallet, args=(self._home, self._link, plan, steps, ready))
        child.start()
        if self._is_ready(child, ready):
            for _ in range(charges):
                charge(self._arena.laboratory.terminal, self._link)
            time.sleep(self._arena.random.uniform(0, _LAST_WORDS))
        _end(child)
        self._arena.come_back()
        return int(steps.value)

    def _is_ready(self, child: ForkServerProcess, ready: Any) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while child.is_alive() and time.monotonic() < deadline:
            if ready.wait(_LOOK_AGAIN):
                return True
        return False


def _end(child: ForkServerProcess) -> None:
    child.kill()
    child.join()
    child.close()
