# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What a newcomer types first: the demonstration, as text and as JSON, and the example."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lab.demo
from tests.end_to_end.commands import Finished

ROOT = Path(__file__).parents[2]
STEPS = ["S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9"]
FIELDS = {
    "outcome", "link", "amount", "currency", "balance_before", "balance_after", "receipt_verified", "processes",
    "apdus", "bytes_command", "bytes_response", "air_ms_106", "air_ms_106_to_receipt", "steps",
}  # fmt: skip


def run(*command: str | Path, scratch: Path) -> Finished:
    """Run something from the project's folder with an empty folder for temporary files."""
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def finished(scratch: Path) -> Finished:
    return run(ROOT / "scripts" / "demo", "--json", scratch=scratch)


@pytest.fixture(scope="module")
def shown(finished: Finished) -> dict[str, Any]:
    report: dict[str, Any] = finished.json
    return report


def test_it_prints_one_json_object_and_nothing_else(finished: Finished) -> None:
    assert finished.code == 0
    assert finished.out.count("\n") == 1
    assert isinstance(finished.json, dict)


def test_it_has_exactly_the_fields_that_were_agreed(shown: dict[str, Any]) -> None:
    assert set(shown) == FIELDS


def test_it_pays_and_the_receipt_is_good(shown: dict[str, Any]) -> None:
    assert (shown["outcome"], shown["receipt_verified"], shown["link"]) == ("approved", True, "loopback")
    assert (shown["amount"], shown["currency"]) == ("12.50", "EUR")
    assert (shown["balance_before"], shown["balance_after"]) == ("100.00", "87.50")


def test_it_runs_in_three_processes(shown: dict[str, Any]) -> None:
    assert set(shown["processes"]) == {"pos", "wallet", "tee"}
    assert len(set(shown["processes"].values())) == 3


def test_it_stays_within_its_budget_of_bytes_and_air(shown: dict[str, Any]) -> None:
    assert shown["apdus"] == 5
    assert 700 < shown["bytes_command"] + shown["bytes_response"] <= 850
    assert 60 < shown["air_ms_106"] <= 87
    assert 60 < shown["air_ms_106_to_receipt"] <= min(82, shown["air_ms_106"])


def test_the_steps_are_named_as_they_happen(shown: dict[str, Any]) -> None:
    names = [step["step"] for step in shown["steps"]]
    assert list(dict.fromkeys(names)) == STEPS
    assert names == sorted(names)
    moments = [step["at"] for step in shown["steps"]]
    assert moments == sorted(moments)
    assert all(set(step) == {"step", "who", "text", "at"} and step["text"] for step in shown["steps"])


def test_the_text_names_every_step_and_the_receipt(scratch: Path) -> None:
    done = run(ROOT / "scripts" / "demo", scratch=scratch)
    assert done.code == 0
    lines = done.out.splitlines()
    assert list(dict.fromkeys(line[:2] for line in lines if line[:2] in STEPS)) == STEPS
    for words in ("APPROVED", "12.50 EUR to Corner Bakery", "100.00 EUR before, 87.50 EUR after", "signature verified"):
        assert words in done.out


def test_it_leaves_nothing_behind(scratch: Path, finished: Finished) -> None:
    assert [path.name for path in scratch.iterdir()] == []


def test_it_has_help() -> None:
    shown = CliRunner().invoke(lab.demo.cli, ["--help"])
    assert (shown.exit_code, "--json" in shown.output, "--link" in shown.output) == (0, True, True)


def test_another_link_is_a_usage_error() -> None:
    assert CliRunner().invoke(lab.demo.cli, ["--link", "carrier-pigeon"]).exit_code == 2


def test_the_example_is_approved_declined_torn(scratch: Path) -> None:
    done = run(sys.executable, ROOT / "examples" / "three_charges.py", scratch=scratch)
    assert (done.code, done.err) == (0, "")
    first, second, third, left = done.out.splitlines()
    assert first == "approved: 12.50 EUR"
    assert second == "declined: 12.50 EUR (insufficient funds)"
    assert third.startswith("torn: 1.00 EUR")
    assert left == "left in the wallet: 7.50 EUR"


@pytest.mark.requirement("K4")
def test_with_a_key_it_pays_what_the_user_pressed_ok_for(scratch: Path) -> None:
    done = run(ROOT / "scripts" / "demo", "--key", "--json", scratch=scratch)
    shown = done.json
    assert done.code == 0
    assert set(shown) == FIELDS | {"asked", "key_bytes"}
    assert (shown["outcome"], shown["amount"], shown["receipt_verified"]) == ("approved", "250.00", True)
    assert (shown["balance_before"], shown["balance_after"]) == ("500.00", "250.00")
    assert shown["asked"][0].startswith("Pair with a phone that shows ")
    assert shown["asked"][1] == "Pay 250.00 EUR to Corner Bakery?"
    assert shown["key_bytes"] == 64 + 35  # a signature, and a point in the certificate
    assert set(shown["processes"]) == {"pos", "wallet", "tee", "key"}
    assert not [one for one in shown["processes"].values() if Path(f"/proc/{one}").exists()]
    assert list(scratch.iterdir()) == []
