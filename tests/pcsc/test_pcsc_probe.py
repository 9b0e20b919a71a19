# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-pos probe`: tells what is in the field, survives whatever that says, and asks for nothing that pays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import ndef
import pytest

from pos.probe import probe
from protocol.apdu import Command
from protocol.commands import DEFAULT_NAME
from protocol.fci import DIRECTORY_NAME
from protocol.transport.opening import open_terminal_end
from tests.echo_card import EchoCard
from tests.end_to_end.commands import tap
from tests.end_to_end.parties import HookedCard, PlainCard, ToldLaboratory, link_to, served
from tests.pcsc.slots import FIRST, NDEF_NAME, PATIENCE, ExchangeableCard, Service, TagCard

READ_ONLY = {(0x00, 0xA4), (0x00, 0xB0)}
FETCHING = (0x00, 0xC0)  # GET RESPONSE belongs to the answer before


def _instructions(apdus: list[bytes]) -> set[tuple[int, int]]:
    return {(command.cla, command.ins) for command in map(Command.decode, apdus)}


@pytest.fixture
def wallet(first: ExchangeableCard, laboratory: ToldLaboratory) -> list[bytes]:
    """What is sent to our wallet in the first slot."""
    apdus: list[bytes] = []
    first.card = HookedCard(laboratory.phone.card, hook=apdus.append)
    return apdus


def test_wallet_is_described(wallet: list[bytes], tmp_path: Path) -> None:
    found = tap("pos", "probe", FIRST, "--json", home=tmp_path)
    text = tap("pos", "probe", FIRST, home=tmp_path)
    assert (found.code, found.err, text.code, text.err) == (0, "", 0, "")
    name = DEFAULT_NAME.hex()
    assert found.json["atr"] == "3b8580018073c001c0f6"
    assert found.json["extended_length"] is True
    assert found.json["directory"] == [{"name": name, "label": "TAPLAB", "priority": 1}]
    assert found.json["applications"] == [{"what": "TapLab wallet", "name": name}]
    assert found.json["ndef"] == []
    assert [found.json[field] for field in ("uid", "uid_is_random", "ats", "foreign")] == [None] * 4
    assert "3B 85 80 01 80 73 C0 01 C0 F6" in text.out
    assert f"application  TapLab wallet  {name.upper()}" in text.out


def test_wallet_is_asked_for_nothing_that_pays(wallet: list[bytes], laboratory: ToldLaboratory, tmp_path: Path) -> None:
    before = laboratory.phone.view()
    assert tap("pos", "probe", FIRST, home=tmp_path).code == 0
    assert _instructions(wallet) <= READ_ONLY
    names = [Command.decode(apdu).data for apdu in wallet]
    assert {DEFAULT_NAME, DIRECTORY_NAME} <= set(names)
    assert laboratory.phone.view() == before


def test_wallet_is_described_over_a_socket_too(laboratory: ToldLaboratory, tmp_path: Path) -> None:
    apdus: list[bytes] = []
    url = f"socket:{tmp_path / 'link'}"
    with served(HookedCard(laboratory.phone.card, hook=apdus.append), url):
        found = tap("pos", "probe", url, "--json", home=tmp_path)
    assert found.code == 0
    assert [one["what"] for one in found.json["applications"]] == ["TapLab wallet"]
    assert [one["label"] for one in found.json["directory"]] == ["TAPLAB"]
    assert found.json["extended_length"] is True
    assert _instructions(apdus) <= READ_ONLY


def test_trace_of_a_probe_names_what_was_sent(wallet: list[bytes], tmp_path: Path) -> None:
    found = tap("pos", "probe", FIRST, "--json", "--trace", home=tmp_path)
    heads = [line for line in found.err.splitlines() if line.startswith("# ")]
    assert found.json["atr"]
    assert len(heads) == len(wallet)
    assert heads[0].startswith("# SELECT: 14 > < 22 bytes, 9000 (ok), ")
    assert heads[1].startswith("# SELECT: ")
    assert "6A82 (not found)" in heads[1]


def test_empty_field_is_no_card(service: Service, tmp_path: Path) -> None:
    found = tap("pos", "probe", "pcsc:00 01", "--timeout", "0.1", home=tmp_path)
    assert (found.code, found.out, found.err) == (16, "no card was presented in time\n", "")
    told = tap("pos", "probe", "pcsc:00 01", "--timeout", "0.1", "--json", home=tmp_path)
    assert (told.code, told.json) == (16, {"error": "no card was presented in time", "exit_code": 16})


@pytest.mark.parametrize(
    "answer",
    ["6F00", "9000", "6A82FF", "6283", "6F" + "00" * 300, "6F0584039000", "FF" * 40 + "9000", "00" * 65535],
)
def test_card_that_always_says_the_same_is_described(first: ExchangeableCard, tmp_path: Path, answer: str) -> None:
    first.card = card = EchoCard(lambda _: bytes.fromhex(answer))
    found = tap("pos", "probe", FIRST, "--json", home=tmp_path)
    assert (found.code, found.err) == (0, "")
    assert found.json["atr"] == "3b8580018073c001c0f6"
    assert found.json["directory"] == []
    assert found.json["ndef"] == []
    assert _instructions(card.apdus) <= READ_ONLY


@pytest.mark.parametrize("answer", ["90", "6100", "6C00", "6C01", "00" * 256 + "6100"])
def test_card_whose_answers_are_none_ends_the_probe_in_one_sentence(
    first: ExchangeableCard, tmp_path: Path, answer: str
) -> None:
    first.card = card = EchoCard(lambda _: bytes.fromhex(answer))
    found = tap("pos", "probe", FIRST, home=tmp_path)
    assert (found.code, found.err) == (0, "") or (found.code == 12 and found.sentence)
    assert _instructions(card.apdus) <= READ_ONLY | {FETCHING}
    assert len(card.apdus) < 10_000


def test_garbage_is_never_more_than_a_finding() -> None:
    random = Random(3)  # noqa: S311 - the same garbage at each run
    starts = [b"", bytes.fromhex("6F1A840E325041592E5359532E4444463031A508BF0C0561034F01"), bytes.fromhex("6F058403")]

    def garbage(_: bytes) -> bytes:
        return random.choice(starts) + random.randbytes(random.randrange(2, 40)) + b"\x90\x00"

    for _ in range(300):
        card = EchoCard(garbage)
        with link_to(card) as link:
            finding, _trace = probe(link, PATIENCE)
        assert finding.atr
        assert _instructions(card.apdus) <= READ_ONLY


HOSTILE_RECORDS = {
    "no record": bytes.fromhex("FFFFFFFF"),
    "type that is no text": bytes.fromhex("D10206C269000E3001DD62"),
    "unreadable signature": bytes.fromhex("730306536967200002000000"),
    "cut off": bytes.fromhex("D101"),
}


@pytest.mark.parametrize("message", HOSTILE_RECORDS.values(), ids=HOSTILE_RECORDS)
def test_ndef_that_is_none_is_said_to_be(first: ExchangeableCard, tmp_path: Path, message: bytes) -> None:
    first.card = TagCard(message)
    found = tap("pos", "probe", FIRST, "--json", home=tmp_path)
    assert (found.code, found.err) == (0, "")
    assert len(found.json["ndef"]) == 1
    assert "no NDEF message" in found.json["ndef"][0]


def _tag_that_claims_more() -> Callable[[bytes], bytes]:
    tag = TagCard(b"")
    return lambda apdu: bytes.fromhex("FFFF9000") if apdu[1] == 0xB0 else tag.process(apdu)


def test_tag_that_claims_more_than_it_has_is_read_within_bounds(first: ExchangeableCard, tmp_path: Path) -> None:
    first.card = card = EchoCard(_tag_that_claims_more())
    assert tap("pos", "probe", FIRST, "--json", home=tmp_path).code == 0
    assert len(card.apdus) < 3000


def test_what_a_card_says_cannot_steer_the_screen(first: ExchangeableCard, tmp_path: Path) -> None:
    message = b"".join(ndef.message_encoder([ndef.TextRecord("\x1b[2Jhello\x07")]))
    label = bytes.fromhex("50071B5B324A1B5B48")
    entry = bytes.fromhex("4F05F000000001") + label
    listed = bytes([0xBF, 0x0C, len(entry) + 2, 0x61, len(entry)]) + entry
    inner = bytes([0x84, len(DIRECTORY_NAME)]) + DIRECTORY_NAME + bytes([0xA5, len(listed)]) + listed
    tag = TagCard(message)

    def answer(apdu: bytes) -> bytes:
        return bytes([0x6F, len(inner)]) + inner + b"\x90\x00" if DIRECTORY_NAME in apdu else tag.process(apdu)

    first.card = EchoCard(answer)
    found = tap("pos", "probe", FIRST, home=tmp_path)
    assert found.code == 0
    assert "F000000001" in found.out
    assert "hello" in found.out
    assert [character for character in found.out if not character.isprintable() and character != "\n"] == []


def test_tag_is_read_whole(first: ExchangeableCard, tmp_path: Path) -> None:
    text = "word " * 500
    first.card = TagCard(b"".join(ndef.message_encoder([ndef.TextRecord(text, "en")])))
    found = tap("pos", "probe", FIRST, "--json", home=tmp_path)
    assert found.json["applications"] == [{"what": "NFC Forum Type 4 tag", "name": NDEF_NAME.hex()}]
    assert text in found.json["ndef"][0]


def test_a_probe_ends_its_tap() -> None:
    card = EchoCard(PlainCard().process)
    with link_to(card) as link:
        probe(link, PATIENCE)
        assert card.events[-1] == "off"


def test_probe_of_a_card_opens_the_link_it_is_given(first: ExchangeableCard) -> None:
    first.card = EchoCard(PlainCard().process)
    with open_terminal_end(FIRST) as link:
        finding, trace = probe(link, PATIENCE)
    assert finding.applications == ()
    assert trace.exchanges
