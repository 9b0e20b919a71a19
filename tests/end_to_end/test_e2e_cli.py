# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Habits that all commands share: help, one sentence for an error, JSON for programs, money as money, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import issuer.cli
import pos.cli
import wallet.cli
from console.home import Home
from lab.fixtures import Setup, set_up
from tests.end_to_end.commands import Finished, balance, command_line, serving, tap, tap_here

GROUPS: dict[str, click.Group] = {"issuer": issuer.cli.cli, "wallet": wallet.cli.cli, "pos": pos.cli.cli}
COMMANDS = [
    (program, name)
    for program, group in GROUPS.items()
    for name, command in group.commands.items()
    if not command.hidden
]
WANTED = {
    "issuer": {"init", "show"},
    "wallet": {"init", "apply", "load", "serve", "show", "history"},
    "pos": {"init", "charge", "history", "show"},
}
BAD_INPUT: dict[str, tuple[str, ...]] = {
    "an amount that is none": ("pos", "charge", "twelve"),
    "an amount with a comma": ("pos", "charge", "12,50"),
    "an amount of nothing": ("pos", "charge", "0.00"),
    "an amount of too many decimals": ("pos", "charge", "12.505"),
    "an amount of too many digits": ("pos", "charge", "99999999999.99"),
    "digits of another script": ("pos", "charge", "١٢"),
    "decimals of a currency that has none": ("pos", "charge", "12.50", "JPY"),
    "a currency that is none": ("pos", "charge", "12.50", "XYZ"),
    "a currency without an amount": ("pos", "charge", "12.50", "XAU"),
    "a currency of another terminal": ("pos", "charge", "12.50", "USD"),
    "a link that is none": ("pos", "charge", "12.50", "EUR", "bluetooth:phone"),
    "a link without a port": ("pos", "charge", "12.50", "EUR", "socket:127.0.0.1"),
    "a link with too large a port": ("pos", "charge", "12.50", "EUR", "socket:127.0.0.1:99999"),
    "a link with an unknown option": ("pos", "charge", "12.50", "EUR", "socket:/tmp/x?fast"),
    "a link that cannot make up its mind": ("pos", "charge", "12.50", "EUR", "socket:/tmp/x?listen&connect"),
    "a name that is not hexadecimal": ("pos", "charge", "12.50", "--name", "TAPLAB"),
    "a name that is too short": ("pos", "charge", "12.50", "--name", "F054"),
    "a load of nothing": ("wallet", "load", "0"),
    "a load that is no amount": ("wallet", "load", "-"),
    "a purse of no currency": ("wallet", "apply", "--currency", "EURO"),
    "an issuer that is none": ("wallet", "apply", "--issuer", "http://issuer"),
    "a card at a link that is none": ("wallet", "serve", "phone"),
    "a card with a name that is none": ("wallet", "serve", "--name", "xyz"),
    "a card with a scheme's name": ("wallet", "serve", "--name", "A0000000031010"),
    "a terminal that is there already": ("pos", "init"),
    "an issuer that is there already": ("issuer", "init"),
    "a card that nobody has": ("issuer", "block", "card", "0011223344556677"),
    "a serial that is none": ("issuer", "block", "card", "number one"),
    "a terminal that nobody has": ("issuer", "block", "terminal", "NOBODY"),
}
NOBODY_HERE = [
    ("wallet", "show"),
    ("wallet", "history"),
    ("wallet", "apply"),
    ("wallet", "load", "1.00"),
    ("wallet", "serve"),
    ("pos", "charge", "1.00"),
    ("pos", "show"),
    ("pos", "history"),
    ("issuer", "show"),
]


def require_one_sentence(done: Finished, program: str) -> None:
    """An error is one line on standard error, and with --json the same in one object on standard output."""
    sentence = done.sentence
    assert sentence.startswith(f"tap-{program}: ")
    assert done.json == {"error": sentence.removeprefix(f"tap-{program}: "), "exit_code": done.code}
    assert done.out.count("\n") == 1


@pytest.mark.parametrize("program", GROUPS)
def test_a_group_has_every_command_and_teaches_them(program: str) -> None:
    done = tap(program, "--help")
    assert (done.code, done.err) == (0, "")
    listed = {name for _, name in COMMANDS if f"\n  {name}" in done.out}
    assert listed >= WANTED[program]
    assert "--home" in done.out
    assert "--json" in done.out


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_a_command_has_help_that_names_its_options(program: str, name: str) -> None:
    shown = CliRunner().invoke(GROUPS[program], [name, "--help"])
    assert shown.exit_code == 0
    options = [one for one in GROUPS[program].commands[name].params if isinstance(one, click.Option)]
    assert all(option.opts[-1] in shown.output and option.help for option in options)
    assert {"home", "as_json"} <= {option.name for option in options}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_in_a_sentence(module_home: Path, case: str) -> None:
    program, *arguments = BAD_INPUT[case]
    run = tap if "serve" in arguments else tap_here
    done = run(program, *arguments, "--json", home=module_home)
    assert done.code == 2
    require_one_sentence(done, program)


@pytest.mark.parametrize("arguments", NOBODY_HERE, ids=" ".join)
def test_an_empty_home_is_told_in_a_sentence(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    program, *rest = arguments
    done = tap_here(program, *rest, "--json", home=tmp_path / "empty")
    assert done.code == 2
    require_one_sentence(done, program)
    assert "init" in done.err  # what to do about it
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("program", GROUPS)
def test_a_home_that_is_a_file_is_told_in_a_sentence(tmp_path: Path, program: str) -> None:
    (tmp_path / "file").write_text("no folder")
    done = tap_here(program, "init", "--json", home=tmp_path / "file")
    assert done.code == 2
    require_one_sentence(done, program)


@pytest.mark.parametrize("program", GROUPS)
def test_a_home_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path, program: str) -> None:
    (tmp_path / "file").write_text("no folder")
    done = tap_here(program, "init", "--json", home=tmp_path / "file" / "home")
    assert done.code == 2
    require_one_sentence(done, program)


@pytest.mark.parametrize(
    "arguments", [("pos", "charge"), ("pos", "charge", "1.00", "--bogus"), ("wallet", "load"), ("issuer", "block", "x")]
)
def test_a_command_line_that_makes_no_sense_is_json_too(module_home: Path, arguments: tuple[str, ...]) -> None:
    program, *rest = arguments
    done = tap_here(program, *rest, "--json", home=module_home)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert (done.json["exit_code"], bool(done.json["error"])) == (2, True)


def test_a_socket_path_that_is_too_long_is_told_in_a_sentence(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 25)
    set_up(Home(home), Setup())
    for program, arguments in (("wallet", ["serve"]), ("pos", ["charge", "1.00"])):
        done = tap_here(program, *arguments, "--json", home=home)
        assert done.code == 2
        require_one_sentence(done, program)


def test_a_script_that_is_not_there_is_told_in_a_sentence(module_home: Path) -> None:
    done = tap("wallet", "serve", "--trusted-ui", "scripted:/no/such/file", "--json", home=module_home)
    assert done.code in (1, 2)  # the trusted world says so, and it knows no exit codes
    require_one_sentence(done, "wallet")


@pytest.mark.parametrize("program", GROUPS)
def test_no_command_at_all_shows_the_help(program: str) -> None:
    done = tap(program)
    assert "Usage" in done.out + done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("program", GROUPS)
def test_the_version_is_told(program: str) -> None:
    done = tap(program, "--version")
    assert (done.code, "version" in done.out) == (0, True)


@pytest.mark.parametrize("program", GROUPS)
def test_shell_completion_works(program: str) -> None:
    def complete(**variables: str) -> str:
        environment = {**os.environ, **variables}
        script = Path(sys.executable).parent / f"tap-{program}"
        return subprocess.run([script], env=environment, capture_output=True, text=True, check=True).stdout

    variable = f"_TAP_{program.upper()}_COMPLETE"
    assert f"complete -o nosort -F _tap_{program}_completion" in complete(**{variable: "bash_source"})
    words = {"COMP_WORDS": f"tap-{program} sh", "COMP_CWORD": "1"}
    assert "show" in complete(**{variable: "bash_complete"}, **words)


def test_money_is_shown_as_money(home: Path) -> None:
    assert "1,234.50 EUR loaded" in tap("wallet", "load", "1234.50", "EUR", home=home).out
    assert "1,334.50 EUR" in tap("wallet", "show", home=home).out
    with serving(home):
        charged = tap("pos", "charge", "12.5", home=home)
    assert "12.50 EUR" in charged.out
    assert "12.50 EUR" in tap("pos", "history", home=home).out
    assert "12.50 EUR" in tap("pos", "show", home=home).out
    assert "12.50 EUR" in tap("wallet", "history", home=home).out
    assert "1,334.50 EUR loaded" in tap("issuer", "show", home=home).out


def test_a_currency_without_decimals_has_none(tmp_path: Path) -> None:
    home = tmp_path / "home"
    set_up(Home(home), Setup(balance="10000", currency="JPY"))
    assert "10,000 JPY" in tap("wallet", "show", home=home).out
    with serving(home):
        charged = tap("pos", "charge", "40", "JPY", home=home)
        reported = tap("pos", "charge", "2", "JPY", "--json", home=home)
    assert (charged.code, reported.json["amount"]) == (0, "2")
    assert "40 JPY" in charged.out
    assert "40.00" not in charged.out
    assert tap("wallet", "show", "--json", home=home).json["balance"] == "9958"
    assert "42 JPY in 2 transactions" in tap("pos", "show", home=home).out


NOT_SHOWN = "output: No space left on device; what the command did is done, only showing it failed"


def full(*arguments: str, home: Path) -> Finished:
    """Run a command whose standard output is full."""
    with Path("/dev/full").open("w") as stdout:
        line = command_line(*arguments, home=home)
        done = subprocess.run(line, stdout=stdout, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    return Finished(done.returncode, "", done.stderr)


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("command", [("wallet", "show"), ("wallet", "history"), ("pos", "history"), ("issuer", "show")])
def test_a_full_output_is_told_in_a_sentence(
    module_home: Path, command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    done = full(*command, *options, home=module_home)
    assert (done.code, done.sentence) == (1, f"tap-{command[0]}: {NOT_SHOWN}")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_was_done_before_the_output_was_full_is_said_to_be_done(home: Path, options: tuple[str, ...]) -> None:
    done = full("wallet", "load", "1.00", *options, home=home)
    assert (done.code, done.sentence) == (1, f"tap-wallet: {NOT_SHOWN}")
    assert balance(home) == "101.00"


@pytest.mark.parametrize("options", [("charge", "x", "--json"), ("--json", "charge")])
def test_an_error_is_told_on_standard_error_when_the_output_is_full(
    module_home: Path, options: tuple[str, ...]
) -> None:
    done = full("pos", *options, home=module_home)
    assert (done.code, "Traceback" in done.err, "tap-pos" in done.err) == (2, False, True)


def test_a_payment_is_approved_whether_or_not_it_can_be_shown(home: Path) -> None:
    with serving(home):
        done = full("pos", "charge", "1.00", "--json", home=home)
    assert (done.code, done.sentence) == (0, f"tap-pos: {NOT_SHOWN}")


def test_a_reader_that_goes_away_is_nothing_to_talk_about(module_home: Path) -> None:
    command = [sys.executable, "-m", "issuer", "show", "--cards", "--home", str(module_home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.returncode in (0, 1), errors) == (True, b"")
