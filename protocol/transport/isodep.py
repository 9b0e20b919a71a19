# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""ISO/IEC 14443-4 as two pure state machines, one for each end: frames in, frames out, no link, no clock.

Frames are without CRC_A, which the radio adds and checks; a frame that came damaged is given as None, as silence is.
Neither half uses CID or NAD: our ATS announces neither, and a reader of ours asks for neither. The limits on repetition
are those of the payment profile (EMV Contactless Book D §10.3.5).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import IntEnum

from protocol.errors import CardRemovedError, CardSilentError, DecodeError, TransportError

FRAME_SIZES = (16, 24, 32, 40, 48, 64, 96, 128, 256)  # FSDI and FSCI 0 to 8, §5.1 table 1
FSDI = 8
CRC_LENGTH = 2
RATS_START = 0xE0
MAX_FWI = 14
PAYMENT_MAX_FWI = 7
DEFAULT_FWI = 4
MAX_WTXM = 59
CARRIER_HZ = 13_560_000
MAX_APDU = 0x10000 + 9
MAX_REPEATS = 2
DEFAULT_WAIT_BUDGET = 600  # frame waiting times that a card may ask for in one exchange

# PCB bits of table 5 to 7; what is not a mask is fixed, and a block where it differs is none.
_I_BLOCK, _I_BITS = 0x02, 0x11
_R_BLOCK, _R_BITS = 0xA2, 0x11
_MORE = _NAK = 0x10
_NUMBER = 0x01
_DESELECT = 0xC2
_WTX = 0xF2


def frame_waiting_time(fwi: int) -> float:
    """Return FWT in seconds: 4096/fc · 2^FWI, §7.2."""
    return 4096 / CARRIER_HZ * float(1 << fwi)


def start_up_guard_time(sfgi: int) -> float:
    """Return SFGT in seconds, 0 for SFGI 0: §5.2.5."""
    return 4096 / CARRIER_HZ * float(1 << sfgi) if sfgi else 0.0


@dataclass(frozen=True, slots=True)
class Ats:
    """Answer to select, §5.2. `frame` is FSC in bytes, CRC included; `bit_rates` is TA(1) as it stands."""

    frame: int = 256
    bit_rates: int = 0x00
    fwi: int = PAYMENT_MAX_FWI
    sfgi: int = 0
    takes_cid: bool = False
    takes_nad: bool = False
    historical: bytes = b""

    def encode(self) -> bytes:
        """Return TL T0 TA TB TC and the historical bytes; all three interface bytes are always there."""
        body = bytes(
            (
                0x70 | FRAME_SIZES.index(self.frame),
                self.bit_rates,
                self.fwi << 4 | self.sfgi,
                self.takes_cid << 1 | self.takes_nad,
            )
        )
        return bytes([2 + len(body) - 1 + len(self.historical)]) + body + self.historical

    @classmethod
    def decode(cls, data: bytes) -> Ats:
        """Return the ATS of any card; DecodeError when it is shorter than it says, or longer.

        Missing interface bytes have the standard's defaults (§5.2): FSC 32, FWI 4, CID supported.
        """
        if not data or data[0] != len(data):
            raise DecodeError("ATS", "TL", f"does not fit {len(data)} bytes")
        if len(data) == 1:
            return cls(frame=32, fwi=DEFAULT_FWI, takes_cid=True)
        announced, position = data[1], 2
        values: dict[int, int] = {}
        for bit in (0x10, 0x20, 0x40):
            if announced & bit:
                if position >= len(data):
                    raise DecodeError("ATS", "T0", "announces interface bytes that are not there")
                values[bit] = data[position]
                position += 1
        waiting, options = values.get(0x20, DEFAULT_FWI << 4), values.get(0x40, 0x02)
        fwi, sfgi = waiting >> 4, waiting & 0x0F
        return cls(
            FRAME_SIZES[min(announced & 0x0F, len(FRAME_SIZES) - 1)],
            values.get(0x10, 0),
            fwi if fwi <= MAX_FWI else DEFAULT_FWI,  # 15 is reserved and means the default, §5.2.5
            sfgi if sfgi <= MAX_FWI else 0,
            bool(options & 0x02),
            bool(options & 0x01),
            data[position:],
        )


class BlockKind(IntEnum):
    """The three kinds of block, §7.1.1."""

    I = 0  # noqa: E741 - the standard's name
    R = 2
    S = 3


@dataclass(frozen=True, slots=True)
class Block:
    """A block without CRC. `more` is chaining (I), `nak` is R(NAK), `wtx` is S(WTX) rather than S(DESELECT)."""

    kind: BlockKind
    number: int = 0
    more: bool = False
    nak: bool = False
    wtx: bool = False
    information: bytes = b""

    def encode(self) -> bytes:
        """Return PCB and information field."""
        if self.kind is BlockKind.S:
            return bytes([_WTX if self.wtx else _DESELECT]) + self.information
        pcb = _I_BLOCK if self.kind is BlockKind.I else _R_BLOCK
        pcb |= self.number | (_MORE if self.more or self.nak else 0)
        return bytes([pcb]) + self.information

    @classmethod
    def decode(cls, frame: bytes) -> Block:
        """Return the block of a frame; DecodeError for a PCB that is reserved, has CID or NAD, or a wrong length."""
        if not frame:
            raise DecodeError("Block", "PCB", "missing")
        pcb, information = frame[0], frame[1:]
        if pcb & ~_I_BITS == _I_BLOCK:
            return cls(BlockKind.I, pcb & _NUMBER, more=bool(pcb & _MORE), information=information)
        if pcb & ~_R_BITS == _R_BLOCK and not information:
            return cls(BlockKind.R, pcb & _NUMBER, nak=bool(pcb & _NAK))
        if pcb == _DESELECT and not information:
            return cls(BlockKind.S)
        if pcb == _WTX and len(information) == 1:
            return cls(BlockKind.S, wtx=True, information=information)
        raise DecodeError("Block", "PCB", "no block of this protocol")


def rats(fsdi: int = FSDI) -> bytes:
    """Return the request for answer to select, CID 0: §5.1."""
    return bytes([RATS_START, fsdi << 4])


def _i_block(number: int, information: bytes, *, more: bool) -> bytes:
    return Block(BlockKind.I, number, more=more, information=information).encode()


def _acknowledge(number: int, *, nak: bool = False) -> bytes:
    return Block(BlockKind.R, number, nak=nak).encode()


def _pieces(apdu: bytes, frame: int) -> list[bytes]:
    room = frame - CRC_LENGTH - 1
    return [apdu[start : start + room] for start in range(0, len(apdu), room)] or [b""]


# --- the card's end


@dataclass(frozen=True, slots=True)
class Reaction:
    """What the card does about a frame: send one, hand an APDU to the application, leave the field's tap, or nothing."""

    send: bytes | None = None
    deliver: bytes | None = None
    deselected: bool = False


_SILENCE = Reaction()


class CardHalf:
    """The PICC of §7.5.4. Feed it frames with `receive`; when it delivers an APDU, give the answer with `answer`."""

    def __init__(self, ats: Ats) -> None:
        """Be a card with this ATS, waiting for RATS."""
        self._ats = ats
        self._frame = 0
        self.reset()

    def reset(self) -> None:
        """The field was off: wait for RATS again."""
        self._frame = 0
        self._number = 1  # rule C
        self._is_fresh = True
        self._sent: bytes | None = None
        self._incoming = b""
        self._is_too_long = False
        self._outgoing: list[bytes] = []
        self._computing = False
        self._asked_time = False

    @property
    def is_active(self) -> bool:
        """Whether RATS was answered."""
        return self._frame > 0

    @property
    def is_computing(self) -> bool:
        """Whether an APDU was delivered that is not answered yet."""
        return self._computing

    def activated_by(self, rats_frame: bytes) -> None:
        """Become active as after `rats_frame`, for a radio that answers RATS itself with our ATS."""
        self.reset()
        self._frame = FRAME_SIZES[min(rats_frame[1] >> 4, FSDI)] if len(rats_frame) == 2 else FRAME_SIZES[FSDI]

    def receive(self, frame: bytes | None) -> Reaction:
        """React to a frame; None is one that came damaged, to which a card says nothing."""
        if frame is None or not frame:
            return _SILENCE
        if not self.is_active:
            return self._receive_rats(frame)
        if len(frame) + CRC_LENGTH > FRAME_SIZES[FSDI]:
            return _SILENCE
        if self._is_fresh and frame[0] == RATS_START:
            return self._receive_rats(frame)  # our ATS was not understood
        try:
            block = Block.decode(frame)
        except DecodeError:
            return _SILENCE
        self._is_fresh = False
        if block.kind is BlockKind.S:
            return self._receive_s(block)
        if self._computing:
            return self._sent_again() if self._asked_time else _SILENCE
        return self._receive_i(block) if block.kind is BlockKind.I else self._receive_r(block)

    def _receive_rats(self, frame: bytes) -> Reaction:
        if len(frame) != 2 or frame[0] != RATS_START or frame[1] & 0x0F > 14:
            return _SILENCE
        self.activated_by(frame)
        return Reaction(send=self._ats.encode())

    def _receive_s(self, block: Block) -> Reaction:
        if not block.wtx:
            self.reset()
            return Reaction(send=Block(BlockKind.S).encode(), deselected=True)
        if self._asked_time:  # our request was granted; the application goes on
            self._asked_time = False
        return _SILENCE

    def _receive_i(self, block: Block) -> Reaction:
        if block.number == self._number:  # a command that was answered already; a reader sends a new one with the other
            return self._sent_again()
        self._number ^= 1  # rule D
        self._outgoing = []
        self._incoming += block.information
        if len(self._incoming) > MAX_APDU:
            self._incoming, self._is_too_long = b"", True
        if self._is_too_long:
            self._is_too_long = block.more  # nothing of a chain without end is a command
            return _SILENCE
        if block.more:
            return self._send(_acknowledge(self._number))  # rule 2
        apdu, self._incoming = self._incoming, b""
        self._computing = True
        return Reaction(deliver=apdu)

    def _receive_r(self, block: Block) -> Reaction:
        if block.number == self._number:
            return self._sent_again()  # rule 11
        if block.nak:
            return Reaction(send=_acknowledge(self._number))  # rule 12
        if not self._outgoing:
            return _SILENCE
        self._number ^= 1  # rule E
        return self._send_next()  # rule 13

    def _sent_again(self) -> Reaction:
        return Reaction(send=self._sent) if self._sent is not None else _SILENCE

    def answer(self, apdu: bytes) -> Reaction:
        """Send the application's answer, chained to what the reader takes."""
        self._computing = self._asked_time = False
        self._outgoing = _pieces(apdu, self._frame)
        return self._send_next()

    def ask_time(self, multiplier: int = 1) -> Reaction:
        """Ask for more time in place of the answer: S(WTX) with WTXM 1 to 59, §7.3 and rule 9."""
        if not 1 <= multiplier <= MAX_WTXM:
            raise ValueError(f"WTXM is 1 to {MAX_WTXM}")
        self._asked_time = True
        return self._send(Block(BlockKind.S, wtx=True, information=bytes([multiplier])).encode())

    def _send_next(self) -> Reaction:
        piece, *self._outgoing = self._outgoing
        return self._send(_i_block(self._number, piece, more=bool(self._outgoing)))

    def _send(self, frame: bytes) -> Reaction:
        self._sent = frame
        return Reaction(send=frame)


# --- the reader's end


@dataclass(frozen=True, slots=True)
class Send:
    """A frame for the card, and for how many frame waiting times to wait for what comes back."""

    frame: bytes
    wait: int = 1


Dialogue = Generator[Send, bytes | None, bytes]


class ReaderHalf:
    """The PCD of §7.5.4. `exchange` and `deselect` are dialogues: each yields a Send and is sent the frame that came."""

    def __init__(self, ats: Ats, *, wait_budget: int = DEFAULT_WAIT_BUDGET) -> None:
        """Talk to a card of this ATS; `wait_budget` bounds the frame waiting times it may ask for in an exchange."""
        self._frame = min(ats.frame, FRAME_SIZES[FSDI])
        self._wait_budget = wait_budget
        self._number = 0  # rule A

    def exchange(self, apdu: bytes) -> Dialogue:
        """Send an APDU and return the answer.

        Raises CardRemovedError when the card stays silent through every repetition, CardSilentError when it asks for
        more time than the budget, TransportError when it breaks the protocol.
        """
        pieces = _pieces(apdu, self._frame)
        budget = _Budget(self._wait_budget)
        for index, piece in enumerate(pieces):
            more = index < len(pieces) - 1
            block = yield from self._deliver(_i_block(self._number, piece, more=more), budget)
            if more:
                self._require_acknowledgement(block)
            elif block.kind is not BlockKind.I:
                raise TransportError("the card acknowledges where it should answer")
            self._number ^= 1  # rule B
        return (yield from self._collect(block, budget))

    def _collect(self, block: Block, budget: _Budget) -> Dialogue:
        """Take the answer, piece by piece: rule 5."""
        answer = block.information
        while block.more:
            if not block.information or len(answer) > MAX_APDU:
                raise TransportError("the card chains more than an answer can hold")
            block = yield from self._deliver(_acknowledge(self._number), budget, chaining=True)
            if block.kind is not BlockKind.I:
                raise TransportError("the card acknowledges where it should go on")
            self._number ^= 1  # rule B
            answer += block.information
        return answer

    def _require_acknowledgement(self, block: Block) -> None:
        if block.kind is not BlockKind.R or block.nak:
            raise TransportError("the card answers before it has the whole command")

    def _deliver(
        self, frame: bytes, budget: _Budget, *, chaining: bool = False
    ) -> Generator[Send, bytes | None, Block]:
        """Send a frame until a block comes that continues the exchange; repeat within the profile's limits."""
        request = Send(frame)
        failures = repeats = 0
        while True:
            block = _decoded((yield request))
            if block is None or (block.kind is BlockKind.I and block.number != self._number):
                # rule 4: silence, a damaged frame, what is no block, or an answer that was taken already
                failures += 1
                if failures > MAX_REPEATS:
                    raise CardRemovedError("the card has left the field")
                request = Send(_acknowledge(self._number, nak=not chaining))
            elif block.kind is BlockKind.S:
                request = self._grant(block, budget)
            elif block.kind is BlockKind.R and not block.nak and block.number != self._number and not chaining:
                failures, repeats = 0, repeats + 1
                if repeats > MAX_REPEATS:
                    raise TransportError("the card asks for the same block again and again")
                request = Send(frame)  # rule 6
            elif block.nak:
                raise TransportError("a card never says R(NAK)")
            else:
                return block

    def _grant(self, block: Block, budget: _Budget) -> Send:
        """Grant S(WTX) within the budget: §7.3."""
        multiplier = block.information[0] & 0x3F if block.wtx else 0
        if not 1 <= multiplier <= MAX_WTXM:
            raise TransportError("the card asks for a waiting time that does not exist")
        budget.spend(multiplier)
        return Send(Block(BlockKind.S, wtx=True, information=bytes([multiplier])).encode(), wait=multiplier)

    def deselect(self) -> Dialogue:
        """Say S(DESELECT) and return the card's answer, empty when none came: rule 8."""
        frame = Block(BlockKind.S).encode()
        for _ in range(MAX_REPEATS):
            answer = yield Send(frame)
            if answer == frame:
                return answer
        return b""


@dataclass(slots=True)
class _Budget:
    """Frame waiting times that are left in an exchange."""

    left: int

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise CardSilentError("the card keeps asking for more time")


def _decoded(frame: bytes | None) -> Block | None:
    if not frame:
        return None
    if len(frame) + CRC_LENGTH > FRAME_SIZES[FSDI]:
        raise TransportError("the card sends more than a frame can hold")
    try:
        return Block.decode(frame)
    except DecodeError:
        return None
