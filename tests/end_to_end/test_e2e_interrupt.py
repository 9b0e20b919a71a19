# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Ctrl-C and kill: exit code 130 and one sentence where nothing was charged, and everything works afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from console.home import Home
from pos import identity
from pos.journal import Journal
from pos.terminal import Terminal
from protocol.commands import Ins
from protocol.money import Amount
from protocol.transport.opening import open_terminal_end
from tests.end_to_end.commands import PATIENCE, Running, balance, pids, serving, tap, wait_for_end
from tests.end_to_end.parties import HookedCard, HostileTerminal, served
from tests.end_to_end.soft_wallet import SoftWallet
from wallet.phone import Phone

STEPS = (Ins.SELECT, Ins.RELAY_CHECK, Ins.GET_VIRTUAL_CARD, Ins.DEBIT, Ins.CONFIRM)


def pay(home: Path) -> str:
    """Let wallet and terminal of `home` pay 1.00 EUR once more, and return the balance."""
    with serving(home) as wallet:
        assert tap("pos", "charge", "1.00", home=home).code == 0
        wallet.wait_for("tap ended")
    return str([event["balance"] for event in wallet.events if "balance" in event][-1])


def test_ctrl_c_ends_a_serving_wallet_and_breaks_nothing(home: Path) -> None:
    wallet = serving(home)
    tee = pids(wallet)["tee"]
    done = wallet.interrupt()
    assert (done.code, done.err.strip()) == (130, "tap-wallet: interrupted")
    wait_for_end(tee)
    assert not (home / "tap.sock").exists()
    assert balance(home) == "100.00"
    assert pay(home) == "99.00"


def test_ctrl_c_in_the_middle_of_a_tap_breaks_nothing(home: Path) -> None:
    wallet = serving(home)
    with open_terminal_end(f"socket:{home / 'tap.sock'}") as link:
        HostileTerminal(link, identity.load(home / "pos")).read_card()
        assert wallet.interrupt().code == 130
    assert not (home / "tap.sock").exists()
    assert pay(home) == "99.00"


def test_ctrl_c_ends_a_terminal_that_waits_for_a_card(home: Path) -> None:
    terminal = Running("pos", "charge", "1.00", home=home)
    terminal.wait_for("Present card")
    done = terminal.interrupt()
    assert (done.code, done.err.strip()) == (130, "tap-pos: interrupted")
    assert tap("pos", "history", "--json", home=home).json == []
    assert pay(home) == "99.00"


def test_ctrl_c_while_a_terminal_waits_for_the_card_again_does_not_hide_what_may_be_charged(
    home: Path, tmp_path: Path
) -> None:
    link = f"socket:{tmp_path / 'link'}"
    with Phone(home / "wallet", Home(home).issuer_url) as phone:

        def leave(apdu: bytes) -> None:
            if apdu[1] == Ins.DEBIT:
                port.close()

        with served(HookedCard(phone.card, after=leave), link) as port:
            terminal = Running("pos", "charge", "1.00", "EUR", link, home=home)
            terminal.wait_for("Present the card again")
            ended = terminal.interrupt()
        assert (ended.code, ended.err) == (12, "")
        assert "NOT FINISHED: the result is not known; this wallet's next tap here will tell" in ended.out
        assert phone.view().balance == 99_00
        [torn] = tap("pos", "history", "--json", home=home).json
        with served(phone.card, link):
            paid = tap("pos", "charge", "1.00", "EUR", link, "--json", home=home)
        assert (paid.code, paid.json["settled"]) == (0, [torn["reference"]])
        assert phone.view().balance == 98_00
    assert [one["state"] for one in tap("pos", "history", "--json", home=home).json] == ["approved", "approved"]


def test_ctrl_c_in_the_tap_that_was_to_bring_the_result_is_told_to_programs(home: Path, tmp_path: Path) -> None:
    link = f"socket:{tmp_path / 'link'}"
    taps: list[int] = []
    came_again, ended = threading.Event(), threading.Event()

    def hold_the_second_tap(apdu: bytes) -> None:
        taps.extend([apdu[1]] if apdu[1] == Ins.SELECT else [])
        if len(taps) == 2:
            came_again.set()
            ended.wait(PATIENCE)

    charge = ("charge", "1.00", "EUR", link, "--json", "--fault", "tear@frame:8")
    with served(HookedCard(SoftWallet(home), hold_the_second_tap), link):
        with Running("pos", *charge, home=home) as terminal:
            assert came_again.wait(PATIENCE)
            done = terminal.interrupt()
        ended.set()
    assert (done.code, done.err) == (12, "")
    [record] = tap("pos", "history", "--json", home=home).json
    assert (done.json["outcome"], done.json["charged"], done.json["reference"]) == ("torn", None, record["reference"])
    assert record["state"] == "open"


def test_ctrl_c_ends_a_terminal_that_listens_and_its_socket_goes(home: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    terminal = Running("pos", "charge", "1.00", "EUR", f"socket:{link}?listen", home=home)
    terminal.wait_for("Present card")
    assert terminal.interrupt().code == 130
    assert not link.exists()
    assert tap("pos", "charge", "1.00", "EUR", f"socket:{link}?listen", "--timeout", "0.1", home=home).code == 16


def test_sigterm_ends_a_serving_wallet_as_ctrl_c_does(home: Path) -> None:
    wallet = serving(home)
    wallet.process.send_signal(signal.SIGTERM)
    assert wallet.wait().code == 130
    assert not (home / "tap.sock").exists()


def test_a_killed_wallet_leaves_nothing_in_the_way(home: Path) -> None:
    wallet = serving(home)
    tee = pids(wallet)["tee"]
    wallet.kill()
    wait_for_end(tee)  # the trusted world ends by itself when its client is gone
    assert (home / "tap.sock").exists()
    assert pay(home) == "99.00"
    assert not (home / "tap.sock").exists()


@pytest.mark.parametrize("step", STEPS, ids=[step.name for step in STEPS])
def test_a_terminal_killed_at_any_step_uses_no_number_twice(home: Path, tmp_path: Path, step: Ins) -> None:
    link = f"socket:{tmp_path / 'link'}"
    challenges: list[bytes] = []
    victim: Running | None = None

    def watch(apdu: bytes) -> None:
        if apdu[1] == Ins.RELAY_CHECK:
            challenges.append(apdu)
        if apdu[1] == step and victim is not None and victim.process.poll() is None:
            os.kill(victim.process.pid, signal.SIGKILL)
            victim.process.wait()

    with served(HookedCard(SoftWallet(home), watch), link):
        victim = Running("pos", "charge", "1.00", "EUR", link, "--json", home=home)
        assert victim.wait().code == -signal.SIGKILL
        with Terminal.open(home) as terminal:
            assert terminal.charge(Amount.parse("1.00", "EUR"), link).approved
    with Journal(home / "pos") as journal:
        states = [record.state.value for record in journal.records()]
    assert len(set(challenges)) == len(challenges)
    assert states == [*{Ins.DEBIT: ["open"], Ins.CONFIRM: ["approved"]}.get(step, []), "approved"]


PROGRAMS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize(("program", "entry"), [*PROGRAMS.items(), ("demo", "lab.__main__:main")])
def test_ctrl_c_while_a_command_is_still_imported_is_told_in_a_sentence(
    tmp_path: Path, program: str, entry: str
) -> None:
    """The key is pressed by what stands in for a library that every command imports."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    module, _, name = entry.partition(":")
    paths = [str(tmp_path), str(Path(__file__).parents[2])]
    program_text = f"import sys; sys.path[:0] = {paths}; from {module} import {name}; {name}()"
    done = subprocess.run(
        [sys.executable, "-c", program_text, "show"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{program}: interrupted\n")


PRESSED_WITHIN_EXEC = """
import click
from console.cli import run
@click.command()
def command():
    exec("raise KeyboardInterrupt")
run(command, "tap")
"""


def test_ctrl_c_while_a_command_makes_a_dataclass_is_told_in_a_sentence(tmp_path: Path) -> None:
    """Under -m, Python notes a KeyboardInterrupt that leaves an exec, and ends by the signal whatever the program says then."""
    (tmp_path / "pressed.py").write_text(PRESSED_WITHIN_EXEC)
    done = subprocess.run(
        [sys.executable, "-m", "pressed"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stderr.strip()) == (130, "tap: interrupted")
