# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What a locked-down process cannot do: each attempt first succeeds in an unlocked child, then fails in a locked one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_CHILD = Path(__file__).with_name("wallet_sandbox_child.py")
_MARKER = "a marker in the memory of another process"
_OTHER_PROCESS = f"""
import ctypes, time
marker = ctypes.create_string_buffer({_MARKER.encode()!r})
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: anybody, where Yama would mind
print(ctypes.addressof(marker), flush=True)
time.sleep(600)
"""
_WATCHED_LOCK = """
import os, resource, sys
from pathlib import Path
from wallet.environment.lockdown import lock_down
started = []
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.system", "os.exec"):
        if resource.getrlimit(resource.RLIMIT_NPROC)[0] == 0:
            started.append(f"{event} {arguments[0]}")
sys.addaudithook(watch)
out = os.dup(1)
missing = lock_down(Path(sys.argv[1]), (out,)).missing
os.write(out, "; ".join((*missing, *started)).encode())
"""

# Which error each attempt must meet: EACCES is Landlock's, EPERM is seccomp's; the others are how Python reports those.
_REFUSALS = {
    "read_outside": "EACCES",
    "write_outside": "EACCES",
    "read_by_way_of_dots": "EACCES",
    "read_by_symbolic_link": "EACCES",
    "list_outside": "EACCES",
    "stat_outside": "EPERM",
    "chmod_outside": "EPERM",
    "rename_outside": "EACCES",
    "move_out_of_storage": "EACCES",
    "remove_outside": "EACCES",
    "truncate_outside": "EPERM",
    "link_in_storage": "EPERM",
    "socket": "EPERM",
    "socket_pair": "EPERM",
    "connect_tcp": "EPERM",
    "connect_unix": "EPERM",
    "bind": "EPERM",
    "listen": "EPERM",
    "pass_descriptor": "EPERM",
    "fork": "EPERM",
    "exec": "EPERM",
    "spawn": "EPERM",
    "thread_start": "RuntimeError",
    "trace": "EPERM",
    "read_memory": "EPERM",
    "read_memory_file": "EACCES",
    "read_parents_environment": "EACCES",
    "probe_process": "EPERM",
    "end_process": "EPERM",
    "map_writable_code": "EPERM",
    "make_memory_code": "EPERM",
    "map_code_from_storage": "EPERM",
    "load_library_from_storage": "OSError",
    "import_module": "ModuleNotFoundError",
    "memory_file": "EPERM",
    "pipe": "EPERM",
    "duplicate": "EPERM",
    "become_dumpable": "EPERM",
    "change_limits": "EPERM",
    "leave_namespaces": "EPERM",
    "change_folder": "EPERM",
    "lock_again_elsewhere": "EACCES",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A storage folder, a folder beside it, and another process."""

    folder: Path
    other: subprocess.Popen[str]
    address: str

    def attempt(self, name: str, *locks: str) -> tuple[str, ...]:
        """Let children attempt it, locked or unlocked, each in folders of its own, and return what they say."""
        children = [self._start(name, lock) for lock in locks]
        said = [child.communicate(timeout=30)[0] for child in children]
        assert [child.returncode for child in children] == [0] * len(locks)
        return tuple(said)

    def _start(self, name: str, lock: str) -> subprocess.Popen[str]:
        storage, outside = self.folder / lock / "storage", self.folder / lock / "outside"
        for folder in (storage, outside):
            folder.mkdir(parents=True)
        (outside / "file").write_bytes(b"x")
        (storage / "inside").write_bytes(bytes(4096))
        setting = [str(storage), str(outside), str(self.other.pid), self.address, _MARKER]
        command = [sys.executable, "-I", str(_CHILD), name, lock, *setting]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def surroundings(tmp_path: Path) -> Iterator[Surroundings]:
    other = subprocess.Popen([sys.executable, "-I", "-S", "-c", _OTHER_PROCESS], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    yield Surroundings(tmp_path, other, other.stdout.readline().strip())
    other.kill()
    other.communicate()


@pytest.mark.attack("I1")
@pytest.mark.parametrize(("name", "refusal"), _REFUSALS.items())
def test_succeeds_unlocked_and_is_refused_locked(surroundings: Surroundings, name: str, refusal: str) -> None:
    assert surroundings.attempt(name, "unlocked", "locked") == ("done", refusal)


def test_work_in_the_storage_folder_goes_on_after_the_lock(surroundings: Surroundings) -> None:
    assert surroundings.attempt("work_in_storage", "unlocked", "locked") == ("done", "done")


def test_a_signal_from_a_locked_process_does_not_arrive(surroundings: Surroundings) -> None:
    surroundings.attempt("end_process", "locked")
    assert surroundings.other.poll() is None
    surroundings.attempt("end_process", "unlocked")
    assert surroundings.other.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize(
    "name", ["write_outside", "rename_outside", "remove_outside", "truncate_outside", "chmod_outside"]
)
def test_a_refused_attempt_leaves_the_files_outside_as_they_were(surroundings: Surroundings, name: str) -> None:
    surroundings.attempt(name, "locked")
    (left,) = (surroundings.folder / "locked" / "outside").iterdir()
    assert (left.name, left.read_bytes(), left.stat().st_mode & 0o200) == ("file", b"x", 0o200)


def test_locking_starts_no_process_once_the_limits_hold_which_only_root_may(tmp_path: Path) -> None:
    """Otherwise the locks hold for root, and for nobody else the libraries behind them can even be found."""
    command = [sys.executable, "-I", "-c", _WATCHED_LOCK, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=True, timeout=30).stdout == b""
