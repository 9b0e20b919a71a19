# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Processes killed within a tap, by SIGKILL: terminal and wallet at any step of their code, the trusted world before, after
and while it works on a command.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from lab.torture.arena import Arena, charge
from lab.torture.children import Children, Plan
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink

_FRAMES = 11  # commands and answers of a tap, and one more: after the last
_COMMAND_SECONDS = 0.008
_MARGIN = 1.1  # some of the steps are taken after the tap


class Killer:
    """Kills one party after the other in an arena."""

    def __init__(self, arena: Arena, children: Children) -> None:
        """Learn how many steps a charge takes at each side."""
        self._arena = arena
        self._children = children
        self._terminal_steps = int(_MARGIN * children.terminal(Plan()))
        self._wallet_steps = int(_MARGIN * children.wallet(Plan()))

    def kill_terminal(self, number: int) -> None:
        """Let a terminal process charge and die at a step."""
        plan = Plan(die_at=1 + self._arena.random.randrange(self._terminal_steps))
        self._arena.case(
            f"kill {number}: terminal at call {plan.die_at}",
            lambda _: self._children.terminal(plan),
            kind="killed",
        )

    def kill_wallet(self, number: int) -> None:
        """Let a wallet process serve and die at a step, and the trusted world with it."""
        plan = Plan(die_at=1 + self._arena.random.randrange(self._wallet_steps))
        self._arena.case(
            f"kill {number}: wallet at call {plan.die_at}", lambda _: self._children.wallet(plan), kind="killed"
        )

    def kill_tee(self, number: int) -> None:
        """Kill the trusted world when a command or answer goes by, or a moment later."""
        frame = 1 + self._arena.random.randrange(_FRAMES)
        delay = self._arena.random.choice([0.0, self._arena.random.uniform(0, _COMMAND_SECONDS)])
        link = _TeeKiller(self._arena.link(), lambda: self._arena.laboratory.phone.tee.pid, frame, delay)
        self._arena.case(
            f"kill {number}: trusted world at frame {frame} + {1000 * delay:.2f} ms",
            lambda terminal: charge(terminal, link),
            kind="killed",
        )


class _TeeKiller(CardLink):
    """A link that kills the trusted world when a command or answer goes by, at once or a little later."""

    def __init__(self, link: CardLink, pid: Callable[[], int | None], frame: int, delay: float) -> None:
        self._link = link
        self._pid = pid
        self._frame = frame
        self._delay = delay
        self._frames = 0

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        self._frames = 0
        return self._link.activate(timeout)

    def transceive(self, apdu: bytes) -> bytes:
        self._pass()
        answer = self._link.transceive(apdu)
        self._pass()
        return answer

    def _pass(self) -> None:
        self._frames += 1
        if self._frames == self._frame:
            if self._delay:
                threading.Timer(self._delay, self._kill).start()
            else:
                self._kill()

    def _kill(self) -> None:
        pid = self._pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def deactivate(self) -> None:
        self._link.deactivate()

    def close(self) -> None:
        self._link.close()


def kill(arena: Arena, children: Children, cases: int) -> None:
    """Kill each party in turn, `cases` times in all."""
    killer = Killer(arena, children)
    ways = (killer.kill_terminal, killer.kill_tee, killer.kill_wallet)
    for number in range(cases):
        ways[number % len(ways)](number)
    arena.close_books("kills")
