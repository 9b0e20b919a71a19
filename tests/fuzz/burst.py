# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A short burst of hostile bytes without atheris: what is kept, changed here and there, the same for the same seed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

from lab.fuzz_child import Target

HANG_SECONDS = 5.0
_TELLING = (
    0x00,
    0x01,
    0x02,
    0x10,
    0x5F,
    0x61,
    0x6C,
    0x7F,
    0x80,
    0x81,
    0x82,
    0x83,
    0x90,
    0x9F,
    0xA2,
    0xC2,
    0xF2,
    0xFE,
    0xFF,
)
_AT_MOST_NEW = 16

Edit = Callable[[Random, bytearray, Sequence[bytes]], None]


class FoundError(AssertionError):
    """An input that a parser must not answer so."""


def burst(target: Target, kept: Sequence[bytes], seed: int, count: int) -> int:
    """Feed `count` inputs to a target and return how many outcomes there were; FoundError at the first bad one."""
    random = Random(f"{target.name} {seed}")  # noqa: S311 - to be repeated, not to be secret
    pool = [*target.seeds, *kept, b""]
    return len({attempt(target, mutated(random, pool)[: target.longest]) for _ in range(count)})


def attempt(target: Target, data: bytes) -> str:
    """Return what came of one input; FoundError, with the input, when the target broke or hung."""
    try:
        with _not_for_ever():
            return target.check(data)
    except Exception as error:
        raise FoundError(f"{target.name}: {type(error).__name__} by {data.hex()}") from error


@contextmanager
def _not_for_ever() -> Iterator[None]:
    """Raise TimeoutError in what takes too long, wherever it is."""

    def too_long(_: int, __: object) -> None:
        raise TimeoutError(f"more than {HANG_SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutated(random: Random, pool: Sequence[bytes]) -> bytes:
    """Return one of `pool`, changed in one to eight places."""
    data = bytearray(random.choice(pool))
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        random.choice(_EDITS)(random, data, pool)
    return bytes(data)


def _place(random: Random, data: bytearray) -> int:
    return random.randrange(len(data)) if data else 0


def _flip(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_place(random, data)] ^= 1 << random.randrange(8)


def _set(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(random, data)
    data[at : at + 1] = bytes([random.choice(_TELLING)])


def _count(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        at = _place(random, data)
        data[at] = (data[at] + random.choice((-1, 1))) % 256


def _insert(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(random, data)
    data[at:at] = random.randbytes(random.randint(1, _AT_MOST_NEW))


def _delete(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(random, data)
    del data[at : at + random.randint(1, _AT_MOST_NEW)]


def _repeat(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(random, data)
    data[at:at] = data[at : at + random.randint(1, 4 * _AT_MOST_NEW)]


def _cut(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(random, data) :]


def _cross(random: Random, data: bytearray, pool: Sequence[bytes]) -> None:
    other = random.choice(pool)
    data[_place(random, data) :] = other[random.randrange(len(other) + 1) :]


_EDITS: tuple[Edit, ...] = (_flip, _set, _count, _insert, _delete, _repeat, _cut, _cross)
