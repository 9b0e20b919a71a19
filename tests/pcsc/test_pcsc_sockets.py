# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The wallet and the terminal in front of parties that speak the virtual-smart-card protocol by hand, without a service.

A wallet that listens is what an Android app needs that makes a phone its radio; a terminal that listens is what card
simulators need.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.commands import DEFAULT_NAME, VERSION_1, select
from protocol.envelope import SUITE_1
from protocol.fci import ApplicationFci
from tests.end_to_end.commands import Running, free_port, serving, tap
from tests.pcsc.slots import FOREIGN_ATR, PATIENCE, RawCard, TagCard, receive_message, send_message

OFF, ON, RESET, GET_ATR = b"\x00", b"\x01", b"\x02", b"\x04"
ATR = bytes.fromhex("3B8580018073C001C0F6")
ANDROID_NAME = bytes.fromhex("F276A288BCFBA69D34F31001")


def _fci(name: bytes) -> bytes:
    return ApplicationFci(name, (VERSION_1,), (SUITE_1,)).encode() + b"\x90\x00"


class RawReader:
    """A reader's end by hand, as the app has it."""

    def __init__(self, port: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)

    def send(self, *messages: bytes) -> None:
        for message in messages:
            send_message(self._connection, message)

    def ask(self, message: bytes) -> bytes:
        self.send(message)
        return receive_message(self._connection)

    def send_in_single_bytes(self, message: bytes) -> bytes:
        for byte in len(message).to_bytes(2, "big") + message:
            self._connection.sendall(bytes([byte]))
        return receive_message(self._connection)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def wallet(port: int, module_home: Path) -> Iterator[Running]:
    names = ["--name", DEFAULT_NAME.hex(), "--name", ANDROID_NAME.hex()]
    with serving(module_home, f"socket:127.0.0.1:{port}", *names) as wallet:
        yield wallet


@pytest.fixture
def reader(wallet: Running, port: int) -> Iterator[RawReader]:
    with contextlib.closing(RawReader(port)) as reader:
        yield reader


def test_listening_wallet_answers_a_reader_by_the_letter(reader: RawReader) -> None:
    reader.send(ON, RESET)
    assert reader.ask(GET_ATR) == ATR
    assert reader.ask(select(DEFAULT_NAME).encode()) == _fci(DEFAULT_NAME)
    reader.send(OFF, ON)
    assert reader.ask(GET_ATR) == ATR
    assert reader.ask(select(ANDROID_NAME).encode()) == _fci(ANDROID_NAME)


def test_reset_deselects(reader: RawReader) -> None:
    relay_check = bytes.fromhex("80580000080102030405060708 00")
    reader.send(ON, RESET)
    reader.ask(select(DEFAULT_NAME).encode())
    assert reader.ask(relay_check)[-2:] == bytes.fromhex("9000")
    reader.send(RESET)
    assert reader.ask(relay_check) == bytes.fromhex("6985")


def test_message_may_come_byte_by_byte(reader: RawReader) -> None:
    reader.send(ON, RESET)
    assert reader.send_in_single_bytes(select(DEFAULT_NAME).encode()) == _fci(DEFAULT_NAME)


def test_unknown_codes_and_empty_messages_do_no_harm(reader: RawReader) -> None:
    reader.send(ON, b"\x03", b"\x05", b"\xff", RESET)
    assert reader.ask(b"") == bytes.fromhex("6700")
    assert reader.ask(b"\x00\xa4") == bytes.fromhex("6700")
    assert reader.ask(select(DEFAULT_NAME).encode()) == _fci(DEFAULT_NAME)


def test_reader_that_goes_in_the_middle_of_a_message_leaves_a_wallet_for_the_next(wallet: Running, port: int) -> None:
    for half in (b"\x00", b"\x00\x0e", b"\x00\x0e\x00\xa4"):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(half)
    with contextlib.closing(RawReader(port)) as reader:
        reader.send(ON, RESET)
        assert reader.ask(GET_ATR) == ATR
    assert wallet.process.poll() is None


def test_probe_reads_the_listening_wallet(wallet: Running, port: int, module_home: Path) -> None:
    found = tap("pos", "probe", f"socket:127.0.0.1:{port}", "--json", home=module_home)
    assert found.code == 0
    assert bytes.fromhex(found.json["atr"]) == ATR
    assert found.json["extended_length"] is True
    assert [one["name"] for one in found.json["directory"]] == [DEFAULT_NAME.hex(), ANDROID_NAME.hex()]
    assert found.json["applications"] == [{"what": "TapLab wallet", "name": DEFAULT_NAME.hex()}]


def test_listening_terminal_reads_a_card_by_the_letter(module_home: Path) -> None:
    port = free_port()
    with RawCard(port, FOREIGN_ATR, TagCard(b"").process) as card:
        charge = tap("pos", "charge", "1.00", "EUR", f"socket:127.0.0.1:{port}?listen", "--json", home=module_home)
    assert (charge.code, charge.json["outcome"]) == (13, "no application")
    assert card.codes[:3] == [1, 2, 4]
    assert card.codes[-1] == 0
    assert card.apdus[0] == select(DEFAULT_NAME).encode()


def test_listening_probe_reads_a_card_by_the_letter(module_home: Path) -> None:
    port = free_port()
    with RawCard(port, FOREIGN_ATR, TagCard(b"").process):
        found = tap("pos", "probe", f"socket:127.0.0.1:{port}?listen", "--json", home=module_home)
    assert found.code == 0
    assert bytes.fromhex(found.json["atr"]) == FOREIGN_ATR
    assert found.json["applications"] == [{"what": "NFC Forum Type 4 tag", "name": "d2760000850101"}]


def test_listening_terminal_charges_a_wallet_that_connects(module_home: Path, home: Path) -> None:
    port = free_port()
    with Running("wallet", "serve", f"socket:127.0.0.1:{port}?connect", "--json", home=home) as wallet:
        wallet.wait_for('"ready"')
        charge = tap("pos", "charge", "1.00", "EUR", f"socket:127.0.0.1:{port}?listen", "--json", home=home)
    assert (charge.code, charge.json["outcome"]) == (0, "approved")
