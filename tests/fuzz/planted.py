# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Targets that break their promise, each in a way of its own: what would be found if the fuzzer could not fail?"""

from __future__ import annotations

import os

from lab.fuzz_child import Target

_SEED = b"\x01\x02abc"


def _reads_beyond(data: bytes) -> str:
    """Trust a length byte, in one of its two kinds of message only."""
    if data[:1] == b"\x02" and len(data) > 1:
        return f"{data[1 + data[1]]}"
    return "refused"


def _never_ends(data: bytes) -> str:
    while data[:1] == b"\x02":
        pass
    return "refused"


def _dies(data: bytes) -> str:
    if data[:1] == b"\x02":
        os._exit(3)
    return "refused"


def _prints(data: bytes) -> str:
    """Keep the promise, but say so where the fuzzer tells its parent how it goes."""
    os.write(1, data + b"\n")
    return "accepted"


TARGETS = {
    name: Target(name, check.__doc__ or "", check, (_SEED,), 16)
    for name, check in (
        ("reads beyond", _reads_beyond),
        ("never ends", _never_ends),
        ("dies", _dies),
        ("prints", _prints),
    )
}
