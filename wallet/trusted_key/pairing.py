# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Pairing: which trusted worlds may open SCP11a. Each is taken in by its certificate, and by the user's press on the Key."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.constant_time import bytes_eq

from protocol import channel_certificate
from protocol.apdu import Command, Response
from protocol.channel_certificate import ChannelCertificate, KeyUse
from protocol.errors import DecodeError, UsageError
from protocol.key_commands import MAX_SECONDS, KeyIns, QuestionNumber, QuestionState, Reply, pairing_code
from protocol.status import StatusWord
from wallet.card import StatusWordError
from wallet.trusted_key.access import read
from wallet.trusted_key.flash import Cells
from wallet.trusted_key.module import PEER_LENGTH, Access
from wallet.trusted_key.panel import Panel, PanelBusyError

MAX_PAIRINGS = 8
_PREFIX = b"paired/"
_BEGIN, _POLL = 0x00, 0x01


class Pairings:
    """The certificates of the trusted worlds that are paired, in the Key's flash."""

    def __init__(self, cells: Cells) -> None:
        """Keep them in `cells`."""
        self._cells = cells

    def name_of(self, certificate: ChannelCertificate) -> bytes | None:
        """Return the peer's name of 8 bytes; None when it is not paired."""
        known = self._cells.get(_PREFIX + peer_name(certificate.encoded))
        return peer_name(certificate.encoded) if known is not None and bytes_eq(known, certificate.encoded) else None

    def names(self) -> list[bytes]:
        """Return the names of those that are paired."""
        return [name.removeprefix(_PREFIX) for name, _ in self._cells.items(_PREFIX)]

    def add(self, certificate: bytes) -> bytes:
        """Take one in and return its name; UsageError when it cannot be, or there is no room."""
        require_usable(certificate)
        name = peer_name(certificate)
        if name not in self.names() and len(self.names()) >= MAX_PAIRINGS:
            raise UsageError(f"the Key is paired with {MAX_PAIRINGS} trusted worlds, and there is room for no more")
        self._cells.commit({_PREFIX + name: certificate})
        return name

    def remove(self, name: bytes) -> None:
        """Forget one; UsageError when there is none of this name."""
        if self._cells.get(_PREFIX + name) is None:
            raise UsageError(f"no trusted world {name.hex()} is paired")
        self._cells.commit({_PREFIX + name: None})


class Pairing:
    """The part of the channel module that takes a trusted world in: PAIR, within any channel."""

    name = "channel"
    instructions: frozenset[int] = frozenset({KeyIns.PAIR})

    def __init__(self, pairings: Pairings, own: bytes, panel: Panel) -> None:
        """Ask on `panel` whether to add to `pairings`; `own` is the certificate that the other side knows us by."""
        self._pairings = pairings
        self._own = own
        self._panel = panel
        self._asked: tuple[int, bytes] | None = None

    def reset(self) -> None:
        """The question goes with the session."""
        self._asked = None
        self._panel.withdraw()

    def answer(self, command: Command, access: Access) -> Response:
        """Answer PAIR: P1 00 puts the question, 01 looks how it stands."""
        if not access.secure:
            raise StatusWordError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)
        if command.p1 not in (_BEGIN, _POLL) or command.p2:
            raise StatusWordError(StatusWord.WRONG_P1_P2)
        act = self._begin if command.p1 == _BEGIN else self._poll
        return Response(act(command.data).encode(), StatusWord.OK)

    def _begin(self, certificate: bytes) -> QuestionState:
        try:
            require_usable(certificate)
        except (DecodeError, UsageError):
            raise StatusWordError(StatusWord.WRONG_DATA) from None
        text = f"Pair with a phone that shows {pairing_code(self._own, certificate)}?"
        try:
            number = self._panel.ask(text, MAX_SECONDS)
        except PanelBusyError:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED) from None
        self._asked = number, certificate
        return QuestionState(number, Reply.PENDING)

    def _poll(self, data: bytes) -> QuestionState:
        number = read(QuestionNumber, data).number
        reply = self._panel.reply(number)
        if reply is None:
            raise StatusWordError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        if reply is Reply.CONFIRMED and self._asked is not None and self._asked[0] == number:
            self._take_in(self._asked[1])
        return QuestionState(number, reply)

    def _take_in(self, certificate: bytes) -> None:
        self._asked = None
        try:
            self._pairings.add(certificate)
        except UsageError:
            raise StatusWordError(StatusWord.NOT_ENOUGH_MEMORY) from None


def require_usable(certificate: bytes) -> None:
    """Raise UsageError unless this can be a peer's certificate; DecodeError when it is none at all."""
    known = channel_certificate.read(certificate)
    if KeyUse.KEY_AGREEMENT not in known.uses:
        raise UsageError("the key of this certificate is not for key agreement")


def peer_name(certificate: bytes) -> bytes:
    """Return the name by which objects and keys belong to a peer."""
    return hashlib.sha256(certificate).digest()[:PEER_LENGTH]
