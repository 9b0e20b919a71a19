# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Homes made by the users' own commands, and a laboratory in one of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.end_to_end.parties import ToldLaboratory
    from tests.pcsc.slots import Service

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that tests find each other's helpers as `tests.…`, however pytest was started

_PCSC = "pcsc"
os.environ.pop("TAPLAB_HOME", None)  # a home of the person who runs the tests is not theirs to touch

FIRST_COMMANDS = (
    ("issuer", "init"),
    ("wallet", "init"),
    ("wallet", "apply"),
    ("wallet", "load", "100.00", "EUR"),
    ("pos", "init"),
)


@pytest.fixture(scope="session")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home as a newcomer's commands leave it: 100.00 EUR, twenty cards, one terminal. Only to be copied."""
    home = tmp_path_factory.mktemp("made") / "home"
    for command in FIRST_COMMANDS:
        line = [sys.executable, "-m", *command, "--home", str(home)]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return home


@pytest.fixture
def home(made_home: Path, tmp_path: Path) -> Path:
    """A copy of that home for one test."""
    return shutil.copytree(made_home, tmp_path / "home")


@pytest.fixture(scope="module")
def module_home(made_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that home for the tests of one module."""
    return shutil.copytree(made_home, tmp_path_factory.mktemp("shared") / "home")


@pytest.fixture(scope="module")
def laboratory(module_home: Path) -> Iterator[ToldLaboratory]:
    """The wallet and the terminal of `module_home`: terminal and client application here, the TEE a process."""
    from tests.end_to_end.parties import ToldLaboratory

    with ToldLaboratory(module_home) as made:
        yield made


def pytest_addoption(parser: pytest.Parser) -> None:
    """Select tests by what they attack, which `-m` cannot: it does not see a mark's arguments."""
    parser.addoption(
        "--attack",
        action="append",
        default=[],
        metavar="ID",
        help="Only attacks of this id or group: F1, F (repeatable).",
    )


def attacks_of(item: pytest.Item) -> set[str]:
    """Return the ids of the attacks that a test performs."""
    return {mark.args[0] for mark in item.iter_markers("attack")}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the attacks that were asked for, if any were."""
    wanted = tuple(config.getoption("--attack"))
    if not wanted:
        return
    known = {one for item in items for one in attacks_of(item)}
    for one in wanted:
        if not any(name.startswith(one) for name in known):
            raise pytest.UsageError(f"no test here performs an attack {one}; docs/threat-model.md lists them")
    kept = [item for item in items if any(one.startswith(wanted) for one in attacks_of(item))]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test that cannot do without the PC/SC service."""
    if isinstance(item, pytest.Function) and "pcsc_service" in item.fixturenames:
        if _PCSC not in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} needs the PC/SC service; its name or parameter must say {_PCSC}")
        item.add_marker("pcsc")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let one process run a whole file, so that what its tests share is made once, and one all tests of PC/SC.

    A machine has one PC/SC service. What a scheduler knows of a test is its name.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            return _PCSC if _PCSC in nodeid else nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session")
def pcsc_service() -> Iterator[Service]:
    """A PC/SC service with two empty slots, from the first test that needs it on; whoever stops it starts it again."""
    from tests.pcsc.slots import Service

    service = Service()
    service.start()
    yield service
    service.stop()
