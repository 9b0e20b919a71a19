# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A child process that attempts one thing by name, locked down or not, and tells how it went over a kept descriptor.

It says `done`, or the error by which the kernel refused. Both kinds of run are the same but for the call to lock_down.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import errno
import importlib
import importlib.util
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wallet.environment.lockdown import lock_down

_PTRACE_SEIZE = 0x4206
_PR_SET_DUMPABLE = 4
_FILE_SIZE = 4096
_UNUSED_MODULE = "colorsys"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class Setting:
    """Where it happens: a storage folder, a folder outside it, another process and an address in that."""

    storage: Path
    outside: Path
    out: int
    victim: int
    address: int
    marker: bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is done after the lock, and what was opened for it before and must be kept."""

    act: Callable[[], object]
    sockets: tuple[socket.socket, ...] = ()
    files: tuple[int, ...] = ()

    @property
    def keep(self) -> tuple[int, ...]:
        """The descriptors that it needs."""
        return (*self.files, *(one.fileno() for one in self.sockets))


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _call(function: str, *arguments: int | bytes | None) -> int:
    """Call a function of libc; OSError when it fails."""
    result = int(getattr(_libc, function)(*arguments))
    if result == -1:
        raise OSError(ctypes.get_errno(), function)
    return result


def _must(good: object) -> None:
    if not good:
        raise ValueError("no error, and no effect either")


def _read_outside(setting: Setting) -> Attempt:
    path = setting.outside / "file"
    return Attempt(lambda: os.read(os.open(path, os.O_RDONLY), 1))


def _write_outside(setting: Setting) -> Attempt:
    path = setting.outside / "new"
    return Attempt(lambda: os.write(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), b"x"))


def _read_by_way_of_dots(setting: Setting) -> Attempt:
    path = f"{setting.storage}/../{setting.outside.name}/file"
    return Attempt(lambda: os.read(os.open(path, os.O_RDONLY), 1))


def _read_by_symbolic_link(setting: Setting) -> Attempt:
    link = setting.storage / "link"
    link.symlink_to(setting.outside / "file")
    return Attempt(lambda: os.read(os.open(link, os.O_RDONLY), 1))


def _list_outside(setting: Setting) -> Attempt:
    return Attempt(lambda: os.open(setting.outside, os.O_RDONLY | os.O_DIRECTORY))


def _stat_outside(setting: Setting) -> Attempt:
    path = str(setting.outside / "file")
    return Attempt(lambda: os.stat(path))  # noqa: PTH116 - the call itself is what is attempted


def _chmod_outside(setting: Setting) -> Attempt:
    path = str(setting.outside / "file")
    return Attempt(lambda: os.chmod(path, stat.S_IRUSR))  # noqa: PTH101


def _rename_outside(setting: Setting) -> Attempt:
    old, new = str(setting.outside / "file"), str(setting.outside / "renamed")
    return Attempt(lambda: os.rename(old, new))  # noqa: PTH104


def _move_out_of_storage(setting: Setting) -> Attempt:
    old, new = str(setting.storage / "inside"), str(setting.outside / "moved")
    return Attempt(lambda: os.rename(old, new))  # noqa: PTH104


def _remove_outside(setting: Setting) -> Attempt:
    path = str(setting.outside / "file")
    return Attempt(lambda: os.unlink(path))  # noqa: PTH108


def _truncate_outside(setting: Setting) -> Attempt:
    path = setting.outside / "file"
    return Attempt(lambda: os.truncate(path, 0))


def _link_in_storage(setting: Setting) -> Attempt:
    target, link = str(setting.outside / "file"), str(setting.storage / "link")
    return Attempt(lambda: os.symlink(target, link))  # noqa: PTH211


def _socket(_: Setting) -> Attempt:
    return Attempt(socket.socket)


def _socket_pair(_: Setting) -> Attempt:
    return Attempt(socket.socketpair)


def _connect_tcp(_: Setting) -> Attempt:
    listener, client = socket.socket(), socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()
    return Attempt(lambda: client.connect(address), (listener, client))


def _connect_unix(setting: Setting) -> Attempt:
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    path = str(setting.outside / "socket")
    listener.bind(path)
    listener.listen()
    return Attempt(lambda: client.connect(path), (listener, client))


def _bind(_: Setting) -> Attempt:
    server = socket.socket()
    return Attempt(lambda: server.bind(("127.0.0.1", 0)), (server,))


def _listen(_: Setting) -> Attempt:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    return Attempt(server.listen, (server,))


def _pass_descriptor(_: Setting) -> Attempt:
    ours, theirs = socket.socketpair()
    return Attempt(lambda: socket.send_fds(ours, [b"x"], [0]), (ours, theirs))


def _fork(_: Setting) -> Attempt:
    def act() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    return Attempt(act)


def _exec(setting: Setting) -> Attempt:
    program = [sys.executable, "-I", "-S", "-c", f"import os; os.write({setting.out}, b'done')"]
    return Attempt(lambda: os.execv(sys.executable, program))  # noqa: S606 - the call itself is what is attempted


def _spawn(_: Setting) -> Attempt:
    return Attempt(lambda: os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", ":"], {}), 0))


def _thread_start(_: Setting) -> Attempt:
    return Attempt(lambda: _thread.start_new_thread(lambda: None, ()))


def _trace(setting: Setting) -> Attempt:
    return Attempt(lambda: _call("ptrace", _PTRACE_SEIZE, setting.victim, None, None))


def _read_memory(setting: Setting) -> Attempt:
    buffer = ctypes.create_string_buffer(len(setting.marker))
    local = _IoVector(ctypes.addressof(buffer), len(setting.marker))
    remote = _IoVector(setting.address, len(setting.marker))

    def act() -> None:
        count = _libc.process_vm_readv(setting.victim, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if count == -1:
            raise OSError(ctypes.get_errno(), "process_vm_readv")
        _must(buffer.raw == setting.marker)

    return Attempt(act)


def _read_memory_file(setting: Setting) -> Attempt:
    def act() -> None:
        memory = os.open(f"/proc/{setting.victim}/mem", os.O_RDONLY)
        _must(os.pread(memory, len(setting.marker), setting.address) == setting.marker)

    return Attempt(act)


def _read_parents_environment(_: Setting) -> Attempt:
    path = f"/proc/{os.getppid()}/environ"
    return Attempt(lambda: os.read(os.open(path, os.O_RDONLY), 1))


def _probe_process(setting: Setting) -> Attempt:
    return Attempt(lambda: os.kill(setting.victim, 0))


def _end_process(setting: Setting) -> Attempt:
    return Attempt(lambda: os.kill(setting.victim, signal.SIGTERM))


def _map_writable_code(_: Setting) -> Attempt:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    return Attempt(lambda: mmap.mmap(-1, mmap.PAGESIZE, flags, protection))


def _make_memory_code(_: Setting) -> Attempt:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    first = ctypes.c_char.from_buffer(page)  # keeps the page
    protection = mmap.PROT_READ | mmap.PROT_EXEC
    return Attempt(lambda: _call("mprotect", ctypes.addressof(first), mmap.PAGESIZE, protection))


def _map_code_from_storage(setting: Setting) -> Attempt:
    file = os.open(setting.storage / "inside", os.O_RDONLY)
    protection = mmap.PROT_READ | mmap.PROT_EXEC

    def act() -> None:
        if _libc.mmap(None, _FILE_SIZE, protection, mmap.MAP_PRIVATE, file, 0) == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), "mmap")

    return Attempt(act, files=(file,))


def _load_library_from_storage(setting: Setting) -> Attempt:
    spec = importlib.util.find_spec("_cffi_backend")
    if spec is None or spec.origin is None:
        raise ValueError("there is no library to try it with")
    copy = setting.storage / "library.so"
    copy.write_bytes(Path(spec.origin).read_bytes())
    return Attempt(lambda: ctypes.CDLL(str(copy)))


def _import_module(_: Setting) -> Attempt:
    _must(_UNUSED_MODULE not in sys.modules)
    return Attempt(lambda: importlib.import_module(_UNUSED_MODULE))


def _memory_file(_: Setting) -> Attempt:
    return Attempt(lambda: os.memfd_create("x"))


def _pipe(_: Setting) -> Attempt:
    return Attempt(os.pipe)


def _duplicate(setting: Setting) -> Attempt:
    return Attempt(lambda: os.dup(setting.out))


def _become_dumpable(_: Setting) -> Attempt:
    return Attempt(lambda: _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0))


def _change_limits(_: Setting) -> Attempt:
    limits = struct.pack("LL", 0, 0)
    return Attempt(lambda: _call("setrlimit", resource.RLIMIT_CORE, limits))


def _leave_namespaces(_: Setting) -> Attempt:
    return Attempt(lambda: _call("unshare", 0))


def _change_folder(setting: Setting) -> Attempt:
    return Attempt(lambda: os.chdir(setting.outside))


def _lock_again_elsewhere(setting: Setting) -> Attempt:
    def act() -> None:
        lock_down(setting.outside, (setting.out,))
        os.read(os.open(setting.outside / "file", os.O_RDONLY), 1)

    return Attempt(act)


def _work_in_storage(setting: Setting) -> Attempt:
    """Everything that sealed storage does; this is what must go on working."""
    first, second = str(setting.storage / "one"), str(setting.storage / "two")

    def act() -> None:
        file = os.open(first, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.pwrite(file, b"sealed", 0)
        os.fdatasync(file)
        os.ftruncate(file, 3)
        os.rename(first, second)  # noqa: PTH104
        folder = os.open(setting.storage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(folder)
        os.close(folder)
        _must(os.pread(os.open(second, os.O_RDONLY), 6, 0) == b"sea")
        os.unlink(second)  # noqa: PTH108

    return Attempt(act)


ATTEMPTS: dict[str, Callable[[Setting], Attempt]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _read_outside, _write_outside, _read_by_way_of_dots, _read_by_symbolic_link, _list_outside, _stat_outside,
        _chmod_outside, _rename_outside, _move_out_of_storage, _remove_outside, _truncate_outside, _link_in_storage,
        _socket, _socket_pair, _connect_tcp, _connect_unix, _bind, _listen, _pass_descriptor, _fork, _exec, _spawn,
        _thread_start, _trace, _read_memory, _read_memory_file, _read_parents_environment, _probe_process,
        _end_process, _map_writable_code, _make_memory_code, _map_code_from_storage, _load_library_from_storage,
        _import_module, _memory_file, _pipe, _duplicate, _become_dumpable, _change_limits, _leave_namespaces,
        _change_folder, _lock_again_elsewhere, _work_in_storage,
    )
}  # fmt: skip


def _outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else type(error).__name__
    except (ImportError, RuntimeError, ValueError) as error:
        return type(error).__name__
    return "done"


def main() -> None:
    """Take the name, whether to lock, and the setting from the command line."""
    name, lock, storage, outside, victim, address, marker = sys.argv[1:]
    out = os.dup(1)
    os.set_inheritable(out, True)
    setting = Setting(Path(storage), Path(outside), out, int(victim), int(address), marker.encode())
    attempt = ATTEMPTS[name](setting)
    if lock == "locked":
        lockdown = lock_down(setting.storage, (setting.out, *attempt.keep))
        if not lockdown.complete:
            os.write(setting.out, f"not locked: {lockdown.missing}".encode())
            return
    with contextlib.suppress(BrokenPipeError):
        os.write(setting.out, _outcome(attempt.act).encode())


if __name__ == "__main__":
    main()
