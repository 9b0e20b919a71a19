# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Trusted computing (K3): what is done with keys that cannot leave, random numbers, and counters that never go back."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, ClassVar

from construct import Byte, Bytes, Construct, GreedyBytes, Int64ub, Prefixed

from protocol.apdu import SHORT_MAX_NE, Command, Response
from protocol.key_commands import (
    CounterStep,
    CounterValue,
    GenerateKey,
    KeyIns,
    KeyList,
    KeyOrder,
    KeyUse,
    Named,
    NewCounter,
    ReceiptOrder,
    Rule,
)
from protocol.layout import Fields
from protocol.signing import SIGNATURE_LENGTH
from protocol.status import StatusWord
from protocol.wire import Coded, Wire
from wallet.card import StatusWordError
from wallet.trusted_key.access import NO_OWNER, owner_for, permits, read, require
from wallet.trusted_key.flash import Cells
from wallet.trusted_key.module import PEER_LENGTH, Access
from wallet.trusted_key.payments import ConfirmedPayments
from wallet.trusted_key.slots import Slot
from wallet.trusted_key.storage import commit, require_no_data

KEY = b"key/"
COUNTER = b"counter/"
SIGNED = b"signed"
MAX_KEYS = 96  # one for each credential of a wallet that has as many as there can be, and some more
MAX_COUNTERS = 16
_MAX_COUNT = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class StoredCounter(Wire):
    """A counter as it lies in the flash."""

    rule: Rule
    owner: bytes
    value: int

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "rule" / Coded(Rule, Byte), "owner" / Bytes(PEER_LENGTH), "value" / Int64ub
    )


@dataclass(frozen=True, slots=True)
class SignedReceipt(Wire):
    """The receipt that was signed last: who lost the answer asks again and gets the same one, though the key is gone."""

    name: bytes
    rule: Rule
    owner: bytes
    digest: bytes
    signature: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "name" / Prefixed(Byte, GreedyBytes),
        "rule" / Coded(Rule, Byte),
        "owner" / Bytes(PEER_LENGTH),
        "digest" / Bytes(32),
        "signature" / Bytes(SIGNATURE_LENGTH),
    )


class Computing:
    """The computing module."""

    name = "computing"

    def __init__(self, cells: Cells, confirmed: ConfirmedPayments | None = None, *, for_peers: bool = False) -> None:
        """Keep keys in `cells`; receipts are signed only where payments can be `confirmed`.

        `for_peers` leaves those who are no peers a third of the slots and half of the counters: counters cannot be deleted.
        """
        self._cells = cells
        self._strangers = (MAX_KEYS // 3, MAX_COUNTERS // 2) if for_peers else (MAX_KEYS, MAX_COUNTERS)
        self._confirmed = confirmed
        self._acts = {
            KeyIns.GENERATE_KEY: self._generate, KeyIns.PUBLIC_KEY: self._public_key, KeyIns.SIGN: self._sign,
            KeyIns.AGREE: self._agree, KeyIns.MAC: self._mac, KeyIns.LIST_KEYS: self._list_keys,
            KeyIns.DELETE_KEY: self._delete,
        }  # fmt: skip
        if confirmed is not None:
            self._acts[KeyIns.SIGN_RECEIPT] = self._sign_receipt
        self.instructions: frozenset[int] = frozenset({*self._acts, KeyIns.RANDOM, KeyIns.COUNTER})

    def reset(self) -> None:
        """Nothing belongs to a session."""

    def answer(self, command: Command, access: Access) -> Response:
        """Answer one command."""
        if command.ins == KeyIns.RANDOM:
            return Response(_random(command), StatusWord.OK)
        if command.ins == KeyIns.COUNTER:
            return Response(self._count(command, access), StatusWord.OK)
        if command.p1 or command.p2:
            raise StatusWordError(StatusWord.WRONG_P1_P2)
        return Response(self._acts[KeyIns(command.ins)](command, access), StatusWord.OK)

    # --- keys

    def _slot(self, name: bytes, access: Access) -> Slot:
        value = self._cells.get(KEY + name)
        if value is None:
            raise StatusWordError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        slot = Slot.decode(value)
        require(slot.rule, slot.owner, access)
        return slot

    def _slot_for(self, use: KeyUse, name: bytes, access: Access) -> Slot:
        slot = self._slot(name, access)
        if slot.use is not use:
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return slot

    def _generate(self, command: Command, access: Access) -> bytes:
        order = read(GenerateKey, command.data)
        require(order.rule, owner_for(access), access)
        if self._cells.get(KEY + order.name) is not None:
            raise StatusWordError(StatusWord.ALREADY_EXISTS)
        owners = [Slot.decode(value).owner for _, value in self._cells.items(KEY)]
        _require_room(owners, MAX_KEYS, self._strangers[0], access)
        slot = Slot.generate(order.kind, order.use, order.rule, owner_for(access))
        commit(self._cells, {KEY + order.name: slot.encode()})
        return slot.public

    def _public_key(self, command: Command, access: Access) -> bytes:
        return self._slot(read(Named, command.data).name, access).public

    def _sign(self, command: Command, access: Access) -> bytes:
        order = read(KeyOrder, command.data)
        return self._slot_for(KeyUse.SIGN, order.name, access).sign(order.data)

    def _agree(self, command: Command, access: Access) -> bytes:
        order = read(KeyOrder, command.data)
        slot = self._slot_for(KeyUse.AGREE, order.name, access)
        try:
            return slot.agree(order.data)
        except ValueError:
            raise StatusWordError(StatusWord.WRONG_DATA) from None

    def _mac(self, command: Command, access: Access) -> bytes:
        order = read(KeyOrder, command.data)
        return self._slot_for(KeyUse.MAC, order.name, access).mac(order.data)

    def _list_keys(self, command: Command, access: Access) -> bytes:
        require_no_data(command)
        slots = [(name.removeprefix(KEY), Slot.decode(value)) for name, value in self._cells.items(KEY)]
        seen = tuple(
            GenerateKey(name, slot.kind, slot.use, slot.rule)
            for name, slot in slots
            if permits(slot.rule, slot.owner, access)
        )
        return KeyList(seen, MAX_KEYS - len(slots)).encode()

    def _delete(self, command: Command, access: Access) -> bytes:
        name = read(Named, command.data).name
        self._slot(name, access)
        commit(self._cells, {KEY + name: None})
        return b""

    # --- receipts

    def _sign_receipt(self, command: Command, access: Access) -> bytes:
        """Sign the receipt of the payment that was confirmed, once, with a key that goes with it."""
        order = read(ReceiptOrder, command.data)
        digest = sha256(order.receipt.encode()).digest()
        if self._cells.get(KEY + order.name) is None:
            return self._signed_before(order.name, digest, access)
        slot = self._slot_for(KeyUse.RECEIPT, order.name, access)
        if self._confirmed is None or not self._confirmed.covers(order.receipt, access.peer):
            raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
        signature = slot.sign(order.receipt.co_signature_input())
        signed = SignedReceipt(order.name, slot.rule, slot.owner, digest, signature)
        commit(self._cells, {KEY + order.name: None, SIGNED: signed.encode()})
        self._confirmed.use_up()
        return signature

    def _signed_before(self, name: bytes, digest: bytes, access: Access) -> bytes:
        value = self._cells.get(SIGNED)
        signed = SignedReceipt.decode(value) if value is not None else None
        if signed is None or (signed.name, signed.digest) != (name, digest):
            raise StatusWordError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        require(signed.rule, signed.owner, access)
        return signed.signature

    # --- counters

    def _count(self, command: Command, access: Access) -> bytes:
        if command.p2 or command.p1 not in set(CounterStep):
            raise StatusWordError(StatusWord.WRONG_P1_P2)
        if command.p1 == CounterStep.CREATE:
            return self._create_counter(read(NewCounter, command.data), access)
        name = read(Named, command.data).name
        value = self._cells.get(COUNTER + name)
        if value is None:
            raise StatusWordError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        counter = StoredCounter.decode(value)
        require(counter.rule, counter.owner, access)
        if command.p1 == CounterStep.ADVANCE:
            if counter.value == _MAX_COUNT:
                raise StatusWordError(StatusWord.CONDITIONS_NOT_SATISFIED)
            counter = replace(counter, value=counter.value + 1)
            commit(self._cells, {COUNTER + name: counter.encode()})
        return CounterValue(counter.value).encode()

    def _create_counter(self, order: NewCounter, access: Access) -> bytes:
        require(order.rule, owner_for(access), access)
        if self._cells.get(COUNTER + order.name) is not None:
            raise StatusWordError(StatusWord.ALREADY_EXISTS)
        owners = [StoredCounter.decode(value).owner for _, value in self._cells.items(COUNTER)]
        _require_room(owners, MAX_COUNTERS, self._strangers[1], access)
        commit(self._cells, {COUNTER + order.name: StoredCounter(order.rule, owner_for(access), 0).encode()})
        return CounterValue(0).encode()


def _require_room(owners: list[bytes], room: int, for_strangers: int, access: Access) -> None:
    """Raise StatusWordError 6A84 unless there is room for one more beside those of `owners`."""
    if len(owners) >= room or (not access.peer and owners.count(NO_OWNER) >= for_strangers):
        raise StatusWordError(StatusWord.NOT_ENOUGH_MEMORY)


def _random(command: Command) -> bytes:
    """Return as many random bytes as P2 says, 256 for 0."""
    require_no_data(command)
    if command.p1:
        raise StatusWordError(StatusWord.WRONG_P1_P2)
    return os.urandom(command.p2 or SHORT_MAX_NE)
