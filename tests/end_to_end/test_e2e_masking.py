# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""No output of any command, logs of the bytes on the link included, holds a card number or a key; no open file does."""

from __future__ import annotations

import base64
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.end_to_end.commands import serving, tap

LOUD = ("--log", "traffic")
KEY_FILES = (
    "wallet/device/root.key", "pos/terminal.key", "pos/device.secret",
    "issuer/issuer.key", "issuer/operations.key", "issuer/acquirer.key",
)  # fmt: skip


@pytest.fixture(scope="module")
def used_home(made_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(made_home, tmp_path_factory.mktemp("used") / "home")


@pytest.fixture(scope="module")
def outputs(used_home: Path) -> str:
    """Everything that every command says about a home in which a lot happens."""
    said: list[str] = []

    def run(*arguments: str) -> None:
        program, *rest = arguments
        done = tap(program, *rest, *LOUD, home=used_home)
        said.extend((done.out, done.err))

    run("wallet", "apply", "--cards", "3")
    run("wallet", "load", "5.00", "EUR", "--json")
    for as_json, amounts in (((), ("12.50", "500.00")), (("--json",), ("12.50", "60.00"))):
        with serving(used_home, *LOUD) as wallet:
            for amount in amounts:
                run("pos", "charge", amount, *as_json)
            wallet.wait_for("tap ended", times=2)
        done = wallet.wait()
        said += [done.out, done.err]
        for command in ("wallet show --tee", "wallet history", "pos show", "pos history", "issuer show --cards"):
            run(*command.split(), *as_json)
    run("pos", "charge", "1.00", "EUR", f"socket:{used_home}/nobody", "--timeout", "0")
    serial = tap("issuer", "show", "--cards", "--json", home=used_home).json["cards"][0]["serial"]
    run("issuer", "block", "card", serial)
    run("pos", "sync")
    run("wallet", "sync")
    return "\n".join(said)


@pytest.fixture(scope="module")
def numbers(used_home: Path, outputs: str) -> list[str]:
    """Every card number that the issuer ever gave to this wallet."""
    with sqlite3.connect(used_home / "issuer" / "issuer.sqlite") as database:
        rows = database.execute("SELECT number FROM credentials").fetchall()
    database.close()
    return [str(number) for (number,) in rows]


def test_the_commands_said_a_lot(outputs: str, numbers: list[str]) -> None:
    assert len(numbers) >= 23
    assert "00 A4 04 00 08 F0 54 41 50" in outputs  # the bytes on the link were logged
    masked = {f"{number[:6]}••••••{number[-4:]}" for number in numbers}
    assert sum(text in outputs for text in masked) > 10


@pytest.mark.attack("N2")
def test_no_output_holds_a_card_number(outputs: str, numbers: list[str]) -> None:
    packed = "".join(outputs.split())
    assert [number for number in numbers if number in packed or number[6:] in packed] == []


@pytest.mark.attack("I5")
def test_no_output_holds_a_key(used_home: Path, outputs: str) -> None:
    packed = "".join(outputs.split()).lower()
    for name in KEY_FILES:
        key = (used_home / name).read_bytes()
        assert len(key) == 32
        assert key.hex() not in packed
        assert base64.b64encode(key).decode().rstrip("=").lower() not in packed
        assert str(int.from_bytes(key, "big")) not in packed
        assert repr(key)[2:-1].lower() not in packed


@pytest.mark.attack("N2")
def test_no_file_of_wallet_or_terminal_holds_a_card_number_in_clear(used_home: Path, numbers: list[str]) -> None:
    tap("pos", "history", home=used_home)
    (used_home / "pos" / "blocklist").unlink()  # the list of blocked numbers is what a terminal needs them for
    files = [path for party in ("wallet", "pos") for path in (used_home / party).rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        found = [one for one in numbers if one.encode() in content or bytes.fromhex(one) in content]
        assert found == [], path.name


def test_every_folder_and_key_is_for_its_owner_only(used_home: Path) -> None:
    for name in KEY_FILES:
        assert (used_home / name).stat().st_mode & 0o777 == 0o600
    for party in ("wallet", "wallet/device", "wallet/tee", "pos", "issuer"):
        assert (used_home / party).stat().st_mode & 0o777 == 0o700
