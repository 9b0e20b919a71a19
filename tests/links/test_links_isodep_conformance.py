# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""ISO/IEC 14443-4:2018 rule by rule, frames in and frames out, for both halves; no link, no clock.

Rules are those of §7.5.4 (A to E about block numbers, 1 to 13 about what to send); limits are the payment profile's, EMV
Contactless Book D §10.3. Frames are without CRC_A; None is a frame that came damaged, or none at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.errors import CardRemovedError, CardSilentError, DecodeError, TransportError
from protocol.transport.base import card_historical
from protocol.transport.isodep import (
    FRAME_SIZES,
    MAX_APDU,
    MAX_WTXM,
    Ats,
    Block,
    BlockKind,
    CardHalf,
    ReaderHalf,
    Send,
    frame_waiting_time,
    rats,
    start_up_guard_time,
)
from tests.links.frames import ATS, Harm, Tap, active_card, data, echo, only, run, script, swapped

_ANSWER = bytes.fromhex("AA9000")
_DESELECT = "c2"

# --- the blocks, §7.1


@pytest.mark.parametrize(
    ("block", "encoded"),
    [
        (Block(BlockKind.I, 0, information=b"\xaa"), "02 aa"),
        (Block(BlockKind.I, 1, information=b""), "03"),
        (Block(BlockKind.I, 0, more=True, information=b"\xaa\xbb"), "12 aa bb"),
        (Block(BlockKind.I, 1, more=True), "13"),
        (Block(BlockKind.R, 0), "a2"),
        (Block(BlockKind.R, 1), "a3"),
        (Block(BlockKind.R, 0, nak=True), "b2"),
        (Block(BlockKind.R, 1, nak=True), "b3"),
        (Block(BlockKind.S), "c2"),
        (Block(BlockKind.S, wtx=True, information=b"\x01"), "f2 01"),
        (Block(BlockKind.S, wtx=True, information=b"\x3b"), "f2 3b"),
    ],
)
def test_block_has_the_standards_bytes_both_ways(block: Block, encoded: str) -> None:
    assert block.encode().hex(" ") == encoded
    assert Block.decode(bytes.fromhex(encoded)) == block


_PCBS = {0x02, 0x03, 0x12, 0x13, 0xA2, 0xA3, 0xB2, 0xB3, 0xC2}


@pytest.mark.attack("P3")
@pytest.mark.parametrize("high", range(16))
def test_block_with_a_reserved_pcb_or_cid_or_nad_is_refused(high: int) -> None:  # P3
    for pcb in {high << 4 | low for low in range(16)} - _PCBS:
        for information in (b"", b"\x01", b"\x01\x02"):
            if (pcb, len(information)) != (0xF2, 1):
                with pytest.raises(DecodeError):
                    Block.decode(bytes([pcb]) + information)


@pytest.mark.parametrize("frame", ["", "a2 00", "b3 00", "c2 00", "f2", "f2 01 01"])
def test_block_of_a_wrong_length_is_refused(frame: str) -> None:  # P3
    with pytest.raises(DecodeError):
        Block.decode(bytes.fromhex(frame))


# --- RATS and ATS, §5


def test_rats_states_frames_of_256_bytes_and_no_cid() -> None:
    assert rats() == bytes.fromhex("E080")


@pytest.mark.parametrize("frame", FRAME_SIZES)
@pytest.mark.parametrize("historical", [b"", card_historical(extended=True), bytes(range(15))])
def test_ats_always_has_all_interface_bytes_and_the_historical_ones(frame: int, historical: bytes) -> None:
    encoded = Ats(frame=frame, historical=historical).encode()
    assert encoded[0] == len(encoded)
    assert encoded[1] == 0x70 | FRAME_SIZES.index(frame)
    assert encoded[2:5] == bytes.fromhex("007000")  # 106 kbit/s only; FWI 7, SFGI 0; neither NAD nor CID
    assert encoded[5:] == historical


def test_ats_of_ours_is_within_the_payment_profile() -> None:
    assert ATS.encode() == bytes.fromhex("0A 78 00 70 00 80 73 C0 01 C0")
    assert ATS.frame == 256
    assert ATS.fwi <= 7


@pytest.mark.parametrize("fwi", range(15))
@pytest.mark.parametrize("sfgi", [0, 1, 14])
def test_ats_comes_back_as_it_was_made(fwi: int, sfgi: int) -> None:
    for options in ((False, False), (True, False), (False, True), (True, True)):
        ats = Ats(64, 0x80, fwi, sfgi, *options, historical=b"\x80\x31")
        assert Ats.decode(ats.encode()) == ats


@pytest.mark.parametrize("length", range(10))
def test_ats_cut_short_is_a_decode_error(length: int) -> None:
    with pytest.raises(DecodeError, match="ATS"):
        Ats.decode(ATS.encode()[:length])


def test_ats_with_a_wrong_length_byte_is_a_decode_error() -> None:
    encoded = ATS.encode()
    for start in set(range(256)) - {encoded[0]}:
        with pytest.raises(DecodeError, match="TL"):
            Ats.decode(bytes([start]) + encoded[1:])


@pytest.mark.parametrize("extra", range(5))
def test_ats_that_announces_more_than_it_has_is_a_decode_error(extra: int) -> None:
    for format_byte in range(256):
        encoded = bytes([2 + extra, format_byte]) + b"\x33" * extra
        announced = (format_byte >> 4 & 0x07).bit_count()
        if announced > extra:
            with pytest.raises(DecodeError, match="not there"):
                Ats.decode(encoded)
        else:
            assert Ats.decode(encoded).historical == b"\x33" * (extra - announced)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        pytest.param("01", Ats(32, 0, 4, 0, True), id="TL alone"),
        pytest.param("02 05", Ats(64, 0, 4, 0, True), id="T0 alone"),
        pytest.param("03 15 80", Ats(64, 0x80, 4, 0, True), id="TA only"),
        pytest.param("03 25 71", Ats(64, 0, 7, 1, True), id="TB only"),
        pytest.param("03 45 01", Ats(64, 0, 4, 0, False, True), id="TC only"),
        pytest.param("03 05 AA", Ats(64, 0, 4, 0, True, historical=b"\xaa"), id="historical bytes only"),
        pytest.param("05 78 00 F0 00", Ats(256, 0, 4, 0), id="FWI 15 is the default"),
        pytest.param("05 78 00 7F 00", Ats(256, 0, 7, 0), id="SFGI 15 is the default"),
        *(pytest.param(f"05 7{fsci:X} 00 70 00", Ats(256), id=f"FSCI {fsci:X} is 256 bytes") for fsci in range(8, 16)),
    ],
)
def test_ats_without_a_field_has_the_standards_default(encoded: str, expected: Ats) -> None:
    assert Ats.decode(bytes.fromhex(encoded)) == expected


def test_waiting_times_are_the_standards() -> None:
    assert frame_waiting_time(0) == pytest.approx(302e-6, rel=0.01)
    assert frame_waiting_time(7) == pytest.approx(38.7e-3, rel=0.01)
    assert frame_waiting_time(14) == pytest.approx(4.949, rel=0.01)
    assert start_up_guard_time(0) == 0
    assert start_up_guard_time(1) == pytest.approx(604e-6, rel=0.01)


@pytest.mark.parametrize("frame", ["", "e0", "e080 00", "e08f", "26", "02 00", "b2", "c2", "f2 01", "50 00"])
def test_card_says_nothing_before_rats(frame: str) -> None:
    half = CardHalf(ATS)
    assert swapped(half, frame).send is None
    assert not half.is_active


@pytest.mark.parametrize("cid", range(15))
def test_card_answers_rats_whatever_cid_it_assigns(cid: int) -> None:
    assert CardHalf(ATS).receive(bytes([0xE0, 0x80 | cid])).send == ATS.encode()


def test_card_answers_rats_again_until_the_first_block_and_never_after() -> None:
    half = active_card()
    assert half.receive(rats(2)).send == ATS.encode()  # the payment profile's reader repeats RATS when the ATS was lost
    assert swapped(half, "02 01").deliver == b"\x01"
    assert half.receive(rats()).send is None
    assert half.answer(bytes(100)).send == b"\x12" + bytes(29)
    assert half.receive(rats()).send is None


@pytest.mark.parametrize("fsdi", range(16))
def test_card_keeps_to_the_readers_frame_size(fsdi: int) -> None:
    half = active_card(fsdi=fsdi)
    assert swapped(half, "02 00").deliver == b"\x00"
    first = half.answer(bytes(600)).send
    assert first is not None
    assert len(first) + 2 == FRAME_SIZES[min(fsdi, 8)]


@pytest.mark.parametrize("fsci", range(9))
def test_reader_keeps_to_the_cards_frame_size(fsci: int) -> None:
    tap = Tap(ats=Ats(frame=FRAME_SIZES[fsci]))
    assert tap.exchange(data(600)) == echo(data(600))
    assert max(map(len, tap.frames[: 600 // FRAME_SIZES[fsci]])) + 2 == FRAME_SIZES[fsci]


# --- the card's half, rule by rule: (what it is in, frame in, frame out); ! is an answer of the application,
# ? is a request of it for more time, and the last column is what the application was given in all

_CARD_RULES = [
    pytest.param([("02 00a4", None), ("!", "02 aa9000")], ["00a4"], id="C, D, 10: first block is number 0"),
    pytest.param([("03 00a4", None)], [], id="C: block with the card's own number is no new command"),
    pytest.param([("02 01", None), ("!", "02 aa9000"), ("03 02", None), ("!", "03 aa9000"), ("02 03", None)],
                 ["01", "02", "03"], id="D: every new block toggles"),
    pytest.param([("12 0102", "a2"), ("13 03", "a3"), ("02 04", None), ("!", "02 aa9000")],
                 ["01020304"], id="2: chaining is acknowledged, delivered whole"),
    pytest.param([("12 01", "a2"), ("12 01", "a2"), ("03 02", None)], ["0102"], id="2: a chained block twice is one"),
    pytest.param([("02 01", None), ("?", "f2 01"), ("f2 01", None), ("!", "02 aa9000")], ["01"],
                 id="9, 3: time is asked for in place of the answer"),
    pytest.param([("02 01", None), ("?", "f2 01"), ("b2", "f2 01"), ("f2 01", None), ("!", "02 aa9000")], ["01"],
                 id="9, 11: S(WTX) that was not understood is said again"),
    pytest.param([("02 01", None), ("?", "f2 01"), ("f2 01", None), ("?", "f2 01"), ("f2 01", None),
                  ("!", "02 aa9000")], ["01"], id="9: time is asked for again"),
    pytest.param([("02 01", None), ("!", "02 aa9000"), ("b2", "02 aa9000"), ("b2", "02 aa9000")], ["01"],
                 id="11: R(NAK) of the card's number repeats the last block"),
    pytest.param([("02 01", None), ("!", "02 aa9000"), ("a2", "02 aa9000")], ["01"],
                 id="11: R(ACK) of the card's number repeats the last block"),
    pytest.param([("b2", "a3"), ("02 01", None), ("!", "02 aa9000")], ["01"],
                 id="12: R(NAK) of another number is acknowledged: the command never came"),
    pytest.param([("02 01", None), ("!", "02 aa9000"), ("b3", "a2"), ("03 02", None), ("!", "03 aa9000")],
                 ["01", "02"], id="12: the same after an exchange"),
    pytest.param([("12 01", "a2"), ("b3", "a2"), ("03 02", None)], ["0102"], id="12: the same within a chain"),
    pytest.param([("02 01", None), ("!", "02 aa9000"), ("02 01", "02 aa9000")], ["01"],
                 id="11: a command that comes twice is answered twice, computed once"),
    pytest.param([("02 01", None), ("02 01", None), ("b2", None), ("!", "02 aa9000")], ["01"],
                 id="a card that computes says nothing"),
    pytest.param([("a3", None), ("b3", None), ("a2", None), ("02 01", None)], ["01"],
                 id="R-blocks before any block: the ATS is none and is not repeated"),
    pytest.param([("02 01", None), (_DESELECT, _DESELECT), ("02 02", None), ("03 02", None)], ["01"],
                 id="3: S(DESELECT) is answered and ends it"),
    pytest.param([("f2 01", None), ("02 01", None)], ["01"], id="S(WTX) that was not asked for is nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "given"), _CARD_RULES)
def test_card_rule(rows: list[tuple[str, str | None]], given: list[str]) -> None:
    half = active_card()
    delivered: list[str] = []
    for said, expected in rows:
        applied = {"!": lambda: half.answer(_ANSWER), "?": half.ask_time}
        reaction = applied[said]() if said in applied else swapped(half, said)
        assert reaction.send == (bytes.fromhex(expected) if expected else None)
        if reaction.deliver is not None:
            delivered.append(reaction.deliver.hex())
    assert delivered == given


def test_card_chains_its_answer_by_rules_e_and_13() -> None:
    half = active_card(fsdi=0)  # 13 bytes in a block
    assert swapped(half, "02 01").deliver == b"\x01"
    assert half.answer(data(30)).send == b"\x12" + data(30)[:13]
    assert swapped(half, "b3").send == b"\xa2"  # rule 12
    assert swapped(half, "b2").send == b"\x12" + data(30)[:13]  # rule 11
    assert swapped(half, "a3").send == b"\x13" + data(30)[13:26]
    assert swapped(half, "a3").send == b"\x13" + data(30)[13:26]  # rule 11: our block was lost
    assert swapped(half, "a2").send == b"\x02" + data(30)[26:]
    assert swapped(half, "a3").send is None  # rule 13 is for chaining only
    assert swapped(half, "03 02").deliver == b"\x02"


def test_card_forgets_the_rest_of_an_answer_when_a_new_command_comes() -> None:
    half = active_card(fsdi=0)
    swapped(half, "02 01")
    half.answer(data(30))
    assert swapped(half, "03 02").deliver == b"\x02"
    assert half.answer(b"\x90\x00").send == bytes.fromhex("03 9000")


@pytest.mark.attack("P3")
@pytest.mark.parametrize("frame", ["06 00", "0a 00 00", "0e 00 00 00", "a6", "aa 00", "ba 00", "ca 00", "fa 00 01", "42",
                                   "d0 11 00", "ff", "26", "00", "01", "a0", "b0", "c0", "f0 01", "32 00", None,
                                   ""])  # fmt: skip
def test_card_says_nothing_to_what_is_no_block_for_it(frame: str | None) -> None:  # P3
    half = active_card()
    reaction = half.receive(None if frame is None else bytes.fromhex(frame))
    assert (reaction.send, reaction.deliver, reaction.deselected) == (None, None, False)
    assert swapped(half, "02 01").deliver == b"\x01"


@pytest.mark.attack("P3")
@pytest.mark.parametrize("length", [255, 256, 257, 4096, 1 << 20])
def test_card_says_nothing_to_an_oversized_frame(length: int) -> None:  # P3
    half = active_card()
    assert half.receive(b"\x02" + bytes(length - 1)).deliver is None
    assert half.receive(b"\x02" + bytes(253)).deliver == bytes(253)


@pytest.mark.attack("P3")
def test_card_answers_a_storm_of_naks_with_the_same_block() -> None:  # P3
    half = active_card()
    swapped(half, "02 01")
    half.answer(_ANSWER)
    for _ in range(1000):
        assert swapped(half, "b2") == replace(swapped(half, "b2"), send=b"\x02" + _ANSWER)
        assert swapped(half, "b3").send == b"\xa2"
    assert swapped(half, "03 02").deliver == b"\x02"


@pytest.mark.attack("P2")
def test_card_does_not_collect_a_chain_without_end() -> None:  # P2
    half = active_card()
    answered = 0
    for number in range(2000):
        reaction = half.receive(bytes([0x12 | number & 1]) + bytes(253))
        assert reaction.deliver is None
        answered += reaction.send is not None and number < MAX_APDU // 253 + 2
    assert answered <= MAX_APDU // 253 + 1


@pytest.mark.attack("P2")
def test_card_does_not_take_the_tail_of_a_chain_without_end_for_a_command() -> None:  # P2
    half = active_card()
    number = 0
    while half.receive(bytes([0x12 | number & 1]) + bytes(253)).send is not None:
        number += 1
        assert number < MAX_APDU
    for block in (0x02 | number & 1, 0x02 | ~number & 1):
        delivered = half.receive(bytes([block]) + b"\x00\xa4").deliver
        assert delivered is None or len(delivered) > MAX_APDU - 253


@pytest.mark.parametrize("multiplier", [1, 2, 58, 59])
def test_card_asks_for_1_to_59_waiting_times(multiplier: int) -> None:
    half = active_card()
    swapped(half, "02 01")
    assert half.ask_time(multiplier).send == bytes([0xF2, multiplier])


@pytest.mark.parametrize("multiplier", [-1, 0, 60, 63, 64, 255])
def test_card_never_asks_for_a_waiting_time_that_does_not_exist(multiplier: int) -> None:
    half = active_card()
    swapped(half, "02 01")
    with pytest.raises(ValueError, match="59"):
        half.ask_time(multiplier)


@pytest.mark.parametrize(("fsdi", "room"), [(0, 13), (8, 253), (12, 253)])
def test_card_of_a_radio_that_answers_rats_itself_is_active_at_once(fsdi: int, room: int) -> None:
    half = CardHalf(ATS)
    half.activated_by(rats(fsdi))
    assert swapped(half, "02 01").deliver == b"\x01"
    assert half.answer(bytes(300)).send == b"\x12" + bytes(room)


def test_card_needs_rats_again_after_the_field_was_off() -> None:
    half = active_card()
    half.reset()
    assert swapped(half, "02 01").deliver is None
    assert half.receive(rats()).send == ATS.encode()
    assert swapped(half, "02 02").deliver == b"\x02"


# --- the reader's half, rule by rule: (frame it must send, frame that comes back)

_READER_RULES = [
    pytest.param([("02 00 a4", "02 aa9000")], id="A, 1: the first block is number 0"),
    pytest.param([("02 00 a4", None), ("b2", "02 aa9000")], id="4: silence or damage is R(NAK)"),
    pytest.param([("02 00 a4", None), ("b2", None), ("b2", "02 aa9000")], id="4: twice"),
    pytest.param([("02 00 a4", "03 aa9000"), ("b2", "02 aa9000")], id="4: an answer of another number"),
    pytest.param([("02 00 a4", "42"), ("b2", "02 aa9000")], id="4: a reserved PCB"),
    pytest.param([("02 00 a4", "0a 00 aa9000"), ("b2", "02 aa9000")], id="4: a block with CID"),
    pytest.param([("02 00 a4", "06 00 aa9000"), ("b2", "02 aa9000")], id="4: a block with NAD"),
    pytest.param([("02 00 a4", "a3"), ("02 00 a4", "02 aa9000")], id="6: R(ACK) of another number: send it again"),
    pytest.param([("02 00 a4", None), ("b2", "a3"), ("02 00 a4", "02 aa9000")], id="4, 6: the command was lost"),
    pytest.param([("02 00 a4", "f2 01"), ("f2 01", "02 aa9000")], id="3: S(WTX) is answered"),
    pytest.param([("02 00 a4", "f2 3b"), ("f2 3b", "02 aa9000")], id="3: WTXM 59"),
    pytest.param([("02 00 a4", "f2 c1"), ("f2 01", "02 aa9000")], id="3: power level is not sent back"),
    pytest.param([("02 00 a4", "f2 01"), ("f2 01", "f2 02"), ("f2 02", "02 aa9000")], id="3: again"),
    pytest.param([("02 00 a4", "f2 01"), ("f2 01", None), ("b2", "f2 01"), ("f2 01", "02 aa9000")],
                 id="3, 4: our grant was lost"),
    pytest.param([("02 00 a4", "12 aa"), ("a3", "03 9000")], id="5, B: a chained answer is acknowledged"),
    pytest.param([("02 00 a4", "12 aa"), ("a3", None), ("a3", "03 9000")],
                 id="5: within a chained answer silence is R(ACK)"),
    pytest.param([("02 00 a4", "12 aa"), ("a3", "12 aa"), ("a3", "03 9000")], id="5: the same piece twice is one"),
    pytest.param([("02 00 a4", "12 aa"), ("a3", "f2 01"), ("f2 01", "03 9000")], id="3: S(WTX) within a chained answer"),
]  # fmt: skip


@pytest.mark.parametrize("rows", _READER_RULES)
def test_reader_rule(rows: list[tuple[str, str | None]]) -> None:
    assert script(ReaderHalf(ATS).exchange(bytes.fromhex("00A4")), rows) == _ANSWER


def test_reader_toggles_after_each_answer() -> None:  # rule B
    half = ReaderHalf(ATS)
    for number in (0, 1, 0, 1):
        assert script(half.exchange(b"\x01"), [(f"0{2 | number} 01", f"0{2 | number} aa9000")]) == _ANSWER


_LONG = [f"{pcb:02x} " + data(29)[start : start + 13].hex(" ") for pcb, start in ((0x12, 0), (0x13, 13), (0x02, 26))]

_CHAINING_RULES = [
    pytest.param([(_LONG[0], "a2"), (_LONG[1], "a3"), (_LONG[2], "02 aa9000")], id="7: each R(ACK) is the next piece"),
    pytest.param([(_LONG[0], "a3"), (_LONG[0], "a2"), (_LONG[1], "a3"), (_LONG[2], "02 aa9000")],
                 id="6: a piece was lost"),
    pytest.param([(_LONG[0], "a2"), (_LONG[1], "a2"), (_LONG[1], "a3"), (_LONG[2], "02 aa9000")],
                 id="6: the second piece was lost"),
    pytest.param([(_LONG[0], "a2"), (_LONG[1], None), ("b3", "a3"), (_LONG[2], "02 aa9000")], id="4: R(ACK) was lost"),
    pytest.param([(_LONG[0], "a2"), (_LONG[1], "a3"), (_LONG[2], None), ("b2", "a3"), (_LONG[2], "02 aa9000")],
                 id="4, 6: the last piece was lost"),
]  # fmt: skip


@pytest.mark.parametrize("rows", _CHAINING_RULES)
def test_reader_rule_of_chaining(rows: list[tuple[str, str | None]]) -> None:
    assert script(ReaderHalf(Ats(frame=16)).exchange(data(29)), rows) == _ANSWER


_REMOVED = [
    pytest.param([("02 01", None), ("b2", None), ("b2", None)], id="silence through two repetitions"),
    pytest.param([("02 01", "42"), ("b2", ""), ("b2", "03 00")], id="nothing but nonsense"),
    pytest.param([("02 01", "12 aa"), ("a3", None), ("a3", None), ("a3", None)], id="silence within an answer"),
    pytest.param([("02 01", "f2 01"), ("f2 01", None), ("b2", None), ("b2", None)], id="silence after a grant"),
]


@pytest.mark.parametrize("rows", _REMOVED)
def test_reader_gives_a_silent_card_two_repetitions(rows: list[tuple[str, str | None]]) -> None:
    with pytest.raises(CardRemovedError):
        script(ReaderHalf(ATS).exchange(b"\x01"), rows)


_BROKEN = [
    pytest.param([("02 01", "a3"), ("02 01", "a3"), ("02 01", "a3")], id="asks for the same block for ever"),
    pytest.param([("02 01", "a2")], id="acknowledges what is not chained"),
    pytest.param([("02 01", "b2")], id="R(NAK)"),
    pytest.param([("02 01", "b3")], id="R(NAK) of another number"),
    pytest.param([("02 01", _DESELECT)], id="S(DESELECT) from a card"),
    pytest.param([("02 01", "12")], id="a chained block with nothing in it"),
    pytest.param([("02 01", "12 aa"), ("a3", "a3")], id="R(ACK) within its answer"),
    pytest.param([("02 01", "12 aa"), ("a3", "b3")], id="R(NAK) within its answer"),
    *(pytest.param([("02 01", f"f2 {wtxm:02x}")], id=f"WTXM {wtxm & 0x3F}, byte {wtxm:02x}")
      for wtxm in (0, 0x40, 60, 61, 62, 63, 0xFF)),
]  # fmt: skip


@pytest.mark.attack("P3")
@pytest.mark.parametrize("rows", _BROKEN)
def test_reader_ends_with_a_card_that_breaks_the_protocol(rows: list[tuple[str, str | None]]) -> None:  # P3
    with pytest.raises(TransportError) as ended:
        script(ReaderHalf(ATS).exchange(b"\x01"), rows)
    assert not isinstance(ended.value, CardSilentError)


def test_reader_ends_with_a_card_that_answers_half_a_command() -> None:
    with pytest.raises(TransportError, match="whole command"):
        script(ReaderHalf(Ats(frame=16)).exchange(data(29)), [(_LONG[0], "02 9000")])


@pytest.mark.parametrize("multiplier", [1, 7, MAX_WTXM])
def test_reader_waits_as_long_as_it_granted(multiplier: int) -> None:
    dialogue = ReaderHalf(ATS).exchange(b"\x01")
    assert next(dialogue) == Send(b"\x02\x01", 1)
    assert dialogue.send(bytes([0xF2, multiplier])) == Send(bytes([0xF2, multiplier]), multiplier)
    assert dialogue.send(None) == Send(b"\xb2", 1)


@pytest.mark.attack("R3")
@pytest.mark.parametrize("multiplier", [1, 10, MAX_WTXM])
def test_reader_ends_an_endless_request_for_time_within_its_budget(multiplier: int) -> None:  # R3
    waits: list[int] = []

    def card(wanted: Send) -> bytes:
        waits.append(wanted.wait)
        return bytes([0xF2, multiplier])

    with pytest.raises(CardSilentError, match="more time"):
        run(ReaderHalf(ATS, wait_budget=100).exchange(b"\x01"), card)
    assert sum(waits) <= 100 + 1


@pytest.mark.attack("R3")
def test_reader_has_one_budget_for_command_and_answer() -> None:  # R3
    rows: list[tuple[str, str | None]] = [("02 01", "f2 03"), ("f2 03", "12 aa"), ("a3", "f2 03")]
    with pytest.raises(CardSilentError):
        script(ReaderHalf(ATS, wait_budget=5).exchange(b"\x01"), rows)


def test_reader_has_a_new_budget_for_each_exchange() -> None:
    half = ReaderHalf(ATS, wait_budget=5)
    assert script(half.exchange(b"\x01"), [("02 01", "f2 05"), ("f2 05", "02 aa9000")]) == _ANSWER
    assert script(half.exchange(b"\x01"), [("03 01", "f2 05"), ("f2 05", "03 aa9000")]) == _ANSWER


@pytest.mark.attack("P2")
@pytest.mark.parametrize("piece", [1, 253])
def test_reader_ends_an_answer_without_end(piece: int) -> None:  # P2
    taken: list[Send] = []

    def card(wanted: Send) -> bytes:
        taken.append(wanted)
        return bytes([0x12 | len(taken) + 1 & 1]) + bytes(piece)

    with pytest.raises(TransportError, match="chains more"):
        run(ReaderHalf(ATS).exchange(b"\x01"), card, MAX_APDU + 10)
    assert len(taken) <= MAX_APDU // piece + 2


@pytest.mark.attack("P3")
@pytest.mark.parametrize("length", [255, 256, 300, 4096])
@pytest.mark.parametrize("pcb", [0x02, 0x12])
def test_reader_takes_no_oversized_frame(length: int, pcb: int) -> None:  # P3
    with pytest.raises(TransportError):
        run(ReaderHalf(ATS).exchange(b"\x01"), lambda _: bytes([pcb]) + bytes(length - 1))


def test_reader_takes_the_longest_frame() -> None:
    assert run(ReaderHalf(ATS).exchange(b"\x01"), lambda _: b"\x02" + bytes(253)) == bytes(253)


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([("c2", "c2")], b"\xc2"),
        ([("c2", None), ("c2", "c2")], b"\xc2"),
        ([("c2", "02 9000"), ("c2", "c2")], b"\xc2"),
        ([("c2", None), ("c2", None)], b""),
    ],
)
def test_reader_deselects_with_one_repetition(rows: list[tuple[str, str | None]], answer: bytes) -> None:  # rule 8
    assert script(ReaderHalf(ATS).deselect(), rows) == answer


# --- both halves: lengths


@pytest.mark.parametrize("length", [0, 1, 252, 253, 254, 255, 256, 506, 507, 65528])
def test_command_of_any_length_arrives_whole(length: int) -> None:
    tap = Tap(application=lambda _: b"\x90\x00")
    assert tap.exchange(data(length)) == b"\x90\x00"
    assert tap.delivered == [data(length)]
    assert max(map(len, tap.frames)) <= 254


@pytest.mark.parametrize("length", [0, 1, 252, 253, 254, 255, 256, 506, 507, 65528])
def test_answer_of_any_length_arrives_whole(length: int) -> None:
    tap = Tap(application=lambda _: data(length))
    assert tap.exchange(b"\x01") == data(length)
    assert max(map(len, tap.frames)) <= 254


@pytest.mark.parametrize(("length", "blocks"), [(0, 1), (253, 1), (254, 2), (506, 2), (507, 3), (65528, 260)])
def test_message_takes_no_more_blocks_than_it_must(length: int, blocks: int) -> None:
    tap = Tap(application=lambda _: b"\x90\x00")
    tap.exchange(data(length))
    assert len(tap.frames) == 2 * blocks


# --- both halves: recovery

_DIALOGUE = (data(4), data(600), data(5), data(254))  # short, three pieces each way, short, two pieces
_SMALL_DIALOGUE = (b"\x01", b"\x02")


def _frames_of(commands: tuple[bytes, ...], extensions: int) -> int:
    tap = Tap(extensions=extensions)
    for command in commands:
        tap.exchange(command)
    return len(tap.frames)


def _positions(extensions: int) -> range:
    return range(_frames_of(_DIALOGUE, extensions))


@pytest.mark.attack("P3")
@pytest.mark.parametrize("extensions", [0, 2])
@pytest.mark.parametrize("harm", [Harm.LOST, Harm.DAMAGED, Harm.DOUBLED])
def test_any_one_frame_may_be_disturbed(harm: Harm, extensions: int) -> None:
    for position in _positions(extensions):
        tap = Tap(only(position, harm), extensions=extensions)
        assert [tap.exchange(command) for command in _DIALOGUE] == [*map(echo, _DIALOGUE)], f"frame {position}"
        assert tap.delivered == [*_DIALOGUE], f"frame {position}"


@pytest.mark.parametrize("extensions", [0, 2])
@pytest.mark.parametrize("harm", [Harm.LOST, Harm.DAMAGED])
def test_any_two_frames_in_a_row_may_be_lost(harm: Harm, extensions: int) -> None:
    for position in _positions(extensions):
        tap = Tap(only(position, harm, 2), extensions=extensions)
        assert [tap.exchange(command) for command in _DIALOGUE] == [*map(echo, _DIALOGUE)], f"frame {position}"
        assert tap.delivered == [*_DIALOGUE], f"frame {position}"


@pytest.mark.parametrize("harm", [Harm.LOST, Harm.DAMAGED])
def test_silence_through_two_repetitions_removes_the_card(harm: Harm) -> None:
    for position in _positions(0):
        tap = Tap(only(position, harm, 1 << 20))
        answered: list[bytes] = []
        with pytest.raises(CardRemovedError):
            answered.extend(tap.exchange(command) for command in _DIALOGUE)
        assert answered == [*map(echo, _DIALOGUE)][: len(answered)], f"frame {position}"
        assert tap.delivered == [*_DIALOGUE][: len(tap.delivered)], f"frame {position}"
        assert len(tap.delivered) - len(answered) in (0, 1)
        assert len(tap.frames) <= position + 2 * 3


@pytest.mark.attack("P3")
@pytest.mark.parametrize("harm", [Harm.LOST, Harm.DAMAGED, Harm.DOUBLED])
@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_whatever_is_lost_no_answer_is_wrong_and_no_command_comes_twice(harm: Harm, count: int) -> None:
    for position in _positions(2):
        tap = Tap(only(position, harm, count), extensions=2)
        answered: list[bytes] = []
        try:
            answered += [tap.exchange(command) for command in _DIALOGUE]
        except TransportError:
            assert len(tap.delivered) <= len(_DIALOGUE)
        assert answered == [*map(echo, _DIALOGUE)][: len(answered)], f"frame {position}"
        assert tap.delivered == [*_DIALOGUE][: len(tap.delivered)], f"frame {position}"


@pytest.mark.parametrize(
    "pair", [(Harm.LOST, Harm.DOUBLED), (Harm.DOUBLED, Harm.LOST), (Harm.DOUBLED, Harm.DAMAGED), (Harm.LOST, Harm.LOST)]
)
def test_any_two_disturbances_never_make_a_wrong_answer(pair: tuple[Harm, Harm]) -> None:
    total = _frames_of(_DIALOGUE[:2], 1)
    for first in range(total):
        for second in range(first + 1, min(first + 12, total + 6)):
            tap = Tap(_two(first, second, pair), extensions=1)
            try:
                answered = [tap.exchange(command) for command in _DIALOGUE[:2]]
            except TransportError:
                answered = []
            assert answered in ([], [*map(echo, _DIALOGUE[:2])]), f"frames {first} and {second}"
            assert tap.delivered == [*_DIALOGUE[: len(tap.delivered)]], f"frames {first} and {second}"


def _two(first: int, second: int, pair: tuple[Harm, Harm]) -> Callable[[int], Harm]:
    return lambda number: {first: pair[0], second: pair[1]}.get(number, Harm.NONE)


def test_two_like_commands_in_a_row_are_two_commands() -> None:
    for position in range(_frames_of(_SMALL_DIALOGUE, 0)):
        for harm in (Harm.LOST, Harm.DAMAGED, Harm.DOUBLED):
            tap = Tap(only(position, harm))
            assert [tap.exchange(b"\x01") for _ in range(2)] == [echo(b"\x01")] * 2
            assert tap.delivered == [b"\x01"] * 2
