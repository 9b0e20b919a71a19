# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Disks that are full, cannot be written, or do not sync. None of our own code is replaced: the errors are the kernel's."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lab.torture.arena import Arena, Tally, charge
from lab.torture.children import NO_SYNC, NO_WRITE, Children, Plan
from pos.outcome import Outcome
from pos.terminal import Terminal

_CLONE_NEWNS = 0x20000
_MS_PRIVATE_RECURSIVE = (1 << 18) | (1 << 14)
_DISK_BYTES = 4 << 20
_BLOCK = 4096
_CHARGES = 2
_PATIENCE = 120.0


def trouble(arena: Arena, children: Children, cases: int) -> None:
    """Let wallet and terminal in turn live on a disk that cannot be written or synced."""
    for number in range(cases):
        plan = Plan(trouble=(NO_SYNC, NO_WRITE)[number // 2 % 2])
        side = ("terminal", "wallet")[number % 2]
        name = f"disk {number}: that of the {side} {plan.trouble.name if plan.trouble else ''}"
        if side == "terminal":
            arena.case(name, partial(_terminal_in, children, plan), kind="")
        else:
            arena.case(name, partial(_wallet_in, children, plan), kind="")
    arena.close_books("disks in trouble")


def _terminal_in(children: Children, plan: Plan, _: Terminal) -> None:
    children.terminal(plan)


def _wallet_in(children: Children, plan: Plan, _: Terminal) -> None:
    children.wallet(plan, _CHARGES)


def keep_quiet() -> None:
    """Let this process not log that a disk is in trouble: the wallet says so at every tap."""
    logging.getLogger("wallet").setLevel(logging.CRITICAL)


def fill(folder: Path, seed: int, cases: int) -> Tally | None:
    """Fill a real small file system up within taps; None where this user may not mount one."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_fill_in_own_namespace, args=(str(folder), seed, cases, theirs))
    child.start()
    theirs.close()
    tally: Tally | None = None
    with contextlib.suppress(EOFError):
        if ours.poll(_PATIENCE):
            tally = ours.recv()
    child.join()
    return tally


def _fill_in_own_namespace(folder: str, seed: int, cases: int, answer: Any) -> None:
    keep_quiet()
    disk = Path(folder)
    if not _mount_small_disk(disk):
        answer.send(None)
        return
    with Arena(disk / "home", seed) as arena:
        for number in range(cases):
            spare = arena.random.randrange(3 * _BLOCK)
            arena.case(
                f"disk {number}: full but for {spare} bytes",
                partial(_charge_on_full_disk, arena, disk, spare),
                kind="",
            )
        arena.close_books("full disks")
        answer.send(arena.tally)


def _charge_on_full_disk(arena: Arena, disk: Path, spare: int, terminal: Terminal) -> Outcome | None:
    with _full(disk, spare):
        return charge(terminal, arena.link())


@contextmanager
def _full(disk: Path, spare: int) -> Iterator[None]:
    """Leave `spare` bytes on the disk, about; room comes back afterwards."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(_BLOCK))
    size = ballast.stat().st_size
    with ballast.open("r+b") as file:
        file.truncate(max(0, size - spare))
    try:
        yield
    finally:
        ballast.unlink()


def _mount_small_disk(folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        return False
    libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE_RECURSIVE), None)
    options = f"size={_DISK_BYTES}".encode()
    return bool(libc.mount(b"tmpfs", bytes(folder), b"tmpfs", ctypes.c_ulong(0), options) == 0)
