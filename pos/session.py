# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A typed client of the card application: one method for each command, and the transcript of all of them."""

from __future__ import annotations

import time
from dataclasses import replace

from protocol import channel
from protocol.apdu import Command, Response
from protocol.channel import ChannelKeys
from protocol.commands import (
    VERSION_1,
    Ins,
    get_virtual_card,
    in_channel,
    relay_check,
    select,
)
from protocol.envelope import SUITE_1
from protocol.fci import DIRECTORY_NAME, ApplicationFci, DirectoryEntry, decode_directory
from protocol.messages import Cancel, Confirm, Confirmed, Debit, DebitResult, GetVirtualCard, RelayCheck, Settled
from protocol.status import StatusWord, raise_for_status
from protocol.transcript import Digests, Record, digests
from protocol.transport.base import Activation, CardLink
from protocol.transport.chaining import TerminalChaining


class CardSession:
    """The commands of one tap, from activation on."""

    def __init__(self, link: CardLink, activation: Activation, *, short: bool = False) -> None:
        """Talk over `link`; long messages go as the card states, or in `short` pieces if told so."""
        extended = activation.takes_extended_length and not short
        self._exchange_whole = TerminalChaining(link.transceive, extended=extended, max_data=link.max_data).exchange
        self._transcript = b""
        self._keys: ChannelKeys | None = None
        self._messages = 0

    def _exchange(self, command: Command) -> Response:
        response = self._exchange_whole(command)
        self._transcript += Record.of_command(command).encode() + Record.of_response(response).encode()
        return response

    def read_directory(self) -> tuple[DirectoryEntry, ...]:
        """Select 2PAY.SYS.DDF01 and return its applications; StatusError when there is no directory."""
        response = self._exchange(select(DIRECTORY_NAME))
        raise_for_status("SELECT directory", response.sw)
        return decode_directory(response.data)

    def select(self, name: bytes) -> ApplicationFci | None:
        """Select an application by name; None when the card has none of that name, StatusError for anything else."""
        response = self._exchange(select(name))
        if response.sw is StatusWord.NOT_FOUND:
            return None
        raise_for_status("SELECT", response.sw)
        return ApplicationFci.decode(response.data)

    def relay_check(self, challenge: bytes) -> float:
        """Exchange challenge and nonce and return the round trip in seconds."""
        started = time.perf_counter()
        response = self._exchange(relay_check(RelayCheck(challenge)))
        seconds = time.perf_counter() - started
        raise_for_status("RELAY CHECK", response.sw)
        RelayCheck.decode(response.data)
        return seconds

    def digests(self, unsigned: GetVirtualCard) -> Digests:
        """Return T1 and T2 as they would be with `unsigned` sent now."""
        return digests(self._transcript, get_virtual_card(VERSION_1, SUITE_1, unsigned))

    def get_virtual_card(self, hello: GetVirtualCard) -> bytes:
        """Ask for the card and return the answer, of which nothing has been verified; StatusError when refused."""
        response = self._exchange(get_virtual_card(VERSION_1, SUITE_1, hello))
        raise_for_status("GET VIRTUAL CARD", response.sw)
        return response.data

    def open_channel(self, keys: ChannelKeys) -> None:
        """Encrypt from now on."""
        self._keys = keys
        self._messages = 0

    def debit(self, debit: Debit) -> DebitResult:
        """Ask for the payment; VerificationError or StatusError when there is no answer that can be believed."""
        return DebitResult.decode(self._in_channel(Ins.DEBIT, debit.encode()))

    def confirm(self, transaction_id: bytes = b"") -> Confirmed:
        """Tell the wallet that the result arrived: this session's, or that of a recovered transaction."""
        return Confirmed.decode(self._in_channel(Ins.CONFIRM, Confirm(transaction_id).encode()))

    def cancel(self, transaction_id: bytes) -> Settled:
        """Ask for the final result of a transaction, which is cancelled if it was still open."""
        return Settled.decode(self._in_channel(Ins.CANCEL, Cancel(transaction_id).encode()))

    def _in_channel(self, ins: Ins, plaintext: bytes) -> bytes:
        if self._keys is None:
            raise ValueError("the channel is not open")
        keys, number = self._keys, self._messages
        self._keys = None  # whatever goes wrong below ends the channel
        response = self._exchange(channel.seal_command(keys, number, in_channel(ins, plaintext)))
        if response.sw is not StatusWord.OK:
            raise_for_status(ins.title, response.sw)
        body = channel.open_response(keys, number, ins, response.data, response.sw)
        self._keys, self._messages = keys, number + 1
        return body


def signed(unsigned: GetVirtualCard, signature: bytes) -> GetVirtualCard:
    """Return the hello with its signature."""
    return replace(unsigned, signature=signature)
