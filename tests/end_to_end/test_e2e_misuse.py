# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Wallets that go on refusing, people who press Ctrl-C, and command lines that make no sense."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.demo import free_udp_port
from tests.end_to_end.commands import PATIENCE, Running, serving, tap, tap_here


def test_a_wallet_that_refuses_is_not_tapped_on_and_on(home: Path) -> None:
    """Three tears use up what a terminal may read; then the answer is said, instead of asked for a thousand times."""
    with serving(home):
        for fault in ("tear@frame:6", "tear@frame:6", "tear@frame:11"):
            tap("pos", "charge", "1.00", "--fault", fault, "--again", "0", home=home)
        ended = tap("pos", "charge", "1.00", "--fault", "tear@frame:7", "--again", "15", "--json", home=home)
    assert ended.json["outcome"] != "approved"
    refusals = sqlite3.connect(home / "wallet" / "history.sqlite").execute("SELECT count(*) FROM history").fetchone()[0]
    assert refusals < 10


def test_after_ctrl_c_nothing_more_is_paid(home: Path) -> None:
    """The DEBIT is still on its way when Ctrl-C is pressed: its result is not known, and no other one follows."""
    with serving(home):
        terminal = Running("pos", "charge", "0.10", "--json", "--fault", "delay@frame:7:3000", home=home)
        until = time.monotonic() + PATIENCE
        while "open" not in _states(home) and time.monotonic() < until:
            time.sleep(0.01)
        ended = terminal.interrupt()
        assert ended.code == 12
        assert len(_states(home)) == 1
        assert balance_is(home, "100.00", "99.90")


def _states(home: Path) -> list[str]:
    with sqlite3.connect(home / "pos" / "journal.sqlite") as journal:
        return [row[0] for row in journal.execute("SELECT state FROM transactions")]


def balance_is(home: Path, *amounts: str) -> bool:
    """Tell whether the wallet of a running `serve` was last seen with one of these."""
    return tap("wallet", "show", "--json", home=home).json["balance"] in amounts


@pytest.mark.parametrize(
    "arguments",
    [
        ("pos", "charge", "1.00", "--relay-bound", "nan"),
        ("pos", "charge", "1.00", "--relay-bound", "-1"),
        ("pos", "charge", "1.00", "--relay-bound", "60001"),
        ("pos", "settle", "--void-after", "nan"),
        ("pos", "charge", "1.00", "--fault", ""),
        ("pos", "charge", "1.00", "--fault", "tear@frame:1_0"),
        ("pos", "charge", "1.00", "--fault", "tear@frame:1e1"),
        ("pos", "charge", "1.00", "--fault", "delay@frame:1:"),
        ("pos", "charge", "1.00", "EUR", "socket:.:80"),
        ("pos", "charge", "1.00", "EUR", f"socket:{'a' * 200}:80"),
        ("pos", "charge", "1.00", "EUR", "socket:..a:80"),
        ("pos", "charge", "1.00", "EUR", "memory:x"),
        ("pos", "charge", "1.00", "EUR", "nfc:udp:127.0.0.1:99999"),
        ("pos", "charge", "1.00", "EUR", "nfc:udp:127.0.0.1:22"),
        ("pos", "probe", "memory:x"),
        ("wallet", "serve", "vpcd:.:5"),
        ("wallet", "serve", "memory:x"),
        ("wallet", "serve", "--key", "memory:x"),
        ("wallet", "serve", "--key", "carrier-pigeon"),
        ("wallet", "pair", "--key", "carrier-pigeon", "--trusted-ui", "scripted:/dev/null"),
        ("wallet", "serve", "nfc:udp:127.0.0.1:0"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused_in_a_sentence(home: Path, arguments: tuple[str, ...]) -> None:
    refused = tap_here(arguments[0], *arguments[1:], home=home)
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    assert "Traceback" not in refused.err


def test_a_fault_that_is_too_far_away_names_the_limit(home: Path) -> None:
    refused = tap_here("pos", "charge", "1.00", "--fault", "tear@byte:70000", home=home)
    assert (refused.code, "at most 60000" in refused.err) == (2, True)


def test_a_home_in_use_has_one_exit_code_on_both_sides(home: Path) -> None:
    with serving(home):
        assert tap("wallet", "sync", home=home).code == 69
    with Running(
        "pos", "charge", "1.00", f"nfc:udp:127.0.0.1:{free_udp_port()}", "--timeout", "15", home=home
    ) as first:
        first.wait_for("Present card")
        assert tap("pos", "history", home=home).code == 69
        first.interrupt()


def _hear() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests with nohup had it ignored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demonstration_that_is_ended_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen([sys.executable, "-m", "lab"], env=environment, stdout=subprocess.DEVNULL, preexec_fn=_hear)
    until = time.monotonic() + PATIENCE
    while not list(tmp_path.glob("taplab-demo-*/wallet")) and time.monotonic() < until:
        time.sleep(0.005)
    demo.send_signal(number)
    assert demo.wait(PATIENCE) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_attacks_that_nobody_has_written_are_named() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/attacks", "--attack", "ZZ"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == 4
    assert "no test here performs an attack ZZ" in done.stderr
