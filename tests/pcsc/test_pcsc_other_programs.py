# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Other people's programs in front of our wallet, and other people's cards in front of our terminal."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import ndef
import pytest

from protocol.commands import DEFAULT_NAME, VERSION_1, select
from protocol.envelope import SUITE_1
from protocol.fci import DIRECTORY_NAME, ApplicationFci, DirectoryEntry, encode_directory
from tests.end_to_end.commands import Running, serving, tap
from tests.pcsc.programs import opensc, scriptor
from tests.pcsc.slots import (
    CONTACT_ATR,
    FIRST,
    FOREIGN_ATR,
    PATIENCE,
    READERS,
    SECOND,
    VPCD_PORTS,
    RawCard,
    Service,
    TagCard,
    wait_for_card,
    wait_for_no_card,
)

FCI = ApplicationFci(DEFAULT_NAME, (VERSION_1,), (SUITE_1,)).encode()
DIRECTORY = encode_directory((DirectoryEntry(DEFAULT_NAME, "TAPLAB", 1),))
SELECT = select(DEFAULT_NAME).encode()

ODD = {
    "00A4040000": "6700",  # a name of no bytes
    "00A40400021234": "6A82",
    "00A4000002 3F00": "6A86",
    "00A4040C08" + DEFAULT_NAME.hex(): "6A86",
    "00B0000000": "6D00",
    "00CA010000": "6D00",
    "FFCA000000": "6E00",  # what asks a reader for the UID; here it reaches the card
    "80500101 00": "6985",
    "8052000000": "6985",
    "00C0000000": "6985",
    "00A404000512": "6700",  # fewer bytes than announced
    "00A4040000FFFF12": "6700",
    "00000000": "6D00",
    "0CA4040000": "6E00",
}


@pytest.fixture(scope="module")
def wallet(service: Service, module_home: Path) -> Iterator[Running]:
    with serving(module_home, "vpcd:") as wallet:
        wait_for_card()
        yield wallet
    wait_for_no_card()


def test_opensc_selects_the_application_and_reads_its_fci(wallet: Running) -> None:
    assert opensc(SELECT) == [FCI + b"\x90\x00"]


def test_scriptor_selects_the_application_and_reads_its_fci(wallet: Running) -> None:
    assert scriptor(SELECT) == [FCI + b"\x90\x00"]


def test_both_read_the_same_directory(wallet: Running) -> None:
    command = select(DIRECTORY_NAME).encode()
    assert opensc(command) == scriptor(command) == [DIRECTORY + b"\x90\x00"]


def test_opensc_reads_the_atr(wallet: Running) -> None:
    command = ["opensc-tool", "--reader", READERS[0], "--atr"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout.strip()) == (0, "3b:85:80:01:80:73:c0:01:c0:f6")


def test_odd_commands_get_status_words_and_the_wallet_lives_on(wallet: Running) -> None:
    answers = scriptor(SELECT, *map(bytes.fromhex, ODD), SELECT)
    got = dict(zip(ODD, (answer.hex().upper() for answer in answers[1:-1]), strict=True))
    assert got == ODD
    assert answers[-1] == FCI + b"\x90\x00"


def test_opensc_looking_for_its_own_cards_does_no_harm(wallet: Running, module_home: Path) -> None:
    command = ["opensc-tool", "--reader", READERS[0], "--name", "--serial"]  # tries every card that it knows
    subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    charge = tap("pos", "charge", "1.00", "EUR", FIRST, "--json", home=module_home)
    assert (charge.code, charge.json["outcome"]) == (0, "approved")
    assert wallet.process.poll() is None


# Cards of somebody else's: they share no code with ours, down to the wire protocol.


TEXT = "Grüße vom Tag"


@pytest.fixture(params=[FOREIGN_ATR, CONTACT_ATR], ids=["contactless", "contact"])
def tag(request: pytest.FixtureRequest, service: Service) -> Iterator[RawCard]:
    message = b"".join(ndef.message_encoder([ndef.TextRecord(TEXT, "de"), ndef.UriRecord("https://example.org/")]))
    with RawCard(VPCD_PORTS[1], request.param, TagCard(message).process) as card:
        wait_for_card(1)
        yield card
    wait_for_no_card(1)


def test_card_of_another_application_is_no_application_and_probe_describes_it(tag: RawCard, home: Path) -> None:
    for options in ([], ["--directory"]):
        charge = tap("pos", "charge", "1.00", "EUR", SECOND, *options, "--json", home=home)
        assert (charge.code, charge.json["outcome"], charge.json["charged"]) == (13, "no application", False), charge
        assert charge.json["reason"] == "the card has no payment application"
    charged = len(tag.apdus)
    found = tap("pos", "probe", SECOND, "--json", home=home)
    read = tap("pos", "probe", SECOND, home=home)
    assert (found.code, read.code) == (0, 0)
    assert bytes.fromhex(found.json["atr"]) in (FOREIGN_ATR, CONTACT_ATR)
    assert found.json["applications"] == [{"what": "NFC Forum Type 4 tag", "name": "d2760000850101"}]
    assert found.json["directory"] == []
    assert found.json["extended_length"] is False
    text, uri = found.json["ndef"]
    assert TEXT in text
    assert "https://example.org/" in uri
    assert "NFC Forum Type 4 tag  D2760000850101" in read.out
    assert TEXT in read.out
    assert {apdu[:2].hex().upper() for apdu in tag.apdus[charged:]} == {"00A4", "00B0"}
