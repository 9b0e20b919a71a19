# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The kept corpus: for each target a file of hexadecimal lines, shortest first, each of which shows something new."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from lab.fuzz_child import FOLLOWED

AT_MOST = 200
_SUFFIX = ".hex"
_FOUND_SUFFIX = ".found.hex"


def kept_file(folder: Path, target: str) -> Path:
    """Return where the corpus of a target is."""
    return folder / f"{target}{_SUFFIX}"


def found_file(folder: Path, target: str) -> Path:
    """Return where inputs wait that broke a target, until it is mended."""
    return folder / f"{target}{_FOUND_SUFFIX}"


def read(file: Path) -> list[bytes]:
    """Return the inputs in a file, none when there is no file."""
    return [bytes.fromhex(line) for line in file.read_text("ascii").splitlines()] if file.exists() else []


def kept(folder: Path, target: str) -> list[bytes]:
    """Return the corpus of a target, with what broke it and is not mended yet."""
    return read(kept_file(folder, target)) + read(found_file(folder, target))


def write(file: Path, inputs: Iterable[bytes]) -> None:
    """Write inputs, each once, in order of length; nothing leaves no file. The empty input needs no keeping."""
    ordered = sorted({data for data in inputs if data}, key=lambda data: (len(data), data))
    if ordered:
        file.write_text("".join(f"{data.hex()}\n" for data in ordered), "ascii")
    else:
        file.unlink(missing_ok=True)


def minimised(check: Callable[[bytes], str], seeds: Iterable[bytes], candidates: Iterable[bytes]) -> list[bytes]:
    """Return the fewest candidates, short ones preferred, that reach together what all of them reach.

    What the seeds reach needs no candidate. Reached is each pair of lines run one after the other, and each outcome.
    """
    reached: set[object] = set()
    for data in (b"", *seeds):
        reached |= _footprint(check, data)
    chosen: list[bytes] = []
    for data in sorted(set(candidates), key=lambda data: (len(data), data)):
        if len(chosen) < AT_MOST and (new := _footprint(check, data) - reached):
            chosen.append(data)
            reached |= new
    return chosen


def _footprint(check: Callable[[bytes], str], data: bytes) -> set[object]:
    seen: set[object] = set()
    before = sys.gettrace()
    sys.settrace(_tracer(seen))
    try:
        seen.add(check(data))
    finally:
        sys.settrace(before)
    return seen


def _tracer(seen: set[object]) -> Callable[[FrameType, str, Any], Any]:
    def enter(frame: FrameType, _: str, __: Any) -> Any:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in FOLLOWED:
            return None
        code, last = frame.f_code, 0

        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            if event == "line":
                seen.add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step

    return enter
