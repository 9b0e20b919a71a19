# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Long messages on any link: command chaining (ISO 7816-4 §5.4.1) and GET RESPONSE (§11.8.1), both bounded.

The terminal's half decides by what the card states and the link can carry; the card's half accepts either form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from protocol.apdu import CHAINING_BIT, MAX_DATA, SHORT_MAX_DATA, SHORT_MAX_NE, Command, Response
from protocol.errors import DecodeError, TransportError
from protocol.status import StatusWord

INS_GET_RESPONSE = 0xC0
MAX_ANSWER = 0x10000
MAX_FETCHES = MAX_ANSWER // SHORT_MAX_NE + 1


class TerminalChaining:
    """Sends whole commands over a link that moves single APDUs."""

    def __init__(self, transceive: Callable[[bytes], bytes], *, extended: bool, max_data: int = MAX_DATA) -> None:
        """Wrap `transceive`; `extended` says that both card and link take extended lengths.

        `max_data` is the most bytes of data that the link carries in one command.
        """
        self._transceive = transceive
        self._extended = extended
        self._max_data = max_data

    def exchange(self, command: Command) -> Response:
        """Return the whole answer to `command`; TransportError when a card never stops sending."""
        in_one_piece = not command.needs_extended or (self._extended and len(command.data) <= self._max_data)
        return self._fetch_rest(self._send(command) if in_one_piece else self._send_chained(command))

    def _send(self, command: Command) -> Response:
        response = Response.decode(self._transceive(command.encode()))
        if response.sw >> 8 == 0x6C:
            response = Response.decode(self._transceive(replace(command, ne=_count(response.sw)).encode()))
        return response

    def _send_chained(self, command: Command) -> Response:
        parts = [command.data[i : i + SHORT_MAX_DATA] for i in range(0, len(command.data), SHORT_MAX_DATA)] or [b""]
        for part in parts[:-1]:
            link = replace(command, cla=command.cla | CHAINING_BIT, data=part, ne=None)
            response = self._send(link)
            if response.sw is not StatusWord.OK:
                return response
        ne = None if command.ne is None else min(command.ne, SHORT_MAX_NE)
        return self._send(replace(command, data=parts[-1], ne=ne))

    def _fetch_rest(self, response: Response) -> Response:
        data = response.data
        for _ in range(MAX_FETCHES):
            if response.sw >> 8 != 0x61:
                return Response(data, response.sw)
            response = self._send(Command(0x00, INS_GET_RESPONSE, 0, 0, b"", _count(response.sw)))
            data += response.data
            if len(data) > MAX_ANSWER or (not response.data and response.sw >> 8 == 0x61):
                break
        raise TransportError("the card keeps announcing more answer bytes than an answer can have")


def _count(sw: StatusWord) -> int:
    return sw & 0xFF or SHORT_MAX_NE


class CardChaining:
    """Collects chained commands and hands out long answers in pieces; bytes in, bytes out, never raises."""

    def __init__(self, answer: Callable[[Command], Response]) -> None:
        """Wrap `answer`, which sees whole commands only."""
        self._answer = answer
        self._chain: Command | None = None
        self._rest = b""
        self._final = StatusWord.OK

    def reset(self) -> None:
        """Forget half a command and half an answer: the tap is over."""
        self._chain = None
        self._rest = b""

    def process(self, apdu: bytes) -> bytes:
        """Answer one command APDU."""
        try:
            command = Command.decode(apdu)
        except DecodeError:
            self.reset()
            return Response(b"", StatusWord.WRONG_LENGTH).encode()
        return self._process(command).encode()

    def _process(self, command: Command) -> Response:
        if command.ins == INS_GET_RESPONSE and command.cla == 0x00:
            self._chain = None
            return self._next_piece(command.ne or SHORT_MAX_NE) if self._rest else _nothing_to_fetch()
        self._rest = b""
        if not self._append(command):
            self._chain = None
            return Response(b"", StatusWord.LAST_COMMAND_OF_CHAIN_EXPECTED)
        if command.is_chained:
            return Response(b"", StatusWord.OK)
        whole, self._chain = self._chain, None
        response = self._answer(replace(whole or command, cla=command.cla, ne=command.ne))
        self._rest, self._final = response.data, response.sw
        return self._next_piece(command.ne or 0)

    def _append(self, command: Command) -> bool:
        """Add a link to the chain; False when it does not belong there or the chain grows too long."""
        if self._chain is None:
            self._chain = command
            return True
        if command.unchained_header != self._chain.unchained_header:
            return False
        if len(self._chain.data) + len(command.data) > MAX_DATA:
            return False
        self._chain = self._chain.with_data(self._chain.data + command.data)
        return True

    def _next_piece(self, ne: int) -> Response:
        piece, self._rest = self._rest[:ne], self._rest[ne:]
        if not self._rest:
            return Response(piece, self._final)
        left = min(len(self._rest), SHORT_MAX_NE)
        return Response(piece, StatusWord(0x6100 | left & 0xFF))


def _nothing_to_fetch() -> Response:
    return Response(b"", StatusWord.CONDITIONS_NOT_SATISFIED)
