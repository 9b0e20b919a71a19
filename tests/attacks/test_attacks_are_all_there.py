# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""docs/threat-model.md names every attack, and every attack has tests."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROUPS = {"F": 6, "B": 8, "V": 4, "R": 3, "M": 8, "T": 6, "I": 5, "P": 3, "N": 3, "D": 6}
EVERY_ID = [f"{group}{number}" for group, count in GROUPS.items() for number in range(1, count + 1)]


def documented() -> dict[str, str]:
    """Return each id of the document's table with the file that it names."""
    text = (ROOT / "docs" / "threat-model.md").read_text()
    return dict(re.findall(r"^\| ([A-Z]\d) \| .* \| `(tests/\S+\.py)` \|$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def marked() -> dict[str, set[str]]:
    """Return the files that have tests for each id, by the marks as pytest sees them."""
    program = (
        "import pytest\n"
        "class See:\n"
        "    def pytest_collection_modifyitems(self, items):\n"
        "        for item in items:\n"
        "            for mark in item.iter_markers('attack'):\n"
        "                print('MARK', mark.args[0], item.location[0])\n"
        "pytest.main(['--collect-only', '-q', 'tests'], plugins=[See()])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    found: dict[str, set[str]] = defaultdict(set)
    for line in done.stdout.splitlines():
        if line.startswith("MARK "):
            _, name, file = line.split(" ", 2)
            found[name].add(file)
    return found


def test_the_document_names_every_attack() -> None:
    assert sorted(documented()) == sorted(EVERY_ID)


@pytest.mark.parametrize("name", EVERY_ID)
def test_every_attack_is_tried_where_the_document_says(marked: dict[str, set[str]], name: str) -> None:
    assert documented()[name] in marked[name]


def test_no_mark_is_of_an_attack_that_there_is_not(marked: dict[str, set[str]]) -> None:
    assert sorted(set(marked) - set(EVERY_ID)) == []


def test_every_file_that_the_document_names_is_there() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    assert [name for name in re.findall(r"`(tests/\S+\.py)`", text) if not (ROOT / name).exists()] == []
