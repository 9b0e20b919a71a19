# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A machine on which PC/SC cannot be used: what is missing is named, and nothing is left out in silence."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.commands import Finished

ROOT = Path(__file__).parents[2]
PACKAGES = "pcscd vsmartcard-vpcd pcsc-tools opensc gcc swig libpcsclite-dev"
DIALOGS = "pinentry-tty pinentry-curses"
TESTS = """
import pytest

@pytest.mark.pcsc
@pytest.mark.parametrize("number", range(3))
def test_over_pcsc(number):
    raise AssertionError

@pytest.mark.pinentry
@pytest.mark.parametrize("number", range(2))
def test_with_dialogs(number):
    raise AssertionError

def test_otherwise():
    pass
"""


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Another project under the same gate, with six tests and an environment that is made already."""
    project = tmp_path / "project"
    for name in ("scripts/test", "scripts/environment", "pyproject.toml"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    _program(project / "scripts" / "check", "echo checked")
    _program(project / ".venv" / "bin" / "python", f'exec {sys.executable} "$@"')
    mark = hashlib.sha256((project / "pyproject.toml").read_bytes()).hexdigest()[:16]
    (project / ".venv" / f".taplab-{mark}").write_text("dev\n")
    (project / "tests").mkdir()
    (project / "tests" / "test_four.py").write_text(TESTS)
    return project


def _gate(project: Path, *arguments: str, installed: str, user: int = 1000, ci: str = "") -> Finished:
    """Run the gate of `project` as a user who cannot install anything, on a machine that has these packages."""
    fakes = project.parent / "bin"
    _program(fakes / "id", f"echo {user}")
    _program(fakes / "dpkg-query", f'case " {installed} " in *" $4 "*) echo install ok installed;; *) exit 1;; esac')
    environment = {**os.environ, "PATH": f"{fakes}:{os.environ['PATH']}", "CI": ci}
    done = subprocess.run(
        [project / "scripts" / "test", *arguments], capture_output=True, text=True, timeout=60, env=environment
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def test_gate_says_which_packages_are_missing_and_how_many_tests_that_leaves_out(project: Path) -> None:
    gate = _gate(project, installed=f"gcc swig opensc {DIALOGS}")
    assert gate.sentence == (
        "test: these packages are missing: pcscd vsmartcard-vpcd pcsc-tools libpcsclite-dev; "
        "this leaves out 3 tests marked pcsc"
    )
    assert "checked" in gate.out
    assert "2 failed, 1 passed in" in gate.out


def test_gate_without_dialogs_leaves_out_theirs_too(project: Path) -> None:
    gate = _gate(project, installed=PACKAGES)
    assert [line.partition("; ")[2] for line in gate.err.splitlines()] == [
        "this leaves out 2 tests marked pinentry",
        "this leaves out 3 tests marked pcsc",
    ]
    assert gate.code == 0
    assert "1 passed in" in gate.out


def test_gate_says_that_the_service_needs_root(project: Path) -> None:
    gate = _gate(project, "-k", "otherwise", installed=f"{PACKAGES} {DIALOGS}")
    assert gate.sentence == "test: pcscd can only be started by root; this leaves out 3 tests marked pcsc"
    assert gate.code == 0


def test_gate_counts_all_tests_and_not_those_that_were_asked_for(project: Path) -> None:
    gate = _gate(project, "-k", "otherwise", installed=DIALOGS)
    assert f"missing: {PACKAGES}; this leaves out 3 tests" in gate.sentence
    assert "1 passed" in gate.out


@pytest.mark.parametrize("installed", ["", DIALOGS, PACKAGES, f"{PACKAGES} {DIALOGS}"])
def test_gate_leaves_nothing_out_in_continuous_integration(project: Path, installed: str) -> None:
    gate = _gate(project, installed=installed, ci="true")
    assert (gate.code, gate.out) == (69, "")
    assert gate.sentence.startswith("test: ")


# The demonstration over PC/SC.


def _demo(folder: Path, *before: str) -> Finished:
    """Run the program of `scripts/demo --link pcsc` after some lines of Python, with no program but those in `folder`."""
    code = "\n".join([*before, "import sys, lab.demo", "sys.argv = ['demo', '--link', 'pcsc']", "lab.demo.main()"])
    environment = {**os.environ, "PATH": str(folder), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def test_demo_without_pyscard_says_what_to_install(tmp_path: Path) -> None:
    demo = _demo(tmp_path, "import sys", "sys.modules['smartcard'] = None")
    assert (demo.code, demo.out) == (69, "")
    assert demo.sentence.startswith("demo: pyscard cannot be used")
    assert "apt-get install gcc swig libpcsclite-dev" in demo.sentence


def test_demo_without_the_service_says_what_to_install(tmp_path: Path) -> None:
    demo = _demo(
        tmp_path,
        "import sys, types",
        "sys.modules['smartcard'] = types.ModuleType('smartcard')",
        "sys.modules['smartcard'].scard = None",
        "import lab.pcscd",
        f"lab.pcscd.SEARCHED = {str(tmp_path)!r}",
    )
    assert (demo.code, demo.out) == (69, "")
    assert demo.sentence == "demo: pcscd is not installed; on Debian: apt-get install pcscd vsmartcard-vpcd"
    assert list(tmp_path.iterdir()) == []
