# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Secure storage (K2): named objects with a rule of who may use them, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from construct import Byte, Bytes, Construct, GreedyBytes, Int16ub, Prefixed

from protocol.apdu import MAX_NE, Command, Response
from protocol.key_commands import (
    MAX_OBJECT,
    BeginObject,
    KeyIns,
    ListedObject,
    Named,
    ObjectList,
    ReadObject,
    Rule,
    WriteObject,
)
from protocol.layout import Fields
from protocol.status import StatusWord
from protocol.wire import Coded, Wire
from wallet.card import StatusWordError
from wallet.trusted_key.access import NO_OWNER, owner_for, permits, read, require
from wallet.trusted_key.flash import Cells, Changes, FlashFailedError
from wallet.trusted_key.module import PEER_LENGTH, Access

OBJECT = b"object/"

Name = bytes


@dataclass(frozen=True, slots=True)
class StoredObject(Wire):
    """An object as it lies in the flash."""

    rule: Rule
    owner: bytes
    value: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "rule" / Coded(Rule, Byte), "owner" / Bytes(PEER_LENGTH), "value" / Prefixed(Int16ub, GreedyBytes)
    )


@dataclass(frozen=True, slots=True)
class Quota:
    """How much there is room for: objects, bytes of one, bytes of all together with their names."""

    objects: int = 64
    object_bytes: int = MAX_OBJECT
    bytes: int = 0x10000

    def require(self, others: list[tuple[Name, StoredObject]], more: int) -> None:
        """Raise StatusWordError 6A84 unless there is room for one object of `more` bytes beside `others`."""
        used = sum(len(name) + len(stored.value) for name, stored in others)
        if len(others) >= self.objects or used + more > self.bytes:
            raise StatusWordError(StatusWord.NOT_ENOUGH_MEMORY)


@dataclass(slots=True)
class _Begun:
    """An object that comes in pieces; it is in no flash yet."""

    order: BeginObject
    value: bytearray


class Storage:
    """The storage module."""

    name = "storage"
    instructions: frozenset[int] = frozenset(
        {KeyIns.WRITE, KeyIns.BEGIN, KeyIns.APPEND, KeyIns.COMMIT, KeyIns.READ, KeyIns.LIST, KeyIns.DELETE, KeyIns.WIPE}
    )

    def __init__(self, cells: Cells, quota: Quota | None = None, strangers: Quota | None = None) -> None:
        """Keep objects in `cells`, no more than `quota` allows; `strangers` is the part of it for those who are no peers."""
        self._cells = cells
        self._quota = quota or Quota()
        self._strangers = strangers or self._quota
        self._begun: _Begun | None = None

    def reset(self) -> None:
        """Forget an object that was begun: what has its name is as it was."""
        self._begun = None

    def answer(self, command: Command, access: Access) -> Response:
        """Answer one command. Anything but APPEND and COMMIT gives up an object that was begun."""
        begun, self._begun = self._begun, None
        if command.p1 or command.p2:
            raise StatusWordError(StatusWord.WRONG_P1_P2)
        if command.ins in (KeyIns.APPEND, KeyIns.COMMIT):
            if begun is None:
                raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
            return self._go_on(begun, command, access)
        act = {
            KeyIns.WRITE: self._write, KeyIns.BEGIN: self._begin, KeyIns.READ: self._read, KeyIns.LIST: self._list,
            KeyIns.DELETE: self._delete, KeyIns.WIPE: self._wipe,
        }.get(KeyIns(command.ins))  # fmt: skip
        if act is None:
            raise StatusWordError(StatusWord.INS_NOT_SUPPORTED)
        return Response(act(command, access), StatusWord.OK)

    def _objects(self) -> Iterator[tuple[bytes, StoredObject]]:
        for name, value in self._cells.items(OBJECT):
            yield name.removeprefix(OBJECT), StoredObject.decode(value)

    def _find(self, name: bytes, access: Access) -> StoredObject:
        value = self._cells.get(OBJECT + name)
        if value is None:
            raise StatusWordError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        found = StoredObject.decode(value)
        require(found.rule, found.owner, access)
        return found

    def _write(self, command: Command, access: Access) -> bytes:
        order = read(WriteObject, command.data)
        self._require_room(order.name, order.rule, len(order.value), access)
        self._put(order.name, order.rule, order.value, access)
        return b""

    def _begin(self, command: Command, access: Access) -> bytes:
        order = read(BeginObject, command.data)
        self._require_room(order.name, order.rule, order.length, access)
        self._begun = _Begun(order, bytearray())
        return b""

    def _go_on(self, begun: _Begun, command: Command, access: Access) -> Response:
        order = begun.order
        if command.ins == KeyIns.APPEND:
            if len(begun.value) + len(command.data) > order.length:
                raise StatusWordError(StatusWord.WRONG_LENGTH)
            begun.value += command.data
            self._begun = begun
        elif command.data or len(begun.value) != order.length:
            raise StatusWordError(StatusWord.WRONG_LENGTH)
        else:
            self._require_room(order.name, order.rule, order.length, access)
            self._put(order.name, order.rule, bytes(begun.value), access)
        return Response(b"", StatusWord.OK)

    def _require_room(self, name: bytes, rule: Rule, length: int, access: Access) -> None:
        """Refuse what may not be written: another's object, another rule than it has, more than there is room for."""
        old = self._cells.get(OBJECT + name)
        if old is None:
            require(rule, owner_for(access), access)
        elif self._find(name, access).rule is not rule:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
        if length > self._quota.object_bytes:
            raise StatusWordError(StatusWord.WRONG_LENGTH)
        others = [(one, stored) for one, stored in self._objects() if one != name]
        self._quota.require(others, len(name) + length)
        if not access.peer:
            self._strangers.require([one for one in others if one[1].owner == NO_OWNER], len(name) + length)

    def _put(self, name: bytes, rule: Rule, value: bytes, access: Access) -> None:
        old = self._cells.get(OBJECT + name)
        owner = owner_for(access) if old is None else StoredObject.decode(old).owner
        commit(self._cells, {OBJECT + name: StoredObject(rule, owner, value).encode()})

    def _read(self, command: Command, access: Access) -> bytes:
        order = read(ReadObject, command.data)
        value = self._find(order.name, access).value
        if order.offset > len(value):
            raise StatusWordError(StatusWord.OFFSET_OUTSIDE)
        return value[order.offset :][: order.length or MAX_NE]

    def _list(self, command: Command, access: Access) -> bytes:
        require_no_data(command)
        everything = list(self._objects())
        seen = tuple(
            ListedObject(name, stored.rule, len(stored.value))
            for name, stored in everything
            if permits(stored.rule, stored.owner, access)
        )
        used = sum(len(name) + len(stored.value) for name, stored in everything)
        return ObjectList(seen, self._quota.objects - len(everything), self._quota.bytes - used).encode()

    def _delete(self, command: Command, access: Access) -> bytes:
        name = read(Named, command.data).name
        self._find(name, access)
        commit(self._cells, {OBJECT + name: None})
        return b""

    def _wipe(self, command: Command, access: Access) -> bytes:
        """Delete every object that this command could delete, all at once."""
        require_no_data(command)
        commit(
            self._cells,
            {OBJECT + name: None for name, stored in self._objects() if permits(stored.rule, stored.owner, access)},
        )
        return b""


def commit(cells: Cells, changes: Changes) -> None:
    """Put changes on disk; StatusWordError 6581 when that fails, and everything is as it was."""
    try:
        cells.commit(changes)
    except FlashFailedError:
        raise StatusWordError(StatusWord.MEMORY_FAILURE) from None


def require_no_data(command: Command) -> None:
    """Raise StatusWordError 6700 for a command that brings data where none belongs."""
    if command.data:
        raise StatusWordError(StatusWord.WRONG_LENGTH)
