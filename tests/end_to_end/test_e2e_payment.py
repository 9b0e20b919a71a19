# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A wallet process pays a terminal process, over every link and in every form, from the users' own commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.commands import Running, balance, free_port, pids, serving, tap

CHARGE_FIELDS = {
    "outcome", "reason", "amount", "currency", "card", "reference", "receipt_verified", "charged", "settled",
    "relay_ms", "relay_bound_ms", "relay_suspected", "apdus", "bytes_command", "bytes_response", "key_bytes", "air_ms",
    "air_ms_106", "air_ms_106_to_receipt", "steps",
}  # fmt: skip


@pytest.fixture(scope="module")
def wallet(module_home: Path) -> Iterator[Running]:
    """The wallet of `module_home`, serving the default link."""
    with serving(module_home) as running:
        yield running


def test_a_tap_moves_money_once_and_both_sides_know(home: Path) -> None:
    assert balance(home) == "100.00"
    with serving(home) as wallet:
        charged = tap("pos", "charge", "12.50", "EUR", "--json", home=home)
        wallet.wait_for("tap ended")
    assert (charged.code, charged.err) == (0, "")
    assert balance(home) == "87.50"
    [paid] = tap("wallet", "history", "--json", home=home).json
    assert (paid["what"], paid["amount"], paid["currency"]) == ("paid", "12.50", "EUR")
    assert (paid["merchant"], paid["terminal_id"], paid["result"]) == ("Corner Bakery", "TERM0001", "approved")
    [taken] = tap("pos", "history", "--json", home=home).json
    assert (taken["state"], taken["amount"], taken["currency"]) == ("approved", "12.50", "EUR")
    assert (taken["confirmed"], taken["reference"]) == (True, charged.json["reference"])
    assert taken["card"] == charged.json["card"]
    assert tap("pos", "show", "--json", home=home).json["taken"] == "12.50"


def test_a_charge_reports_every_documented_field(module_home: Path, wallet: Running) -> None:
    report = tap("pos", "charge", "0.50", "--json", home=module_home).json
    assert set(report) == CHARGE_FIELDS
    assert (report["outcome"], report["reason"], report["amount"]) == ("approved", None, "0.50")
    assert (report["receipt_verified"], report["charged"], report["apdus"]) == (True, True, 5)
    assert report["card"][:6] == "999910"
    assert "••••••" in report["card"]
    assert len(bytes.fromhex(report["reference"])) == 16
    assert 0 < report["relay_ms"] < 1000
    assert set(report["air_ms"]) == {"106", "212", "424", "848"}
    assert [step["step"] for step in report["steps"]] == ["S2", "S4", "S8", "S9"]


def test_wallet_tee_and_terminal_are_processes_of_their_own(module_home: Path, wallet: Running) -> None:
    with Running("pos", "charge", "0.50", "--json", home=module_home) as terminal:
        assert terminal.wait().code == 0
    assert len({terminal.process.pid, *pids(wallet).values()}) == 3
    assert pids(wallet)["wallet"] == wallet.process.pid


def test_the_same_wallet_pays_again_with_another_card(module_home: Path, wallet: Running) -> None:
    cards = {tap("pos", "charge", "0.50", "--json", home=module_home).json["card"] for _ in range(3)}
    assert len(cards) == 3


@pytest.mark.parametrize(
    ("at_wallet", "at_terminal", "options", "apdus"),
    [
        pytest.param("", "", [], 5, id="unix"),
        pytest.param("?short", "", [], 7, id="unix, card of short lengths"),
        pytest.param("", "?short", [], 7, id="unix, terminal of short lengths"),
        pytest.param("", "", ["--directory"], 6, id="unix, by the directory"),
        pytest.param("?short", "?short", ["--directory"], 8, id="unix, short, by the directory"),
    ],
)
def test_a_unix_socket_carries_the_tap(
    home: Path, tmp_path: Path, at_wallet: str, at_terminal: str, options: list[str], apdus: int
) -> None:
    link = f"socket:{tmp_path / 'link'}"
    with serving(home, link + at_wallet) as wallet:
        charged = tap("pos", "charge", "1.00", "EUR", link + at_terminal, *options, "--json", home=home)
        wallet.wait_for("tap ended")
    assert (charged.code, charged.json["apdus"]) == (0, apdus)
    assert wallet.events[-2]["balance"] == "99.00"
    assert not (tmp_path / "link").exists()


@pytest.mark.parametrize("terminal_listens", [False, True])
def test_tcp_carries_the_tap_whoever_listens(home: Path, *, terminal_listens: bool) -> None:
    link = f"socket:127.0.0.1:{free_port()}"
    at_wallet, at_terminal = ("?connect", "?listen") if terminal_listens else ("", "")
    with serving(home, link + at_wallet) as wallet:
        charged = tap("pos", "charge", "1.00", "EUR", link + at_terminal, "--json", home=home)
        wallet.wait_for("tap ended")
    assert charged.code == 0
    assert wallet.events[-2]["balance"] == "99.00"


def test_a_listening_terminal_can_wait_at_a_unix_socket(home: Path, tmp_path: Path) -> None:
    link = f"socket:{tmp_path / 'link'}"
    with serving(home, f"{link}?connect") as wallet:
        assert tap("pos", "charge", "1.00", "EUR", f"{link}?listen", home=home).code == 0
        wallet.wait_for("tap ended")
    assert not (tmp_path / "link").exists()


def test_the_directory_and_short_lengths_cost_what_they_cost(module_home: Path, wallet: Running) -> None:
    def size(*options: str) -> int:
        report = tap("pos", "charge", "0.10", "--json", *options, home=module_home).json
        return int(report["bytes_command"] + report["bytes_response"])

    direct = size()
    assert direct <= 850
    assert 0 < size("--directory") - direct <= 80
    link = f"socket:{module_home / 'tap.sock'}?short"
    assert 0 < size("EUR", link) - direct <= 60


def test_the_console_scripts_are_the_same_commands(home: Path) -> None:
    scripts = Path(sys.executable).parent
    for name in ("tap-issuer", "tap-wallet", "tap-pos"):
        shown = subprocess.run([scripts / name, "show", "--home", home], capture_output=True, text=True)
        assert (shown.returncode, shown.stderr) == (0, "")
    assert "TERM0001" in shown.stdout


def test_the_home_can_come_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPLAB_HOME", str(home))
    assert tap("wallet", "show", "--json").json["balance"] == "100.00"


def test_show_tells_the_copy_while_the_wallet_serves(module_home: Path, wallet: Running) -> None:
    shown = tap("wallet", "show", "--json", home=module_home).json
    assert shown["copy"] is True
    assert shown["currency"] == "EUR"


def test_a_second_wallet_process_is_refused_in_a_sentence(module_home: Path, tmp_path: Path, wallet: Running) -> None:
    refused = tap("wallet", "serve", f"socket:{tmp_path / 'other'}", home=module_home)
    assert refused.code == 69
    assert "another wallet process is using" in refused.sentence
    assert not (tmp_path / "other").exists()


def test_a_second_wallet_does_not_take_a_link_away(module_home: Path, home: Path, wallet: Running) -> None:
    refused = tap("wallet", "serve", f"socket:{module_home / 'tap.sock'}", home=home)
    assert refused.code == 69
    assert "already listening" in refused.sentence
    assert tap("pos", "charge", "0.10", home=module_home).code == 0


def test_a_second_load_adds_up(home: Path) -> None:
    assert tap("wallet", "load", "20.50", "EUR", home=home).code == 0
    assert balance(home) == "120.50"
