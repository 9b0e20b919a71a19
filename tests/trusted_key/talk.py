# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the Key's tests share: somebody who talks to its card, a channel without cryptography, cells without a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from protocol.apdu import Command, Response
from protocol.commands import KEY_NAME, select
from protocol.key_commands import KeyIns, Named, ReadObject, Rule, WriteObject, key_command
from protocol.status import StatusWord
from protocol.wire import Wire
from wallet.card import StatusWordError
from wallet.trusted_key.flash import Changes, FlashFailedError
from wallet.trusted_key.module import Access

OK = StatusWord.OK
PEER, OTHER_PEER = b"PEER0001", b"PEER0002"
Body = TypeVar("Body", bound=Wire)


class MemoryCells:
    """Cells in a dictionary; they fail while `broken`."""

    def __init__(self) -> None:
        self.cells: dict[bytes, bytes] = {}
        self.broken = False
        self.commits = 0

    def get(self, name: bytes) -> bytes | None:
        return self.cells.get(name)

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return ((name, self.cells[name]) for name in sorted(self.cells) if name.startswith(prefix))

    def commit(self, changes: Changes) -> None:
        if self.broken:
            raise FlashFailedError("no room")
        self.commits += 1
        for name, value in changes.items():
            if value is None:
                self.cells.pop(name, None)
            else:
                self.cells[name] = value


class OpenChannel:
    """A channel module that trusts its peers' word: `open_channel` names one, MAC is three letters.

    It stands for the real one in what the application and the modules make of it.
    """

    name = "channel"

    def __init__(self) -> None:
        self.access = Access()

    def process(self, command: Command, serve: Callable[[Command, Access], Response]) -> Response:
        if command.cla & 0x04:
            return self._secured(command, serve)
        if command.ins in (0x82, 0x88):
            self.access = Access(secure=True, peer=command.data)
            return Response(b"", OK)
        if self.access.secure:
            self.reset()
            raise StatusWordError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)
        return serve(command, Access())

    def _secured(self, command: Command, serve: Callable[[Command, Access], Response]) -> Response:
        if not self.access.secure or not command.data.endswith(b"MAC"):
            self.reset()
            raise StatusWordError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)
        plain = Command(command.cla & ~0x04, command.ins, command.p1, command.p2, command.data[:-3], command.ne)
        try:
            response = serve(plain, self.access)
        except StatusWordError as refused:
            response = Response(b"", refused.sw)
        carried = response.sw is OK or response.sw >> 8 in (0x62, 0x63)
        return Response(response.data + b"RMAC", response.sw) if carried else Response(b"", response.sw)

    def reset(self) -> None:
        self.access = Access()


def open_channel(peer: bytes = b"") -> Command:
    """Set the channel up as `peer`, as nobody in particular when it is empty."""
    return Command(0x80, 0x82 if peer else 0x88, 0, 0, peer, 256)


def secured(command: Command) -> Command:
    return Command(command.cla | 0x04, command.ins, command.p1, command.p2, command.data + b"MAC", command.ne)


class Processor(Protocol):
    """A card."""

    def process(self, apdu: bytes) -> bytes: ...


@dataclass
class Talk:
    """Somebody who talks to a Key's card; within the channel once `as_peer` or `in_channel` was said."""

    card: Processor
    is_secured: bool = False
    said: list[Response] = field(default_factory=list)

    def raw(self, command: Command) -> Response:
        self.said.append(Response.decode(self.card.process(command.encode())))
        return self.said[-1]

    def select(self) -> Response:
        self.is_secured = False
        return self.raw(select(KEY_NAME))

    def as_peer(self, peer: bytes = PEER) -> Talk:
        assert self.raw(open_channel(peer)).sw is OK
        self.is_secured = True
        return self

    def in_channel(self) -> Talk:
        assert self.raw(open_channel()).sw is OK
        self.is_secured = True
        return self

    def plain(self) -> Talk:
        self.select()
        return self

    def send(self, ins: KeyIns, body: Wire | bytes = b"", *, p1: int = 0, p2: int = 0) -> Response:
        command = key_command(ins, body, p1=p1, p2=p2, ne=65536)
        if not self.is_secured:
            return self.raw(command)
        response = self.raw(secured(command))
        return Response(response.data.removesuffix(b"RMAC"), response.sw)

    def sw(self, ins: KeyIns, body: Wire | bytes = b"", *, p1: int = 0, p2: int = 0) -> int:
        return int(self.send(ins, body, p1=p1, p2=p2).sw)

    def good(self, ins: KeyIns, body: Wire | bytes = b"", *, p1: int = 0, p2: int = 0) -> bytes:
        response = self.send(ins, body, p1=p1, p2=p2)
        assert response.sw is OK, f"{ins.title}: {response.sw}"
        return response.data

    def ask(self, kind: type[Body], ins: KeyIns, body: Wire | bytes = b"", *, p1: int = 0) -> Body:
        return kind.decode(self.good(ins, body, p1=p1))

    def write(self, name: bytes, value: bytes, rule: Rule = Rule.OPEN) -> int:
        return self.sw(KeyIns.WRITE, WriteObject(name, rule, value))

    def read(self, name: bytes, offset: int = 0, length: int = 0) -> Response:
        return self.send(KeyIns.READ, ReadObject(name, offset, length))

    def delete(self, name: bytes) -> int:
        return self.sw(KeyIns.DELETE, Named(name))


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds
