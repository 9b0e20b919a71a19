# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Relays that answer early, names that are swapped, terminals that pester the user, damaged links after which money adds up."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.fixtures import Laboratory
from pos.journal import Journal
from pos.outcome import OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol.commands import DEFAULT_NAME, Ins
from protocol.fci import ApplicationFci
from protocol.money import Amount
from protocol.transport.base import CardHandler
from tests.end_to_end.parties import EditingCard, HostileTerminal, flip, link_to, terminal_like
from wallet.phone import PhoneOptions

EURO = Amount.parse("1.00", "EUR")
LARGE = Amount.parse("60.00", "EUR")


@dataclass
class EarlyRelay:
    """A relay that answers RELAY CHECK itself, at once, and passes everything else on to the card far away."""

    card: CardHandler
    asks: bool

    def activate(self) -> None:
        self.card.activate()

    def process(self, apdu: bytes) -> bytes:
        if apdu[1] != Ins.RELAY_CHECK:
            return self.card.process(apdu)
        if self.asks:
            self.card.process(apdu)  # so that the card goes on; its nonce comes too late to be used
        return os.urandom(8) + b"\x90\x00"

    def deactivate(self) -> None:
        self.card.deactivate()


@pytest.mark.attack("R2")
@pytest.mark.parametrize("asks", [False, True])
def test_a_relay_that_answers_before_the_wallet_does_gets_no_card(home: Path, tmp_path: Path, asks: bool) -> None:
    with Laboratory(home=home) as laboratory, Terminal(terminal_like(home), Journal(tmp_path)) as terminal:
        outcome = terminal.charge(EURO, link_to(EarlyRelay(laboratory.phone.card, asks)))
        assert outcome.kind in (OutcomeKind.NOT_ACCEPTED, OutcomeKind.DECLINED)
        assert (outcome.charged, laboratory.balance.minor, laboratory.phone.view().cards_left) == (False, 10000, 20)


@pytest.mark.attack("R2")
def test_a_nonce_kept_from_an_earlier_tap_is_no_answer(home: Path, tmp_path: Path) -> None:
    kept: list[bytes] = []

    def keep_or_use(answer: bytes) -> bytes:
        kept.append(answer)
        return kept[0]

    with Laboratory(home=home) as laboratory, Terminal(terminal_like(home), Journal(tmp_path)) as terminal:
        card = EditingCard(laboratory.phone.card, Ins.RELAY_CHECK, keep_or_use)
        assert terminal.charge(EURO, link_to(card)).approved
        assert terminal.charge(EURO, link_to(card)).kind is OutcomeKind.NOT_ACCEPTED
        assert laboratory.balance.minor == 9900


@pytest.mark.attack("B3")
def test_a_name_swapped_for_another_of_the_same_wallet_brings_no_card(home: Path, tmp_path: Path) -> None:
    other = bytes.fromhex("F054415000")
    options = PhoneOptions(names=(DEFAULT_NAME, other))

    @dataclass
    class Swapper:
        card: CardHandler

        def activate(self) -> None:
            self.card.activate()

        def process(self, apdu: bytes) -> bytes:
            if apdu[1] != Ins.SELECT:
                return self.card.process(apdu)
            swapped = apdu[:4] + bytes([len(other)]) + other + b"\0"
            assert self.card.process(swapped)[-2:] == b"\x90\x00"
            return ApplicationFci(DEFAULT_NAME, (1,), (1,)).encode() + b"\x90\x00"

        def deactivate(self) -> None:
            self.card.deactivate()

    with (
        Laboratory(home=home, options=options) as laboratory,
        Terminal(terminal_like(home), Journal(tmp_path)) as terminal,
    ):
        swapped = terminal.charge(EURO, link_to(Swapper(laboratory.phone.card)))
        assert swapped.kind is OutcomeKind.NOT_ACCEPTED
        assert terminal.charge(EURO, link_to(laboratory.phone.card)).approved
        assert laboratory.balance.minor == 9900


@pytest.mark.attack("V3")
def test_a_passer_by_cannot_make_the_wallet_ask_its_user(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("cancel\n" * 9)
    with Laboratory(home=home, options=PhoneOptions(trusted_ui=f"scripted:{script}")) as laboratory:
        for _ in range(5):
            terminal = HostileTerminal(link_to(laboratory.phone.card), terminal_like(home))
            terminal.approach()
            hello = terminal.hello().encode()
            terminal.link.transceive(
                bytes.fromhex("80500101") + b"\0" + len(hello).to_bytes(2, "big") + flip(hello, -1)
            )
            terminal.leave()
        laboratory.phone.close()
    assert (tmp_path / "script.shown").read_text() == ""


@pytest.mark.attack("V3")
def test_what_a_terminal_asks_for_in_the_channel_is_asked_once_a_tap_and_only_above_the_limit(
    home: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("cancel\n" * 9)
    with (
        Laboratory(home=home, options=PhoneOptions(trusted_ui=f"scripted:{script}")) as laboratory,
        Terminal(terminal_like(home), Journal(tmp_path), TerminalOptions()) as terminal,
    ):
        assert terminal.charge(EURO, link_to(laboratory.phone.card)).approved
        assert terminal.charge(LARGE, link_to(laboratory.phone.card)).kind is OutcomeKind.SEE_PHONE
        laboratory.phone.close()
    assert (tmp_path / "script.shown").read_text() == "Pay 60.00 EUR to Corner Bakery?\n"


@pytest.mark.attack("I5")
def test_the_trusted_world_leaves_no_core_and_no_environment(home: Path) -> None:
    with Laboratory(home=home) as laboratory:
        pid = laboratory.phone.tee.pid
        limits = Path(f"/proc/{pid}/limits").read_text()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    assert environment == b""
    root = (home / "wallet" / "device" / "root.key").read_bytes()
    assert root not in arguments
    assert root.hex().encode() not in arguments


def test_attacks_can_be_selected_by_id_and_by_group() -> None:
    def selected(*ids: str) -> list[str]:
        options = [part for one in ids for part in ("--attack", one)]
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/attacks", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
        return [line for line in done.stdout.splitlines() if "::" in line]

    one, group, everything = selected("M4"), selected("M"), selected()
    assert one
    assert all("test_attacks_m" in line for line in one)
    assert len(one) < len(group) < len(everything)
