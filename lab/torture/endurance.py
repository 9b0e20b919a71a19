# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Thousands of taps in a row on one wallet and one terminal: no leak, no slowing down, and the sums are right."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.torture.arena import NEXT_SALE, Arena

_WARM_UP = 50
_SETTLE_EVERY = 500
SLOWER_AT_MOST = 1.2
GROWS_AT_MOST_MIB = 8.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resident memory in MiB and open descriptors of the process that is wallet and terminal, and of the trusted world."""

    own_mib: float
    tee_mib: float
    own_descriptors: int
    tee_descriptors: int


def _footprint(tee: int) -> Footprint:
    return Footprint(_memory(os.getpid()), _memory(tee), _descriptors(os.getpid()), _descriptors(tee))


def _memory(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names only


@dataclass(frozen=True, slots=True)
class Endurance:
    """What was measured: medians of the first and the last tenth of the taps, footprints after each of them."""

    taps: int
    first_ms: float
    last_ms: float
    first: Footprint
    last: Footprint

    @property
    def ratio(self) -> float:
        """How much slower the last tenth was."""
        return round(self.last_ms / self.first_ms, 2)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "taps": self.taps,
            "first_tenth_ms": round(self.first_ms, 2),
            "last_tenth_ms": round(self.last_ms, 2),
            "last_over_first": self.ratio,
            "memory_mib": {
                "first": [self.first.own_mib, self.first.tee_mib],
                "last": [self.last.own_mib, self.last.tee_mib],
            },
            "descriptors": {
                "first": [self.first.own_descriptors, self.first.tee_descriptors],
                "last": [self.last.own_descriptors, self.last.tee_descriptors],
            },
        }


def endure(arena: Arena, taps: int) -> Endurance:
    """Tap `taps` times in a row, refilling and settling on the way; findings go into the arena's tally."""
    terminal, link = arena.terminal(), arena.link()
    before = arena.balance
    seconds: list[float] = []
    first: Footprint | None = None
    tenth = taps // 10
    for number in range(taps + _WARM_UP):
        arena.restock()
        if number % _SETTLE_EVERY == 0:
            arena.close_books(f"tap {number}")
        started = time.perf_counter()
        outcome = terminal.charge(NEXT_SALE, link)
        seconds.append(time.perf_counter() - started)
        if not outcome.approved:
            arena.tally.find("bricked", f"tap {number} of many: {outcome}")
        if number == _WARM_UP + tenth:
            first = _footprint(arena.laboratory.phone.tee.pid or 0)
        arena.tick()
    arena.close_books("many taps")
    if before - arena.balance != (taps + _WARM_UP) * NEXT_SALE.minor:
        arena.tally.find("lost", "many taps: the balance is not what was paid")
    last = _footprint(arena.laboratory.phone.tee.pid or 0)
    timed = seconds[_WARM_UP:]
    ends = statistics.median(timed[:tenth]), statistics.median(timed[-tenth:])
    return Endurance(taps, 1000 * ends[0], 1000 * ends[1], first or last, last)
