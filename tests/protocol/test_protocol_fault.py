# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Faults strike where they are told to, once, and do to a frame what they say."""

from __future__ import annotations

import time

import pytest

from protocol.errors import CardRemovedError, CardSilentError, TransportError, UsageError
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink, card_historical, contactless_atr
from protocol.transport.fault import Fault, FaultKind, FaultyLink, Where, inject
from protocol.transport.field import FieldLink
from tests.echo_card import EchoCard

COMMAND = bytes.fromhex("80580000") + b"\x08" + bytes(range(8)) + b"\x00"


def _with_status(apdu: bytes) -> bytes:
    return apdu + b"\x90\x00"


class EchoLink(CardLink):
    """A link of APDUs to an EchoCard."""

    def __init__(self) -> None:
        self.card = EchoCard(_with_status)

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        self.card.activate()
        return Activation(contactless_atr(card_historical(extended=True)))

    def transceive(self, apdu: bytes) -> bytes:
        return self.card.process(apdu)

    def deactivate(self) -> None:
        self.card.deactivate()

    def close(self) -> None:
        self.deactivate()


def apdu(number: int) -> bytes:
    return COMMAND[:4] + bytes([number])


def faulty(text: str) -> tuple[FaultyLink, EchoCard]:
    within = EchoLink()
    link = FaultyLink(within, Fault.parse(text))
    link.activate()
    return link, within.card


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("tear@frame:7", Fault(FaultKind.TEAR, Where.FRAME, 7)),
        ("corrupt@byte:120", Fault(FaultKind.CORRUPT, Where.BYTE, 120)),
        ("delay@time:20:50", Fault(FaultKind.DELAY, Where.TIME, 20, 50)),
        ("drop@frame:1", Fault(FaultKind.DROP, Where.FRAME, 1)),
        ("duplicate@frame:2", Fault(FaultKind.DUPLICATE, Where.FRAME, 2)),
    ],
)
def test_a_fault_is_read_and_written_alike(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault
    assert Fault.parse(str(fault)) == fault


@pytest.mark.parametrize(
    "text",
    ["", "tear", "tear@frame", "tear@frame:", "tear@frame:x", "tear@frame:0", "tear@frame:1.5", "tear@frame:-1", "tear@page:1",
     "melt@frame:1", "tear@frame:1:5", "delay@frame:1:x", "delay@frame:1:-5", "tear@frame:nan", "tear@byte:1e99"],
)  # fmt: skip
def test_what_is_no_fault_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"frame:7|counted 1, 2, 3|milliseconds of its own"):
        Fault.parse(text)


@pytest.mark.parametrize(("frame", "heard"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_a_tear_takes_the_card_away_before_or_after_it_has_heard(frame: int, heard: int) -> None:
    link, card = faulty(f"tear@frame:{frame}")
    for number in range((frame - 1) // 2):
        link.transceive(apdu(number))
    with pytest.raises(CardRemovedError):
        link.transceive(apdu((frame - 1) // 2))
    assert card.apdus == [apdu(number) for number in range(heard)]
    assert card.events[-1] == "off"


def test_a_fault_strikes_once() -> None:
    link, _ = faulty("tear@frame:1")
    with pytest.raises(CardRemovedError):
        link.transceive(apdu(0))
    assert link.has_struck
    link.activate()
    assert link.transceive(apdu(1)) == apdu(1) + b"\x90\x00"


def test_a_dropped_frame_is_silence() -> None:
    link, card = faulty("drop@frame:2")
    with pytest.raises(CardSilentError):
        link.transceive(apdu(0))
    assert card.apdus == [apdu(0)]


def test_a_delayed_frame_arrives_as_it_was() -> None:
    link, _ = faulty("delay@frame:1:30")
    started = time.monotonic()
    assert link.transceive(apdu(0)) == apdu(0) + b"\x90\x00"
    assert time.monotonic() - started >= 0.03


def test_a_doubled_command_is_heard_twice() -> None:
    link, card = faulty("duplicate@frame:1")
    link.transceive(apdu(0))
    assert card.apdus == [apdu(0), apdu(0)]


def test_a_doubled_answer_comes_in_place_of_the_next_one() -> None:
    link, _ = faulty("duplicate@frame:2")
    answers = [link.transceive(apdu(number)) for number in range(3)]
    assert answers == [apdu(number) + b"\x90\x00" for number in (0, 0, 2)]


@pytest.mark.parametrize("octet", range(1, 13))
def test_a_bit_is_flipped_in_exactly_that_byte(octet: int) -> None:
    link, card = faulty(f"corrupt@byte:{octet}")
    answer = link.transceive(apdu(0))  # 5 bytes there, 7 back
    changed = [at for at, byte in enumerate(card.apdus[0]) if byte != apdu(0)[at]]
    expected = card.apdus[0] + b"\x90\x00"
    changed += [5 + at for at, byte in enumerate(answer) if byte != expected[at]]
    assert changed == [octet - 1]


def test_time_counts_from_the_activation() -> None:
    link, card = faulty("tear@time:20")
    link.transceive(apdu(0))
    time.sleep(0.03)
    with pytest.raises(CardRemovedError):
        link.transceive(apdu(1))
    assert card.apdus == [apdu(0)]


# --- under the frames of ISO 14443-4


def field(text: str, frame: int = 16) -> tuple[CardLink, EchoCard]:
    card = EchoCard(_with_status)
    return inject(FieldLink(card, frame=frame), Fault.parse(text)), card


@pytest.mark.parametrize("kind", ["drop", "duplicate", "corrupt", "delay"])
@pytest.mark.parametrize("number", range(2, 16))
def test_lost_and_doubled_frames_are_made_good_by_the_halves(kind: str, number: int) -> None:
    link, card = field(f"{kind}@frame:{number}")
    with link:
        try:
            link.activate()
        except CardRemovedError:
            assert number == 2  # the ATS is lost: there is no tap
            assert kind in ("drop", "corrupt")
            return
        for one in range(3):
            assert link.transceive(COMMAND + bytes([one]) * 30) == COMMAND + bytes([one]) * 30 + b"\x90\x00"
    assert card.apdus == [COMMAND + bytes([one]) * 30 for one in range(3)]


@pytest.mark.attack("T1")
def test_a_torn_field_is_a_removed_card_at_every_byte() -> None:
    whole = 2 + 10  # RATS and ATS, at least
    ends = [_end_of_torn_tap(octet) for octet in range(1, 400)]
    torn = [kind for kind in ends if kind is not None]
    assert set(torn) == {CardRemovedError}
    assert whole < len(torn) < len(ends)
    assert ends[: len(torn)] == torn  # once the tap is over, nothing can tear it


def _end_of_torn_tap(octet: int) -> type[TransportError] | None:
    link, card = field(f"tear@byte:{octet}")
    with link:
        try:
            link.activate()
            link.transceive(COMMAND * 8)
        except TransportError as error:
            assert card.events[-1:] in ([], ["off"])
            return type(error)
    return None
