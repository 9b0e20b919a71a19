# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The real TEE process as the kernel sees it: locked, alone, with nothing open that it does not need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from issuer.register import Register
from issuer.service import Issuer
from lab.fixtures import Laboratory
from protocol.issuing import Application, decode_message
from protocol.vouchers import device_id
from wallet.environment.launcher import HardwareEnvironment, TrustedWorldRefusedError
from wallet.key_line import KeyLine
from wallet.phone import PhoneOptions, start_of
from wallet.tee.client import TeeSession
from wallet.tee.contract import ApplyRequest, CommandId, Report

_HERE = Path(__file__).parent
_LANDLOCK_CALLS = (444, 445, 446)  # the same numbers on every architecture
_PR_SET_SECCOMP = 22

# Each stands in front of the real interpreter and takes something away from the machine before the real TEE starts.
_NO_SECCOMP_LIBRARY = """
import runpy
sys.modules["pyseccomp"] = None
sys.argv = ["wallet.tee", *sys.argv[4:]]
runpy.run_module("wallet.tee", run_name="__main__", alter_sys=True)
"""
_NO_LANDLOCK_LIBRARY = _NO_SECCOMP_LIBRARY.replace("pyseccomp", "py_landlock")
_NO_LANDLOCK_IN_KERNEL = f"""
import errno, os, pyseccomp
rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
for call in {_LANDLOCK_CALLS}:
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), call)
rules.load()
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_NO_SECCOMP_IN_KERNEL = f"""
import errno, os, pyseccomp
rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
rules.add_rule(pyseccomp.ERRNO(errno.EINVAL), "seccomp")
rules.add_rule(pyseccomp.ERRNO(errno.EINVAL), "prctl", pyseccomp.Arg(0, pyseccomp.EQ, {_PR_SET_SECCOMP}))
rules.load()
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_MACHINES = {
    "no seccomp library": (_NO_SECCOMP_LIBRARY, "seccomp (system calls) is not in force: "),
    "no seccomp in the kernel": (_NO_SECCOMP_IN_KERNEL, "seccomp (system calls) is not in force: "),
    "no Landlock library": (_NO_LANDLOCK_LIBRARY, "Landlock (files and ports) is not in force: "),
    "no Landlock in the kernel": (_NO_LANDLOCK_IN_KERNEL, "Landlock (files and ports) is not in force: "),
}


@pytest.fixture
def pid(laboratory: Laboratory) -> int:
    laboratory.phone.view()
    assert laboratory.phone.tee.pid is not None
    return laboratory.phone.tee.pid


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _has_ended(pid: int, seconds: float = 5.0) -> bool:
    """Wait until there is no such process, or only its remains that nobody has waited for yet."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if _status(pid)["State"].startswith("Z"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


# --- what the kernel says


def test_no_new_privileges_a_seccomp_filter_no_tracer_one_thread(pid: int) -> None:
    status = _status(pid)
    wanted = {"NoNewPrivs": "1", "Seccomp": "2", "TracerPid": "0", "Threads": "1"}
    assert {name: status[name] for name in wanted} == wanted


def test_session_and_process_group_are_its_own(pid: int) -> None:
    assert (os.getsid(pid), os.getpgid(pid)) == (pid, pid)
    assert os.getsid(pid) != os.getsid(0)


def test_no_core_no_child_processes_few_files(pid: int) -> None:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max open files"] == ["64", "64"]


def _links(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return sorted(str(one.readlink()) for one in folder.iterdir())


def test_nothing_is_open_but_what_it_needs(laboratory: Laboratory, pid: int) -> None:
    if os.geteuid():  # the process is not dumpable, so that only root may look
        with pytest.raises(PermissionError):
            _links(pid)
        return
    storage = laboratory.home.wallet / "tee"
    *files, lifeline, channel = _links(pid)
    assert files == sorted(["/dev/null"] * 3 + [str(storage / name) for name in ("freshness", "lock", "state.log")])
    assert lifeline.startswith("pipe:")
    assert channel.startswith("socket:")


def test_no_memory_is_writable_and_executable(pid: int) -> None:
    if os.geteuid():
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/maps").read_text()
        return
    rights = {line.split()[1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    assert "r-xp" in rights
    assert not [one for one in rights if "w" in one and "x" in one]


def test_the_environment_is_empty(pid: int) -> None:
    if os.geteuid():
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/environ").read_bytes()
        return
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""


def test_the_process_list_shows_folders_and_descriptors_only(laboratory: Laboratory, pid: int) -> None:
    shown = Path(f"/proc/{pid}/cmdline").read_bytes()
    arguments = shown.decode().rstrip("\0").split("\0")
    channel, memory = (int(arguments[arguments.index(name) + 1]) for name in ("--channel", "--memory"))
    assert arguments == start_of(laboratory.home.wallet, PhoneOptions()).arguments(channel, memory)
    key = (laboratory.home.wallet / "device" / "root.key").read_bytes()
    assert key not in shown
    assert key.hex().encode() not in shown.lower()


def test_a_process_of_the_same_user_cannot_read_its_memory(laboratory: Laboratory) -> None:
    laboratory.phone.tee.close()
    command = [sys.executable, "-I", str(_HERE / "wallet_dumpable_child.py"), str(laboratory.home.wallet)]
    said = subprocess.run(command, capture_output=True, check=True, timeout=30)
    assert json.loads(said.stdout) == {"ordinary": "done", "tee": "EACCES"}


# --- one for each home, and never alone


def test_a_second_tee_of_the_same_home_is_refused_in_a_sentence(laboratory: Laboratory, pid: int) -> None:
    sentence = f"another wallet process is using {laboratory.home.wallet}; stop it first, or use another --home"
    with pytest.raises(TrustedWorldRefusedError) as refused:
        HardwareEnvironment(start_of(laboratory.home.wallet, PhoneOptions()))
    assert str(refused.value) == sentence
    assert laboratory.phone.tee.pid == pid
    assert laboratory.phone.view().balance == 500_00


def test_it_ends_when_the_other_world_is_killed(laboratory: Laboratory) -> None:
    laboratory.phone.tee.close()
    program = (
        "import sys, time; from pathlib import Path; from wallet.phone import PhoneOptions, start_of;"
        "from wallet.tee.client import TeeSession;"
        "session = TeeSession(start_of(Path(sys.argv[1]), PhoneOptions()));"
        "print(session.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-I", "-c", program, str(laboratory.home.wallet)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        status = _status(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    assert status["Seccomp"] == "2"
    assert _has_ended(pid)


def test_it_does_not_die_of_a_signal_to_the_wallets_process_group(laboratory: Laboratory, pid: int) -> None:
    assert os.getpgid(pid) != os.getpgid(0)  # Ctrl-C in a shell reaches the wallet, which then closes the socket
    assert laboratory.phone.view().balance == 500_00


# --- a machine that lacks a protection


@pytest.fixture(params=_MACHINES)
def lacking(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make TEE processes start on a machine that lacks something; return how the report about that begins."""
    program, missing = _MACHINES[request.param]
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!{sys.executable} -I\nimport sys\nsys.executable = {sys.executable!r}\n{program}")
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    return missing


def test_a_tee_that_requires_its_sandbox_does_not_start_without(laboratory: Laboratory, lacking: str) -> None:
    laboratory.phone.tee.close()
    with pytest.raises(TrustedWorldRefusedError) as refused:
        HardwareEnvironment(start_of(laboratory.home.wallet, PhoneOptions(require_sandbox=True)))
    assert str(refused.value).startswith(f"the TEE refuses to start without its sandbox: {lacking}")


def test_a_tee_that_does_not_require_it_says_what_is_missing(laboratory: Laboratory, lacking: str) -> None:
    laboratory.phone.tee.close()
    session = TeeSession(start_of(laboratory.home.wallet, PhoneOptions()))
    report = session.invoke(CommandId.REPORT, Report)
    session.close()
    assert [one.startswith(lacking) for one in report.missing] == [True]
    assert report.seccomp is ("seccomp" not in lacking)
    assert bool(report.landlock_abi) is ("Landlock" not in lacking)


def test_a_tee_that_requires_its_sandbox_starts_with_all_of_it(laboratory: Laboratory) -> None:
    laboratory.phone.tee.close()
    session = TeeSession(start_of(laboratory.home.wallet, PhoneOptions(require_sandbox=True)))
    report = session.invoke(CommandId.REPORT, Report)
    session.close()
    assert (report.missing, report.seccomp) == ((), True)
    assert report.landlock_abi >= 1


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("lacking", ["no seccomp library"], indirect=True)
def test_the_issuer_hears_that_a_tee_is_not_locked_down(laboratory: Laboratory, tmp_path: Path) -> None:
    assert _enrolled_as_locked_down(laboratory, tmp_path) is False


def test_the_issuer_hears_that_a_tee_is_locked_down(laboratory: Laboratory, tmp_path: Path) -> None:
    assert _enrolled_as_locked_down(laboratory, tmp_path) is True


def _enrolled_as_locked_down(laboratory: Laboratory, wallet: Path) -> bool:
    """Let a new wallet apply, and return what the issuer noted about its TEE."""
    for folder in ("device", "tee"):
        (wallet / folder).mkdir()
    session = TeeSession(start_of(wallet, PhoneOptions()))
    application = KeyLine().converse(session, CommandId.APPLY, ApplyRequest(978, 1))
    session.close()
    issuer, register = Issuer(laboratory.home.issuer), Register(laboratory.home.issuer)
    issuer.handle(application)
    issuer.close()
    decoded = decode_message(application)
    assert isinstance(decoded, Application)
    noted = {row.device: row.locked_down for row in register.wallets()}
    register.close()
    return noted[device_id(decoded.device_key).hex()]
