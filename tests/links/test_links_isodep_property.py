# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""ISO 14443-4 against whatever hypothesis says: frames of any kind at each half, and bad air between both."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.errors import TransportError
from protocol.transport.isodep import MAX_APDU, Ats, Block, BlockKind, CardHalf, ReaderHalf, rats
from tests.links.frames import Harm, Tap, active_card, data, run

_LONGEST = 253
_information = st.binary(max_size=6) | st.just(bytes(_LONGEST)) | st.just(bytes(_LONGEST + 1))
_i_blocks = st.builds(
    lambda number, more, information: Block(BlockKind.I, number, more=more, information=information).encode(),
    st.integers(0, 1), st.booleans(), _information,
)  # fmt: skip
_r_blocks = st.builds(
    lambda number, nak: Block(BlockKind.R, number, nak=nak).encode(), st.integers(0, 1), st.booleans()
)
_s_blocks = st.just(b"\xc2") | st.integers(0, 255).map(lambda multiplier: bytes([0xF2, multiplier]))
_frames = st.none() | st.binary(max_size=300) | _i_blocks | _r_blocks | _s_blocks | st.just(rats())
_KEPT_AT_MOST = 2 * MAX_APDU + 4096  # bytes: one command or one answer, and what stands around it


@settings(deadline=None)
@given(
    frames=st.lists(st.tuples(_frames, st.integers(1, 3) | st.just(300)), max_size=20),
    answers=st.lists(st.none() | st.integers(0, 70_000) | st.just(-1), min_size=1, max_size=5),
    is_active=st.booleans(),
)
def test_card_half_never_raises_and_never_grows(
    frames: list[tuple[bytes | None, int]], answers: list[int | None], is_active: bool
) -> None:
    half = active_card() if is_active else CardHalf(Ats())
    behaviour = itertools.cycle(answers)
    for frame, times in frames:
        for _ in range(times):
            reaction = half.receive(frame)
            assert reaction.send is None or len(reaction.send) <= 254
            if half.is_computing and (length := next(behaviour)) is not None:
                said = half.ask_time() if length < 0 else half.answer(bytes(length))
                assert said.send is not None
                assert len(said.send) <= 254
            assert reaction.deliver is None or len(reaction.deliver) <= MAX_APDU
        assert len(pickle.dumps(half)) < _KEPT_AT_MOST


@settings(deadline=None)
@given(numbers=st.lists(st.integers(0, 1), min_size=1, max_size=4), times=st.integers(1, 400))
def test_card_half_never_grows_by_a_chain_without_end(numbers: list[int], times: int) -> None:
    half = active_card()
    for number in numbers * times:
        half.receive(bytes([0x12 | number]) + bytes(_LONGEST))
    assert len(pickle.dumps(half)) < _KEPT_AT_MOST


def _then_silence(frames: list[bytes | None]) -> Callable[[object], bytes | None]:
    left = iter(frames)
    return lambda _: next(left, None)


def _again_and_again(frames: list[bytes | None]) -> Callable[[object], bytes | None]:
    left = itertools.cycle(frames)
    return lambda _: next(left)


@settings(deadline=None)
@given(frames=st.lists(_frames, min_size=1, max_size=30), length=st.integers(0, 600), for_ever=st.booleans())
def test_reader_half_ends_in_an_answer_or_a_transport_error(
    frames: list[bytes | None], length: int, for_ever: bool
) -> None:
    card = _again_and_again(frames) if for_ever else _then_silence(frames)
    half = ReaderHalf(Ats(frame=64), wait_budget=60)
    try:
        answer = run(half.exchange(data(length)), card, 4 * MAX_APDU)
    except TransportError:
        answer = b""
    assert len(answer) <= MAX_APDU + 256
    assert run(half.deselect(), card, 2) in (b"\xc2", b"")


@settings(deadline=None)
@given(frames=st.lists(_i_blocks | _r_blocks | _s_blocks, min_size=1, max_size=4), length=st.integers(0, 600))
def test_reader_half_ends_with_a_card_that_says_blocks_for_ever(frames: list[bytes | None], length: int) -> None:
    half = ReaderHalf(Ats(frame=64), wait_budget=60)
    try:
        run(half.exchange(data(length)), _again_and_again(frames), 4 * MAX_APDU)
    except TransportError:
        assert run(half.deselect(), _again_and_again(frames), 2) in (b"\xc2", b"")


_harms = st.sampled_from([Harm.NONE, Harm.NONE, Harm.NONE, Harm.LOST, Harm.DAMAGED, Harm.DOUBLED])


class BadAir(RuleBasedStateMachine):
    """Taps through air that loses, damages and doubles frames; every answer carries the number of its command."""

    def __init__(self) -> None:
        super().__init__()
        self._new_tap(8, 256, 0)

    def _new_tap(self, fsdi: int, frame: int, extensions: int) -> None:
        self.tap = Tap(fsdi=fsdi, ats=Ats(frame=frame), extensions=extensions, application=self._answer)
        self.sent: list[bytes] = []

    def _answer(self, apdu: bytes) -> bytes:
        return len(self.tap.delivered).to_bytes(4, "big") + apdu

    @rule(fsdi=st.integers(0, 8), frame=st.sampled_from([16, 24, 256]), extensions=st.integers(0, 2))
    def tap_begins(self, fsdi: int, frame: int, extensions: int) -> None:
        self._new_tap(fsdi, frame, extensions)

    @rule(length=st.integers(0, 60) | st.integers(250, 520), harms=st.lists(_harms, max_size=25))
    def exchange(self, length: int, harms: list[Harm]) -> None:
        start = len(self.tap.frames)
        self.tap.fate = lambda number: harms[number - start] if number - start < len(harms) else Harm.NONE
        self.sent.append(data(length))
        try:
            answer = self.tap.exchange(data(length))
        except TransportError:
            assert self.tap.delivered in (self.sent, self.sent[:-1])
            self._new_tap(8, 256, 0)
        else:
            assert answer == len(self.sent).to_bytes(4, "big") + data(length)
            assert self.tap.delivered == self.sent

    @invariant()
    def each_command_was_delivered_at_most_once(self) -> None:
        assert self.tap.delivered == self.sent


BadAir.TestCase.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
TestBadAir = BadAir.TestCase
