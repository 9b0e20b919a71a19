# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The process that atheris takes over: it feeds one target and tells its parent how that goes, a JSON line at a time.

It imports nothing of the project at its head: what is to be followed by coverage must be imported under atheris.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLLOWED = ("pos", "protocol", "wallet")
"""Packages whose branches guide the fuzzer."""

_TELL_SECONDS = 0.2
_WARM_UP = 1000
_A_YEAR = 31_536_000
_LENGTH_BYTES = 8
_MAX_FINDINGS = 20


@dataclass(frozen=True, slots=True)
class Target:
    """One parser of foreign bytes.

    `check` returns in a few words what came of an input, and raises when that is not what the parser promises.
    """

    name: str
    about: str
    check: Callable[[bytes], str]
    seeds: tuple[bytes, ...] = ()
    longest: int = 1024


@dataclass(frozen=True, slots=True)
class Order:
    """What the parent asks for: a target of the module `table`, and when to stop (0 is never)."""

    table: str
    target: str
    corpus: str
    current: str
    runs: int
    seconds: float
    seed: int


@dataclass(slots=True)
class Told:
    """How far it is. `found` maps what went wrong and where to the hexadecimal input that did it; memory in MiB."""

    inputs: int = 0
    seconds: float = 0.0
    rss_before: float = 0.0
    rss_after: float = 0.0
    is_last: bool = False
    found: dict[str, str] = field(default_factory=dict)


class CurrentInput:
    """The input that is being tried, in a file that both processes map: it outlives whatever the input does."""

    def __init__(self, path: Path, longest: int) -> None:
        """Map `path`, for inputs of at most `longest` bytes."""
        size = _LENGTH_BYTES + longest
        with path.open("a+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)

    def put(self, data: bytes) -> None:
        """Note the input."""
        self._map[:_LENGTH_BYTES] = len(data).to_bytes(_LENGTH_BYTES, "little")
        self._map[_LENGTH_BYTES : _LENGTH_BYTES + len(data)] = data

    def get(self) -> bytes:
        """Return the input that was noted last."""
        length = int.from_bytes(self._map[:_LENGTH_BYTES], "little")
        return self._map[_LENGTH_BYTES : _LENGTH_BYTES + length]

    def close(self) -> None:
        """Unmap."""
        self._map.close()


class Feeder:
    """Called by atheris with every input; ends the process when the order is done."""

    def __init__(self, target: Target, order: Order, out: int) -> None:
        """Feed `target` as `order` says, and tell it to the descriptor `out`."""
        self._out = out
        self._check = target.check
        self._order = order
        self._current = CurrentInput(Path(order.current), target.longest)
        self._told = Told()
        self._started = self._told_at = time.monotonic()
        self._tell(self._started)  # everything is imported now

    def __call__(self, data: bytes) -> None:
        """Try one input."""
        self._current.put(data)
        try:
            self._check(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
            self._note(data, error)
        told, now = self._told, time.monotonic()
        told.inputs += 1
        if told.inputs <= _WARM_UP and told.inputs in (1, _WARM_UP):
            told.rss_before = resident_mib()
        if self._is_done(now):
            self._tell(now, is_last=True)
            os._exit(0)
        if now - self._told_at > _TELL_SECONDS:
            self._tell(now)

    def _is_done(self, now: float) -> bool:
        order = self._order
        enough = order.runs and self._told.inputs >= order.runs
        return bool(enough or (order.seconds and now - self._started >= order.seconds))

    def _note(self, data: bytes, error: Exception) -> None:
        what = f"{type(error).__name__} in {_place_of(error)}"
        if len(self._told.found) < _MAX_FINDINGS:
            self._told.found.setdefault(what, data.hex())

    def _tell(self, now: float, *, is_last: bool = False) -> None:
        told = self._told
        self._told_at = now
        told.seconds, told.rss_after, told.is_last = now - self._started, resident_mib(), is_last
        os.write(self._out, json.dumps(asdict(told)).encode() + b"\n")


def _place_of(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "an unknown place"


def resident_mib() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)


def load(table: str) -> dict[str, Target]:
    """Return the targets that a module lists."""
    targets: dict[str, Target] = importlib.import_module(table).TARGETS
    return targets


def main() -> None:
    """Fuzz one target until the order is done; the only argument is the order in JSON."""
    import atheris

    order = Order(**json.loads(sys.argv[1]))
    out = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed goes to the log
    with atheris.instrument_imports(include=[*FOLLOWED, order.table]):
        target = load(order.table)[order.target]
    feed: Any = Feeder(target, order, out)
    no_limits = [f"-timeout={_A_YEAR}", "-rss_limit_mb=0", f"-artifact_prefix={order.current}"]  # the parent watches
    options = [f"-seed={order.seed}", f"-max_len={target.longest}", *no_limits]
    atheris.Setup([sys.argv[0], *options, order.corpus], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
