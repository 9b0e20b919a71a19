# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`nfc:udp:…` with the real nfcpy at both ends; and nfcpy's own reader and its own tag at one of them.

Only loopback addresses are spoken to, although nfcpy's UDP device binds every address of the machine.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nfc.clf
import nfc.tag
import nfc.tag.tt4
import pytest

from lab import processes
from lab.demo import free_udp_port
from lab.fixtures import Laboratory
from pos.outcome import OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol.commands import DEFAULT_NAME
from protocol.errors import (
    CardRemovedError,
    CardSilentError,
    DecodeError,
    ForeignCardError,
    LinkUnavailableError,
    TransportError,
)
from protocol.fci import ApplicationFci
from protocol.money import Amount
from protocol.transport.base import CardHandler, card_historical, contactless_atr
from protocol.transport.isodep import Ats
from protocol.transport.nfc import NfcLink, NfcPort
from tests.end_to_end.test_e2e_demo import ROOT, run
from tests.links.frames import data
from tests.links.radio import PATIENCE, EchoCard, RawReader, Rig, raw_card, wait_until_bound

_AMOUNT = Amount.parse("2.50", "EUR")
_SLOW = 0.1  # seconds: nearly three frame waiting times


@pytest.fixture(scope="module")
def patient_terminal(made_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal that waits for a card as long as these tests do."""
    home = shutil.copytree(made_home, tmp_path_factory.mktemp("terminal") / "home")
    with Terminal.open(home, TerminalOptions(timeout=PATIENCE)) as terminal:
        yield terminal


# --- activation


def test_activation_tells_what_the_radio_knows_of_the_card(rig: Rig) -> None:
    rig.lay(EchoCard())
    activation = rig.link.activate(PATIENCE)
    assert activation.card is not None
    assert activation.card.atqa == bytes.fromhex("0400")
    assert activation.card.sak == 0x20
    assert activation.card.ats == Ats(historical=card_historical(extended=True)).encode()
    assert activation.atr == contactless_atr(card_historical(extended=True))
    assert activation.takes_extended_length


def test_uid_is_random_for_each_activation(rig: Rig) -> None:
    rig.lay(EchoCard())
    uids = []
    for _ in range(5):
        activation = rig.link.activate(PATIENCE)
        assert activation.card is not None
        uids.append(activation.card.uid)
        rig.link.deactivate()
    assert {uid[0] for uid in uids} == {0x08}
    assert {len(uid) for uid in uids} == {4}
    assert len(set(uids)) == 5


@pytest.mark.parametrize("length", [0, 1, 252, 253, 254, 255, 256, 65528])
def test_bytes_of_any_number_go_both_ways(rig: Rig, length: int) -> None:
    card = EchoCard()
    rig.lay(card)
    assert rig.tap(data(length)) == data(length)
    assert [event for event in card.events if isinstance(event, bytes)] == [data(length)]


# --- taps


def test_ten_taps_in_a_row_reset_the_card_each_time(rig: Rig) -> None:
    card = EchoCard()
    rig.lay(card)
    for number in range(10):
        assert rig.tap(bytes([number])) == bytes([number])
    card.wait_for("off", 10)
    assert card.events == [event for number in range(10) for event in ("on", bytes([number]), "off")]


def test_many_exchanges_in_one_tap_keep_their_order(rig: Rig) -> None:
    rig.lay(EchoCard())
    rig.link.activate(PATIENCE)
    for number in range(200):
        assert rig.link.transceive(data(number)) == data(number)


@pytest.mark.parametrize("close", [False, True], ids=["deselect", "close"])
def test_reader_that_ends_the_tap_ends_it_for_the_card_which_serves_the_next(rig: Rig, close: bool) -> None:
    card = EchoCard()
    rig.lay(card)
    rig.link.activate(PATIENCE)
    rig.link.transceive(b"\x01")
    if close:
        rig.restart_terminal()
    else:
        rig.link.deactivate()
    card.wait_for("off")
    assert rig.tap(b"\x02") == b"\x02"


def test_field_that_goes_off_without_deselect_ends_the_tap(rig: Rig) -> None:
    card = EchoCard()
    rig.lay(card)
    with RawReader(rig.port) as reader:
        reader.activate()
        reader.send(b"RFOFF")
        card.wait_for("off")
    assert rig.tap(b"\x01") == b"\x01"


def test_reader_that_dies_without_a_word_does_not_keep_the_card(rig: Rig) -> None:  # T4
    card = EchoCard()
    rig.lay(card)
    with RawReader(rig.port) as reader:
        reader.activate()
    assert rig.tap(b"\x01") == b"\x01"
    card.wait_for("off", 2)


def test_second_reader_that_looks_for_a_card_does_not_disturb_a_tap(rig: Rig) -> None:
    rig.lay(EchoCard())
    rig.link.activate(PATIENCE)
    with RawReader(rig.port) as other:
        for number in range(20):
            other.send(b"106A 26")
            assert rig.link.transceive(bytes([number])) == bytes([number])


def test_activating_twice_begins_a_new_tap(rig: Rig) -> None:
    card = EchoCard()
    rig.lay(card)
    rig.link.activate(PATIENCE)
    rig.link.activate(PATIENCE)
    assert rig.link.transceive(b"\x01") == b"\x01"
    assert [event for event in card.events if event != "off"] == ["on", "on", b"\x01"]


def test_restarted_wallet_is_found_by_the_same_terminal(rig: Rig) -> None:
    for number in range(3):
        rig.lay(EchoCard())
        assert rig.tap(bytes([number])) == bytes([number])
        rig.take_away()


def test_restarted_terminal_finds_the_same_wallet(rig: Rig) -> None:
    rig.lay(EchoCard())
    for number in range(3):
        assert rig.tap(bytes([number])) == bytes([number])
        rig.restart_terminal()
    rig.assert_serving()


def test_wallet_taken_away_within_a_tap_is_a_removed_card(rig: Rig) -> None:
    rig.lay(EchoCard())
    rig.link.activate(PATIENCE)
    rig.take_away()
    for _ in range(2):
        with pytest.raises(CardRemovedError):
            rig.link.transceive(b"\x01")
    rig.lay(EchoCard())
    assert rig.tap(b"\x02") == b"\x02"


@pytest.mark.parametrize("is_tapped", [False, True])
def test_wallet_that_is_closed_leaves_at_once(rig: Rig, is_tapped: bool) -> None:
    rig.lay(EchoCard())
    if is_tapped:
        rig.link.activate(PATIENCE)
    started = time.monotonic()
    rig.take_away(awake=False)
    assert time.monotonic() - started < 2


def test_wallet_closed_while_it_computes_never_answers(rig: Rig) -> None:
    def answer(apdu: bytes) -> bytes:
        port.close()
        return apdu

    port = NfcPort(rig.path)
    thread = threading.Thread(target=port.serve, args=(EchoCard(answer),), daemon=True)
    thread.start()
    wait_until_bound(rig.port)
    rig.link.activate(PATIENCE)
    with pytest.raises(CardRemovedError):
        rig.link.transceive(b"\x01")
    thread.join(PATIENCE)
    assert not thread.is_alive()


# --- waiting


def test_card_that_needs_longer_than_the_frame_waiting_time_still_answers(rig: Rig) -> None:
    card = EchoCard(lambda apdu: time.sleep(_SLOW) or apdu)  # type: ignore[func-returns-value]
    rig.lay(card)
    rig.link.activate(PATIENCE)
    for number in range(3):
        started = time.monotonic()
        assert rig.link.transceive(bytes([number])) == bytes([number])
        assert time.monotonic() - started >= _SLOW
    assert [event for event in card.events if isinstance(event, bytes)] == [b"\x00", b"\x01", b"\x02"]


@pytest.mark.parametrize("goodbye", [b"RFOFF", b"106A c2"], ids=["field off", "deselect"])
def test_reader_that_goes_while_a_slow_card_computes_leaves_nothing_for_the_next(rig: Rig, goodbye: bytes) -> None:
    card = EchoCard(lambda apdu: time.sleep(_SLOW) or apdu)  # type: ignore[func-returns-value]
    rig.lay(card)
    with RawReader(rig.port) as reader:
        reader.activate()
        assert reader.ask(b"\x02\x01") == b"\xf2\x01"
        reader.send(goodbye)
        card.wait_for("off")
    assert rig.tap(b"\x02") == b"\x02"
    card.wait_for("off", 2)
    assert card.events == ["on", b"\x01", "off", "on", b"\x02", "off"]


def test_no_card_is_noticed_in_the_time_given(rig: Rig) -> None:
    started = time.monotonic()
    with pytest.raises(CardSilentError, match="no card"):
        rig.link.activate(timeout=0.1)
    assert time.monotonic() - started < 2
    rig.lay(EchoCard())
    assert rig.tap(b"\x01") == b"\x01"


def test_card_that_falls_silent_is_removed_in_a_bounded_time(rig: Rig) -> None:
    with raw_card(rig.port, lambda frame: b"106A 0578007000" if frame[0] == 0xE0 else None):
        rig.link.activate(PATIENCE)
        started = time.monotonic()
        with pytest.raises(CardRemovedError):
            rig.link.transceive(b"\x01")
        assert time.monotonic() - started < 2


def test_card_that_never_answers_rats_ends_in_an_error_in_a_bounded_time(rig: Rig) -> None:
    with raw_card(rig.port, lambda _: None):
        started = time.monotonic()
        with pytest.raises(TransportError):
            rig.link.activate(timeout=0.5)
        assert time.monotonic() - started < 4


@pytest.mark.attack("R3")
def test_card_that_asks_for_time_without_end_is_given_up(rig: Rig) -> None:  # R3
    with raw_card(rig.port, lambda frame: b"106A 0578007000" if frame[0] == 0xE0 else b"106A f23b"):
        rig.link.activate(PATIENCE)
        started = time.monotonic()
        with pytest.raises(CardSilentError, match="more time"):
            rig.link.transceive(b"\x01")
        assert time.monotonic() - started < 5


# --- parties that keep to nothing


@pytest.mark.attack("P3")
def test_hostile_ats_is_a_decode_error(rig: Rig) -> None:  # P3
    answers = iter([b"00", b"02", b"0478", b"05780070", b"0a78007000", b"ff" * 20, b"0578007000ff"])
    with raw_card(rig.port, lambda _: b"106A " + next(answers)):
        for _ in range(7):
            with pytest.raises(DecodeError, match="ATS"):
                rig.link.activate(PATIENCE)


_GARBAGE = (b"106A zz", b"106A", b"", b"\xff\xfe 00", b"106A 0", b"106A 00 00", b"106A " + b"ab" * 700)


@pytest.mark.parametrize("garbage", _GARBAGE, ids=range(len(_GARBAGE)))
def test_garbage_in_place_of_an_answer_is_a_removed_card(rig: Rig, garbage: bytes) -> None:  # P3
    with raw_card(rig.port, lambda frame: b"106A 0578007000" if frame[0] == 0xE0 else garbage):
        rig.link.activate(PATIENCE)
        with pytest.raises(CardRemovedError):
            rig.link.transceive(b"\x01")


@pytest.mark.parametrize("garbage", [b"106A zz", b"\xff\xfe 00", b"106A 04"])
def test_garbage_in_place_of_a_card_is_no_card(rig: Rig, garbage: bytes) -> None:  # P3
    with raw_card(rig.port, lambda _: None, sens_res=garbage), pytest.raises(CardSilentError):
        rig.link.activate(timeout=0.2)


@pytest.mark.attack("P3")
def test_card_lives_through_garbage(rig: Rig) -> None:  # P3
    card = EchoCard()
    rig.lay(card)
    with RawReader(rig.port) as reader:
        reader.activate()
        for garbage in (*_GARBAGE, b"a b c", b"212F 00"):
            reader.send(garbage)
        assert reader.ask(b"\x02\x01") == b"\x02\x01"
        reader.send(b"RFOFF")
        card.wait_for("off")
        for garbage in (*_GARBAGE, b"106A 3000", b"106A f0", b"106A e0"):
            reader.send(garbage)
    assert rig.tap(b"\x01") == b"\x01"
    rig.assert_serving()


def test_two_cards_at_one_port_end_the_second_or_leave_it_waiting(rig: Rig) -> None:
    rig.lay(EchoCard(lambda _: b"first"))
    assert rig.tap(b"\x01") == b"first"
    with contextlib.suppress(LinkUnavailableError):
        rig.lay(EchoCard(lambda _: b"second"))
    assert rig.tap(b"\x01") in (b"first", b"second")


def test_terminal_address_that_does_not_exist_is_a_sentence() -> None:
    with pytest.raises(LinkUnavailableError, match="no NFC device"):
        NfcLink("udp:no.such.host.invalid:54321")


# --- nfcpy's own reader


@contextlib.contextmanager
def _nfcpy_reader(path: str) -> Iterator[Any]:
    """nfcpy's Type4Tag for the card at `path`."""
    with nfc.ContactlessFrontend(path) as frontend:
        for _ in range(int(PATIENCE)):
            target = frontend.sense(nfc.clf.RemoteTarget("106A"))
            tag = nfc.tag.activate(frontend, target) if target else None
            if tag is not None:
                break
        else:
            raise AssertionError("nfcpy finds no tag")
        yield tag


def test_nfcpys_type_4_reader_reads_the_fci_of_our_application(rig: Rig, laboratory: Laboratory) -> None:
    rig.lay(laboratory.phone.card)
    with _nfcpy_reader(rig.path) as tag:
        assert isinstance(tag, nfc.tag.tt4.Type4Tag)
        fci = bytes(tag.send_apdu(0x00, 0xA4, 0x04, 0x00, DEFAULT_NAME, mrl=256))
        assert ApplicationFci.decode(fci).name == DEFAULT_NAME
        with pytest.raises(nfc.tag.tt4.Type4TagCommandError):
            tag.send_apdu(0x00, 0xA4, 0x04, 0x00, bytes.fromhex("A000000003"), mrl=256)


@pytest.mark.parametrize("length", [1, 253, 254, 600])
def test_nfcpys_type_4_reader_exchanges_chained_messages(rig: Rig, length: int) -> None:
    rig.lay(EchoCard())
    with _nfcpy_reader(rig.path) as tag:
        for _ in range(2):
            assert bytes(tag.transceive(bytearray(data(length)))) == data(length)


def test_nfcpys_type_4_reader_waits_for_a_slow_card(rig: Rig) -> None:
    rig.lay(EchoCard(lambda apdu: time.sleep(_SLOW) or apdu))  # type: ignore[func-returns-value]
    with _nfcpy_reader(rig.path) as tag:
        assert bytes(tag.transceive(bytearray(b"\x01"))) == b"\x01"


# --- nfcpy's own tags


def _type_3() -> Any:
    target = nfc.clf.LocalTarget("212F")
    target.sensf_res = bytearray.fromhex("01 02FE010203040506 FFFFFFFFFFFFFFFF 12FC")
    return target


def _type_2() -> Any:
    return nfc.clf.LocalTarget(
        "106A", sens_res=bytearray(b"\x44\x00"), sdd_res=bytearray.fromhex("08AABBCC"), sel_res=bytearray(b"\x00")
    )


@contextlib.contextmanager
def _nfcpy_tag(path: str, target: Callable[[], Any]) -> Iterator[None]:
    """A tag that nfcpy emulates, as its own documentation does it."""
    ended = threading.Event()

    def emulate() -> None:
        with nfc.ContactlessFrontend(path) as frontend:
            while not ended.is_set():
                with contextlib.suppress(nfc.clf.CommunicationError):
                    activated = frontend.listen(target(), 0.5)
                    tag = nfc.tag.emulate(frontend, activated) if activated else None
                    if tag is not None:
                        tag.send_response(tag.process_command(tag.cmd), 0.5)

    thread = threading.Thread(target=emulate, daemon=True)
    thread.start()
    wait_until_bound(int(path.rpartition(":")[2]))
    try:
        yield
    finally:
        ended.set()
        thread.join(PATIENCE)


def test_nfcpys_type_3_tag_is_a_foreign_card(rig: Rig) -> None:
    with _nfcpy_tag(rig.path, _type_3), pytest.raises(ForeignCardError, match="Type 3"):
        rig.link.activate(PATIENCE)
    rig.lay(EchoCard())
    assert rig.tap(b"\x01") == b"\x01"


def test_nfcpys_type_2_target_is_a_foreign_card(rig: Rig) -> None:
    with _nfcpy_tag(rig.path, _type_2), pytest.raises(ForeignCardError, match="Type 2"):
        rig.link.activate(PATIENCE)


@pytest.mark.parametrize("target", [_type_3, _type_2], ids=["type 3", "type 2"])
def test_terminal_in_front_of_nfcpys_tag_finds_no_application(
    rig: Rig, patient_terminal: Terminal, target: Callable[[], Any]
) -> None:
    with _nfcpy_tag(rig.path, target):
        outcome = patient_terminal.charge(_AMOUNT, rig.link)
    assert (outcome.kind, outcome.charged) == (OutcomeKind.NO_APPLICATION, False)


# --- payments


def test_terminal_pays_over_the_link(rig: Rig, laboratory: Laboratory) -> None:
    rig.lay(laboratory.phone.card)
    before = laboratory.balance
    outcomes = [laboratory.terminal.charge(_AMOUNT, rig.url) for _ in range(3)]
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.APPROVED] * 3
    assert laboratory.balance.minor == before.minor - 3 * _AMOUNT.minor


def test_wallet_process_pays_terminal_process_tap_after_tap(home: Path) -> None:
    url = f"nfc:udp:127.0.0.1:{free_udp_port()}"
    with processes.WalletProcess(home, url) as wallet:
        for _ in range(3):
            report, code, _ = processes.charge(home, "12.50", "EUR", url)
            assert (code, report["outcome"], report["receipt_verified"]) == (0, "approved", True)
        wallet.wait_for("tap ended")


def test_demonstration_pays_over_nfcpys_radio(tmp_path: Path) -> None:
    shown = run(ROOT / "scripts" / "demo", "--link", "nfcpy", "--json", scratch=tmp_path)
    assert (shown.code, shown.json["outcome"], shown.json["link"]) == (0, "approved", "nfcpy")
    assert [path.name for path in tmp_path.iterdir()] == []


def test_hostile_ats_never_charges(rig: Rig, patient_terminal: Terminal) -> None:
    with raw_card(rig.port, lambda _: b"106A 0278"):
        outcome = patient_terminal.charge(_AMOUNT, rig.link)
    assert not outcome.approved
    assert outcome.charged is False


def test_card_handlers_and_errors_stay_what_the_link_contract_says(rig: Rig) -> None:
    card: CardHandler = EchoCard()
    rig.lay(card)
    with pytest.raises(CardRemovedError):
        rig.link.transceive(b"\x01")
    assert rig.tap(b"\x02") == b"\x02"
    with pytest.raises(CardRemovedError):
        rig.link.transceive(b"\x01")
    rig.link.deactivate()
    rig.link.deactivate()
