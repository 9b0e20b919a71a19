# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What a process has done so far that costs time: signatures, encryptions, synced writes.

Only counts, never contents. `scripts/bench` compares them with the list in docs/protocol.md.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum


class Operation(StrEnum):
    """The operations that decide how long a tap takes."""

    SIGN = "sign"
    VERIFY = "verify"
    SEAL = "seal"
    OPEN = "open"
    SYNC = "sync"


_done: Counter[Operation] = Counter()


def count(operation: Operation) -> None:
    """Note that `operation` was done once."""
    _done[operation] += 1


def snapshot() -> dict[Operation, int]:
    """How often each operation was done in this process."""
    return {operation: _done[operation] for operation in Operation}


def since(before: dict[Operation, int]) -> dict[Operation, int]:
    """What was done since `before` was taken with `snapshot`."""
    return {operation: _done[operation] - before[operation] for operation in Operation}
