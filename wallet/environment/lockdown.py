# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Locking a process into its storage folder: no network, program, thread, other process, or new executable memory.

The locks are the kernel's: prctl, resource limits, Landlock and a seccomp allow-list. What the kernel or a library
lacks is reported, one sentence each, and never passed over in silence.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Outcome = TypeVar("Outcome")

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_MAX_FILE_BYTES = 256 << 20
_MAX_DESCRIPTORS = 64
_OWN_PACKAGES = ("console", "protocol", "wallet")

# What CPython, malloc, OpenSSL and our storage need, and nothing that names a file without opening it, makes a
# descriptor of another kind, or touches another process. `newfstatat` is left out: Landlock does not cover it.
_ALLOWED_CALLS = (
    "read", "write", "pread64", "pwrite64", "lseek", "ftruncate", "fsync", "fdatasync", "close", "openat", "open",
    "rename", "renameat", "renameat2", "unlink", "unlinkat",
    "munmap", "mremap", "madvise", "brk",
    "futex", "getrandom", "clock_gettime", "clock_nanosleep", "nanosleep", "gettimeofday", "time",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
    "getpid", "gettid", "sched_yield", "exit", "exit_group",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lockdown:
    """What holds the process, and what is missing on this machine (empty when everything is there)."""

    landlock_abi: int
    seccomp: bool
    missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every protection is in force."""
        return not self.missing


def lock_down(storage: Path, keep: Collection[int]) -> Lockdown:
    """Lock this process: files below `storage` only, the descriptors `keep` only. There is no way back.

    Call it after everything that will ever be used was used once: no module can be imported afterwards.
    """
    _redirect_standard_streams()
    _close_all_but(keep)
    missing: list[str] = []
    # Both are prepared first: finding their libraries starts ldconfig, which only root may once the limits hold.
    landlock = _try(missing, "Landlock (files and ports)", lambda: _landlock(storage))
    seccomp = _try(missing, "seccomp (system calls)", _seccomp)
    _prctl(_PR_SET_NO_NEW_PRIVS)
    _prctl(_PR_SET_DUMPABLE, 0)
    _limit()
    abi = _try(missing, "Landlock (files and ports)", landlock) if landlock else 0
    locked = _try(missing, "seccomp (system calls)", seccomp) if seccomp else 0
    return Lockdown(abi or 0, bool(locked), tuple(missing))


def _try(missing: list[str], what: str, step: Callable[[], Outcome]) -> Outcome | None:
    try:
        return step()
    except (OSError, RuntimeError, ImportError) as error:
        missing.append(f"{what} is not in force: {error or type(error).__name__}")
        return None


def _redirect_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def _close_all_but(keep: Collection[int]) -> None:
    kept = {0, 1, 2, *keep}
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208 - a Path costs a stat each
        if descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError as error:
                if error.errno != errno.EBADF:  # the listing's own descriptor is closed already
                    raise


def _prctl(option: int, value: int = 1) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS))


def _landlock(storage: Path) -> Callable[[], int]:
    """Prepare the ruleset and return what puts it into force."""
    from py_landlock import AccessFs, Landlock, LandlockError

    access = (
        AccessFs.READ_FILE | AccessFs.WRITE_FILE | AccessFs.MAKE_REG | AccessFs.REMOVE_FILE | AccessFs.READ_DIR
        | AccessFs.TRUNCATE
    )  # fmt: skip
    try:
        ruleset = Landlock(strict=False).add_path_rule(storage, access=access)
    except LandlockError as error:
        raise RuntimeError(str(error)) from None

    def apply() -> int:
        try:
            ruleset.apply()
        except LandlockError as error:
            raise RuntimeError(str(error)) from None
        return int(ruleset.abi_version)

    return apply


def confine_files(own: Path) -> bool:
    """Let this process change files below `own` only and read nothing else but libraries; False where Landlock is missing.

    For a process that goes on using its links: ports and sockets are left alone. It holds for this thread and for those
    that it starts afterwards, so call it before any.
    """
    from py_landlock import AccessFs, Landlock, LandlockError

    code = [path for package in _OWN_PACKAGES for path in sys.modules[package].__path__]
    libraries = {Path(path).resolve() for path in (*code, sys.prefix, sys.base_prefix, "/usr/lib", "/lib", "/lib64")}
    reading = AccessFs.READ_FILE | AccessFs.READ_DIR
    changing = (
        reading
        | AccessFs.WRITE_FILE
        | AccessFs.TRUNCATE
        | AccessFs.MAKE_REG
        | AccessFs.MAKE_SOCK
        | AccessFs.REMOVE_FILE
    )
    try:
        ruleset = Landlock(strict=False).allow_all_network().allow_all_scope()
        for path in libraries:
            if path.is_dir():
                ruleset = ruleset.add_path_rule(path, access=reading)
        ruleset.add_path_rule(own, access=changing).apply()
    except (LandlockError, OSError):
        return False
    return True


def _seccomp() -> Callable[[], int]:
    """Prepare the filter and return what puts it into force."""
    import pyseccomp

    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ERRNO(errno.EPERM))
    for name in _ALLOWED_CALLS:
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:  # negative where an architecture lacks it
            rules.add_rule(pyseccomp.ALLOW, name)
    for name in ("mmap", "mprotect"):
        no_exec = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, mmap.PROT_EXEC, 0)
        rules.add_rule(pyseccomp.ALLOW, name, no_exec)

    def apply() -> int:
        rules.load()
        return 1

    return apply
