# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A Key with the channel module and a handful of commands, on a card; and a trusted world that carries its own bytes."""

from __future__ import annotations

from collections.abc import Callable

from protocol.apdu import MAX_NE, Command, Response
from protocol.commands import select
from protocol.status import StatusWord
from protocol.transport.chaining import TerminalChaining
from tests.trusted_key import certificates as made
from tests.trusted_key.certificates import NOW
from wallet.card import Card, StatusWordError
from wallet.tee.key_channel import HostIdentity, KeyChannel, PairedKey, open_scp11a, open_scp11b
from wallet.trusted_key.module import Access
from wallet.trusted_key.secure_channel import KeyIdentity, Pairing, SecureChannel, pinned

NAME = bytes.fromhex("A000000151000000")
PEER = b"phone 01"
IDENTITY = KeyIdentity(made.KEY_KEY, (made.AUTHORITY, made.KEY), made.GP_KEY)
HOST = HostIdentity(made.HOST_KEY, (made.AUTHORITY, made.HOST))
PAIRED = PairedKey(made.KEY)
PAIRING = pinned({made.HOST: PEER, made.GP_HOST: PEER})

ECHO, WHO, COUNT, REFUSE, WARN, GIVE, BREAK = 0x10, 0x12, 0x14, 0x16, 0x18, 0x1A, 0x1C


class SmallKey:
    """The application: it echoes, counts, refuses, warns, and says who is there."""

    name = NAME
    classes = frozenset({0x00, 0x04, 0x80, 0x84})

    def __init__(self, channel: SecureChannel) -> None:
        self.channel = channel
        self.counted = 0
        self.served: list[Access] = []
        self.echoed: list[bytes] = []

    def select(self) -> Response:
        self.channel.reset()
        return Response(b"\x6f\x00", StatusWord.OK)

    def answer(self, command: Command, prefix: bytes) -> Response:
        return self.channel.process(command, self._serve)

    def reset(self) -> None:
        self.channel.reset()

    def _serve(self, command: Command, access: Access) -> Response:
        self.served.append(access)
        match command.ins:
            case 0x10:
                self.echoed.append(command.data)
                return Response(command.data, StatusWord.OK)
            case 0x12:
                return Response(bytes([access.secure]) + access.peer, StatusWord.OK)
            case 0x14:
                self.counted += 1
                return Response(b"", StatusWord.OK)
            case 0x16:
                raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
            case 0x18:
                return Response(b"warned", StatusWord(0x6300))
            case 0x1A:
                return Response(bytes(command.p1 << 8 | command.p2), StatusWord.OK)
            case 0x1C:
                raise RuntimeError("a module broke")
        raise StatusWordError(StatusWord.INS_NOT_SUPPORTED)


class Bench:
    """Both ends and the link between them."""

    def __init__(self, pairing: Pairing = PAIRING, identity: KeyIdentity = IDENTITY, *, extended: bool = True) -> None:
        self.channel = SecureChannel(identity, pairing, lambda: NOW)
        self.key = SmallKey(self.channel)
        self.card = Card([self.key])
        self.card.activate()
        self._link = TerminalChaining(self.card.process, extended=extended)
        self.send(select(NAME))

    def send(self, command: Command) -> Response:
        """Send one whole command, as it is."""
        return self._link.exchange(command)

    def opened(self, host: HostIdentity | None = HOST, paired: PairedKey = PAIRED) -> KeyChannel:
        """Return a channel that is open: SCP11a, or SCP11b without `host`."""
        channel = open_scp11a(host, paired, NOW) if host else open_scp11b(paired, NOW)
        self.shake(channel)
        assert channel.is_open
        return channel

    def shake(self, channel: KeyChannel, altered: Callable[[Command, Response], Response] | None = None) -> None:
        """Carry the handshake; `altered` is what the link makes of answers."""
        while (command := channel.next_command()) is not None:
            response = self.send(command)
            channel.take(altered(command, response) if altered else response)

    def ask(self, channel: KeyChannel, ins: int, data: bytes = b"", ne: int = MAX_NE) -> Response:
        """Send a command through the channel and return what came back."""
        return channel.unwrap(self.send(channel.wrap(Command(0x80, ins, 0, 0, data, ne))))
