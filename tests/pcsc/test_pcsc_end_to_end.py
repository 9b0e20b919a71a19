# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Wallet and terminal as the processes that users start, with a PC/SC service between them."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.commands import Finished, balance, serving, tap
from tests.end_to_end.test_e2e_demo import ROOT, run
from tests.pcsc.slots import FIRST, Service, wait_for_card, wait_for_no_card

TAPS = 10
ANDROID_NAME = "F276A288BCFBA69D34F31001"  # the name that the virtual-smart-card project's app declares


@dataclass(frozen=True)
class Day:
    """A wallet that was served once, what the terminal said at each tap, and what the wallet said."""

    home: Path
    charges: list[Finished]
    traced: Finished
    wallet: Finished


@pytest.fixture(scope="module")
def day(service: Service, module_home: Path) -> Day:
    with serving(module_home, "vpcd:", "--trace") as wallet:
        charges = [tap("pos", "charge", "1.25", "EUR", "pcsc:", "--json", home=module_home) for _ in range(TAPS)]
        traced = tap("pos", "charge", "1.25", "EUR", "pcsc:", "--json", "--trace", home=module_home)
        wallet.wait_for('"S9"', times=TAPS + 1)
        wallet.process.terminate()
        ended = wallet.wait()
    wait_for_no_card()
    return Day(module_home, charges, traced, ended)


@pytest.fixture(scope="module")
def numbers(day: Day) -> list[str]:
    """Every card number that the issuer ever gave to this wallet."""
    with closing(sqlite3.connect(day.home / "issuer" / "issuer.sqlite")) as database:
        return [str(number) for (number,) in database.execute("SELECT number FROM credentials")]


def test_ten_charges_in_a_row_are_approved(day: Day) -> None:
    assert [charge.code for charge in day.charges] == [0] * TAPS
    assert [charge.json["outcome"] for charge in day.charges] == ["approved"] * TAPS
    assert len({charge.json["card"] for charge in day.charges}) == TAPS
    assert len({charge.json["reference"] for charge in day.charges}) == TAPS


def test_outcome_is_the_one_of_any_other_link(day: Day) -> None:
    outcome = day.charges[0].json
    assert (outcome["amount"], outcome["currency"], outcome["charged"], outcome["reason"]) == (
        "1.25",
        "EUR",
        True,
        None,
    )
    assert outcome["receipt_verified"]
    assert outcome["apdus"] == 5  # what has to be long is extended, nothing is chained
    assert [step["step"] for step in outcome["steps"]] == ["S2", "S4", "S8", "S9"]
    assert outcome["relay_ms"] > 0
    assert re.fullmatch(r"\d{6}•{6}\d{4}", outcome["card"])


def test_wallet_and_terminal_agree_on_the_money(day: Day) -> None:
    charged = 1.25 * (TAPS + 1)
    assert float(balance(day.home)) == 100 - charged
    assert float(tap("pos", "show", "--json", home=day.home).json["taken"]) == charged


def test_json_stands_alone_on_standard_output(day: Day) -> None:
    assert day.traced.json["outcome"] == "approved"
    assert [charge.err for charge in day.charges] == [""] * TAPS


def test_trace_names_each_command_with_status_words_and_milliseconds(day: Day) -> None:
    heads = [line for line in day.traced.err.splitlines() if line.startswith("# ")]
    names = ["SELECT", "RELAY CHECK", "GET VIRTUAL CARD", "DEBIT", "CONFIRM"]
    assert len(heads) == len(names)
    for name, head in zip(names, heads, strict=True):
        assert re.fullmatch(rf"# {name}: \d+ > < \d+ bytes, 9000 \(ok\), \d+\.\d ms", head)
    for field in (
        "application name",
        "terminal's challenge",
        "merchant name",
        "X25519 key of this tap",
        "HPKE ciphertext",
    ):
        assert field in day.traced.err


def test_wallets_trace_shows_the_same_commands(day: Day) -> None:
    heads = [line for line in day.wallet.err.splitlines() if line.startswith("# ")]
    assert len(heads) == 5 * (TAPS + 1)
    assert heads[0].startswith("# SELECT: 14 > < 22 bytes, 9000 (ok), ")


def test_no_trace_holds_a_card_number(day: Day, numbers: list[str]) -> None:
    packed = "".join((day.traced.out + day.traced.err + day.wallet.out + day.wallet.err).split())
    masked = day.traced.json["card"]
    assert masked in {f"{number[:6]}••••••{number[-4:]}" for number in numbers}
    assert [number for number in numbers if number in packed or number[6:] in packed] == []


@pytest.mark.parametrize(
    ("wallet", "terminal"),
    [
        (["vpcd:?short"], [FIRST]),
        (["vpcd:"], [FIRST + "?short"]),
        (["vpcd:"], [FIRST, "--directory"]),
        (["vpcd:", "--name", ANDROID_NAME], [FIRST, "--name", ANDROID_NAME]),
    ],
    ids=["short wallet", "short terminal", "by the directory", "another name"],
)
def test_charge_is_approved_in_every_manner(
    service: Service, home: Path, wallet: list[str], terminal: list[str]
) -> None:
    with serving(home, *wallet):
        wait_for_card()
        charge = tap("pos", "charge", "1.25", "EUR", *terminal, "--json", home=home)
    wait_for_no_card()
    assert (charge.code, charge.json["outcome"]) == (0, "approved")


def test_two_wallets_in_two_readers_are_told_apart_by_the_readers_name(service: Service, home: Path, day: Day) -> None:
    with serving(home, "vpcd:"), serving(day.home, "vpcd:127.0.0.1:35964"):
        wait_for_card(0)
        wait_for_card(1)
        both = tap("pos", "charge", "1.00", "EUR", "pcsc:", "--json", home=home)
        one = tap("pos", "charge", "1.00", "EUR", "pcsc:00 01", "--json", home=day.home)
        probed = tap("pos", "probe", "pcsc:", home=home)
    for slot in (0, 1):
        wait_for_no_card(slot)
    assert (both.code, both.json["outcome"], both.json["charged"]) == (13, "no application", False)
    assert both.json["reason"] == "there are cards in 2 readers; present one card, or name its reader"
    assert (one.code, one.json["outcome"]) == (0, "approved"), one
    assert (probed.code, probed.out) == (0, "There are cards in 2 readers; present one card, or name its reader.\n")


def test_no_card_in_time_is_its_own_outcome(service: Service, home: Path) -> None:
    charge = tap("pos", "charge", "1.00", "EUR", "pcsc:", "--timeout", "0.1", "--json", home=home)
    assert (charge.code, charge.json["outcome"], charge.json["charged"]) == (16, "no card", False)


def _demo(scratch: Path) -> Finished:
    return run(ROOT / "scripts" / "demo", "--link", "pcsc", "--json", scratch=scratch)


def test_demonstration_pays_with_a_service_of_its_own_and_leaves_none(service: Service, tmp_path: Path) -> None:
    with service.stopped():
        shown = _demo(tmp_path)
        left = tap("pos", "readers", "--json", home=tmp_path)
    assert (shown.code, shown.json["outcome"], shown.json["link"]) == (0, "approved", "pcsc")
    assert any("PC/SC service does not run" in row["missing"] for row in left.json)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_demonstration_beside_another_service_is_one_sentence(service: Service, tmp_path: Path) -> None:
    shown = _demo(tmp_path)
    assert (shown.code, shown.json["exit_code"]) == (69, 69)
    assert "a PC/SC service with vpcd runs already; stop it" in shown.sentence
