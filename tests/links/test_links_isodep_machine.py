# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""One card's half for many taps: slow air, readers that break off, strangers at either end, and the field going between.

Frames may be lost, damaged, doubled, and come too late: behind the moment when the reader gave up waiting, in their order.
test_links_isodep_property.py has air that is bad but not slow, and each half against frames of any kind.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from enum import Enum

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from protocol.errors import DecodeError, TransportError
from protocol.transport.isodep import Ats, Block, BlockKind, CardHalf, Dialogue, ReaderHalf, Send, rats
from tests.links.frames import WTX_PCB, data, run


class Fate(Enum):
    """What can happen to a frame on its way. NOISE is something else that the air adds before it."""

    FINE = "fine"
    LOST = "lost"
    DAMAGED = "damaged"
    DOUBLED = "doubled"
    LATE = "late"
    NOISE = "noise"


class Pause(Enum):
    """Stands in the air before a frame that comes only after its receiver has stopped waiting once."""

    PAUSE = "pause"


OnAir = bytes | None | Pause


def _is_no_block(frame: bytes) -> bool:
    try:
        Block.decode(frame)
    except DecodeError:
        return frame[:1] != rats()[:1]
    return False


_noises = st.binary(min_size=1, max_size=20).filter(_is_no_block)
_fates = st.lists(st.just(Fate.FINE) | st.sampled_from(Fate), max_size=25)
_blocks = st.builds(
    lambda kind, number, more, nak, information: Block(kind, number, more, nak, information[:1] != b"", information),
    st.sampled_from(BlockKind), st.integers(0, 1), st.booleans(), st.booleans(), st.binary(max_size=30),
).map(Block.encode)  # fmt: skip
_frames = st.lists(st.none() | _blocks | st.binary(max_size=300) | st.just(rats()), max_size=25)


class Card:
    """A card's half with an application that answers each command with its number; it may need time."""

    def __init__(self, ats: Ats) -> None:
        self.half = CardHalf(ats)
        self.delivered: list[bytes] = []
        self.extensions = self._left = 0

    def react(self, frame: bytes | None) -> bytes | None:
        reaction = self.half.receive(frame)
        if reaction.deliver is not None:
            self.delivered.append(reaction.deliver)
            self._left = self.extensions
            return self._think()
        if self._left and self.half.is_computing and frame and frame[0] == WTX_PCB:
            self._left -= 1
            return self._think()
        return reaction.send

    def _think(self) -> bytes | None:
        if self._left:
            return self.half.ask_time().send
        return self.half.answer(answer_to(len(self.delivered), self.delivered[-1])).send


def answer_to(number: int, apdu: bytes) -> bytes:
    return number.to_bytes(4, "big") + apdu


class SlowAir:
    """Two queues, one for each direction; a frame that comes late is behind a pause."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._to_card: deque[OnAir] = deque()
        self._to_reader: deque[OnAir] = deque()
        self.fates: Iterable[Fate] = ()
        self.noise = b"\xff"
        self.sent = 0

    def exchange(self, wanted: Send) -> bytes | None:
        """Carry a frame of the reader's, and return what the reader hears before it gives up waiting."""
        self.sent += 1
        self._to_card += self._passed(wanted.frame)
        for frame in _heard(self._to_card):
            answer = self._card.react(frame)
            if answer is not None:
                self._to_reader += self._passed(answer)
        return next(iter(_heard(self._to_reader)), None)

    def _passed(self, frame: bytes) -> list[OnAir]:
        on_air: dict[Fate, list[OnAir]] = {
            Fate.LOST: [],
            Fate.DAMAGED: [None],
            Fate.DOUBLED: [frame, frame],
            Fate.LATE: [Pause.PAUSE, frame],
            Fate.NOISE: [self.noise, frame],
        }
        return on_air.get(next(iter(self.fates), Fate.FINE), [frame])


def _heard(queue: deque[OnAir]) -> Iterable[bytes | None]:
    while queue:
        frame = queue.popleft()
        if isinstance(frame, Pause):
            return
        yield frame


class IsoDepMachine(RuleBasedStateMachine):
    """The card's half is the same object for all taps of an example; each tap has a reader's half of its own."""

    @initialize(frame=st.sampled_from([16, 24, 256]))
    def begin(self, frame: int) -> None:
        self.card = Card(Ats(frame=frame))
        self._field_goes(8)

    def _field_goes(self, fsdi: int) -> None:
        self.card.half.reset()
        answer = self.card.half.receive(rats(fsdi)).send
        assert answer is not None
        self.card.delivered.clear()
        self.reader, self.air = ReaderHalf(Ats.decode(answer)), SlowAir(self.card)
        self.sent: list[bytes] = []
        self.is_clean = True

    @rule(fsdi=st.integers(0, 8))
    def field_goes_off_and_on(self, fsdi: int) -> None:
        self._field_goes(fsdi)

    @rule(length=st.integers(0, 60) | st.integers(250, 520), fates=_fates, noise=_noises, extensions=st.integers(0, 2))
    def exchange(self, length: int, fates: list[Fate], noise: bytes, extensions: int) -> None:
        self.card.extensions, self.air.fates, self.air.noise = extensions, iter(fates), noise
        self.is_clean = self.is_clean and set(fates) <= {Fate.FINE}
        self.sent.append(data(length))
        started = self.air.sent
        try:
            answer = run(self.reader.exchange(data(length)), self.air.exchange)
        except TransportError:
            assert not self.is_clean
            assert self.card.delivered in (self.sent, self.sent[:-1])
            self._field_goes(8)
        else:
            assert answer == answer_to(len(self.sent), data(length))
            assert self.air.sent - started <= 6 * (length // 13 + 2) + 4 * len(fates) + extensions + 8
            self.is_clean = self.is_clean and not fates

    @rule(length=st.integers(0, 520), fates=_fates, steps=st.integers(0, 20), fsdi=st.integers(0, 8))
    def reader_breaks_off(self, length: int, fates: list[Fate], steps: int, fsdi: int) -> None:
        self.air.fates = iter(fates)
        before = list(self.card.delivered)
        _run_a_while(self.reader.exchange(data(length)), self.air, steps)
        assert self.card.delivered in (before, [*before, data(length)])
        self._field_goes(fsdi)

    @rule(fates=_fates, fsdi=st.integers(0, 8))
    def reader_deselects(self, fates: list[Fate], fsdi: int) -> None:
        self.air.fates = iter(fates)
        answer = run(self.reader.deselect(), self.air.exchange, 3)
        assert answer in (b"\xc2", b"")
        assert answer or fates
        assert not (answer and self.card.half.is_active)
        self._field_goes(fsdi)

    @rule(frames=_frames, fsdi=st.integers(0, 8))
    def strange_reader(self, frames: list[bytes | None], fsdi: int) -> None:
        carried = sum(len(frame or b"") for frame in frames)
        for frame in frames:
            said = self.card.react(frame)
            assert said is None or 1 <= len(said) <= 254
        assert sum(map(len, self.card.delivered[len(self.sent) :])) <= carried
        self._field_goes(fsdi)

    @rule(frames=_frames, length=st.integers(0, 520))
    def strange_card(self, frames: list[bytes | None], length: int) -> None:
        said = itertools.chain(frames, itertools.repeat(None))
        heard = b"".join(frame or b"" for frame in frames)
        limit = 3 * (length // 13 + 2) + len(frames) + 4
        try:
            answer = run(self.reader.exchange(data(length)), lambda _: next(said), limit)
        except TransportError:
            pass
        else:
            assert len(answer) < len(heard)  # nothing is made up
        self._field_goes(8)

    @invariant()
    def each_command_was_delivered_once(self) -> None:
        assert self.card.delivered == self.sent


def _run_a_while(dialogue: Dialogue, air: SlowAir, steps: int) -> None:
    """Drive a dialogue for so many frames at most, and then no more."""
    try:
        wanted = next(dialogue)
        for _ in range(steps):
            wanted = dialogue.send(air.exchange(wanted))
    except (StopIteration, TransportError):
        return


def test_both_halves_are_sound_whatever_the_air_and_strangers_do() -> None:
    run_state_machine_as_test(
        IsoDepMachine,
        settings=settings(
            max_examples=120,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
