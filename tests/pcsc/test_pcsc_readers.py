# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-pos readers`: what is attached and what it can do; for what cannot be used, what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.echo_card import EchoCard
from tests.end_to_end.commands import tap
from tests.pcsc.slots import READERS, CardInSlot, Service


def _virtual(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows if row["name"] in READERS}


def test_both_slots_are_listed_with_the_links_that_open_them(service: Service, tmp_path: Path) -> None:
    listed = tap("pos", "readers", "--json", home=tmp_path)
    assert (listed.code, listed.err) == (0, "")
    rows = _virtual(listed.json)
    assert list(rows) == list(READERS)
    for name, row in rows.items():
        assert row["link"] == f"pcsc:{name}"
        assert (row["as_terminal"], row["as_card"]) == (True, False)
        assert (row["card_present"], row["missing"]) == (False, "")


def test_card_is_listed_in_the_reader_that_it_is_in(service: Service, tmp_path: Path) -> None:
    with CardInSlot(EchoCard(), 1):
        rows = _virtual(tap("pos", "readers", "--json", home=tmp_path).json)
        text = tap("pos", "readers", home=tmp_path).out
    assert [rows[name]["card_present"] for name in READERS] == [False, True]
    lines = {line.split(":")[1].split("  ")[0]: line for line in text.splitlines() if line.startswith("pcsc:")}
    assert lines[READERS[0]].endswith("can be terminal")
    assert lines[READERS[1]].endswith("can be terminal, a card is present")


def test_missing_service_is_said_with_what_to_install(service: Service, tmp_path: Path) -> None:
    with service.stopped():
        listed = tap("pos", "readers", "--json", home=tmp_path)
        text = tap("pos", "readers", home=tmp_path)
    assert (listed.code, text.code) == (0, 0)
    (row,) = [row for row in listed.json if row["link"] == "pcsc:"]
    assert "PC/SC service does not run" in row["missing"]
    assert "apt-get install pcscd" in row["missing"]
    assert row["card_present"] is False
    assert row["missing"] in text.out
    assert "can be" not in next(line for line in text.out.splitlines() if line.startswith("pcsc:"))


def test_nothing_on_usb_is_listed_that_is_not_there(service: Service, tmp_path: Path) -> None:
    rows = tap("pos", "readers", "--json", home=tmp_path).json
    for row in rows:
        if row["link"] == "nfc:usb":  # USB itself cannot be looked at
            assert row["missing"]
        elif row["link"].startswith("nfc:usb:"):
            _, _, bus, device = row["link"].split(":")
            assert Path(f"/dev/bus/usb/{bus}/{device}").exists()


def test_readers_are_listed_without_a_home_or_a_terminal(service: Service, tmp_path: Path) -> None:
    listed = tap("pos", "readers", home=tmp_path / "nobody")
    assert listed.code == 0
    assert not (tmp_path / "nobody").exists()
