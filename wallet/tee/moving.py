# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Moving a purse to the Trusted Key, and from there into another wallet: it is in one place at every moment, or in none.

What moves is the purse's whole identity: device keys, money, cards, what was debited. On the way out it is locked here before
the Key has it, and forgotten here once the Key has it. On the way in it is claimed at the Key by one wallet, kept here without
being used, deleted at the Key, and then used. Each step may be torn and is gone on with by the same command.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

from construct import Byte, Construct, GreedyBytes, Int32ub, Prefixed, PrefixedArray

from protocol.errors import DecodeError
from protocol.key_commands import KeyIns, KeyModule, Named, ObjectList, ReadObject, Rule, WriteObject
from protocol.layout import Fields
from protocol.status import StatusError, StatusWord
from protocol.wire import Nested, Wire
from wallet.tee.contract import Origin, TeeError, TeeResult
from wallet.tee.key_agent import KeyAgent, KeyGoneError, Line, Talk
from wallet.tee.state import (
    ANCHORS,
    BLOCK_LIST,
    CREDENTIAL,
    DEVICE,
    MOVED_OUT,
    MOVING_IN,
    MOVING_OUT,
    PENDING,
    PURSE,
    TRANSACTION,
    Credential,
)
from wallet.tee.storage import Changes, SealedStorage

_OBJECT, _CLAIM = b"purse", b"purse/claim"
_TICKET, _MARK_BYTES = b"out/", 12
_ANNOUNCED, _SENT = b"announced", b"sent"
_MOST_BYTES = 0x3F00
_SINGLE = (DEVICE, ANCHORS, PURSE, BLOCK_LIST)
_PREFIXES = (CREDENTIAL, TRANSACTION)


@dataclass(frozen=True, slots=True)
class _Item(Wire):
    """One thing of the purse's, as it is stored."""

    key: bytes
    value: bytes

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields(
        "key" / Prefixed(Byte, GreedyBytes), "value" / Prefixed(Int32ub, GreedyBytes)
    )


@dataclass(frozen=True, slots=True)
class _Package(Wire):
    """A purse on its way."""

    items: tuple[_Item, ...]

    LAYOUT: ClassVar[Construct[Any, Any]] = Fields("items" / PrefixedArray(Int32ub, Nested(_Item)))

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))


class Mover:
    """Moves the purse of one storage; whoever holds caches over it reads anew afterwards."""

    def __init__(self, storage: SealedStorage, key: KeyAgent) -> None:
        """Move what is in `storage` by way of `key`."""
        self._storage = storage
        self._key = key

    @property
    def is_leaving(self) -> bool:
        """Whether a move out was begun here and is to be ended."""
        return self._storage.get(MOVING_OUT) is not None

    def out(self) -> Talk[None]:
        """Bring the purse to the Key. An error leaves it here, locked if the Key may have it: do it again."""
        line = yield from self._line()
        there, package = (yield from self._read(line, _OBJECT)), self._package()
        ticket = _ticket(package)
        if there and there != package:
            raise TeeError(
                TeeResult.ACCESS_DENIED,
                Origin.TRUSTED_APP,
                "the Key holds another purse already: a wallet without one takes it in, with tap-wallet move in",
            )
        if not there:
            yield from self._require_not_taken(line, ticket)
            yield from self._give_claim_up(line)
            if self._package() != package:  # until the next line it can be paid from
                raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "the purse was used meanwhile; move it again")
            self._storage.commit({MOVING_OUT: _ANNOUNCED + ticket})
            yield from self._key.secured(line, KeyIns.WRITE, WriteObject(ticket, Rule.PEER, b"out"))
            self._storage.commit({MOVING_OUT: _SENT + ticket})
            yield from self._key.secured(line, KeyIns.WRITE, WriteObject(_OBJECT, Rule.PEER, package))
        self._storage.commit({MOVING_OUT: None, **self._gone()})
        yield from self._drop(line, ticket)

    def take_back(self) -> Talk[None]:
        """End a move out that was torn: the purse is used here again if the Key never had it, and is gone if it had.

        The ticket was at the Key before the purse was sent, and who takes the purse takes the ticket first. So where the
        ticket still lies alone, the purse never arrived; where both are missing, another wallet has it.
        """
        line = yield from self._line()
        there, (sent, ticket) = (yield from self._read(line, _OBJECT)), self._begun()
        arrived = bool(there) and _ticket(there) == ticket
        if sent and not arrived:
            arrived = not (yield from self._read(line, ticket))
        self._storage.commit({MOVING_OUT: None, **(self._gone() if arrived else {})})
        yield from self._drop(line, ticket)

    def _require_not_taken(self, line: Line, ticket: bytes) -> Talk[None]:
        """End a move that was torn before, when another wallet has taken the purse since: it is forgotten here."""
        if self._begun() == (True, ticket) and not (yield from self._read(line, ticket)):
            self._storage.commit({MOVING_OUT: None, **self._gone()})
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, "another wallet has taken the purse already")

    def _begun(self) -> tuple[bool, bytes]:
        """Return whether the purse was sent, and its ticket: of what it was then, and it has not changed since."""
        begun = self._storage.get(MOVING_OUT) or _ANNOUNCED
        sent = begun.startswith(_SENT)
        return sent, begun.removeprefix(_SENT if sent else _ANNOUNCED)

    def take_in(self) -> Talk[None]:
        """Bring the purse that the Key holds into this wallet, which has none; only one wallet can."""
        line = yield from self._line()
        stored = self._storage.get(MOVING_IN)
        if stored is None:
            if self._has_purse:
                yield from self._give_claim_up(line)
            self._require_no_purse()
            yield from self._claim(line)
            stored = yield from self._read(line, _OBJECT)
            if not stored:
                yield from self._key.secured(line, KeyIns.DELETE, Named(_CLAIM))
                self._storage.commit({MOVED_OUT: None})  # another wallet has it: this one is free for a new purse
                raise TeeError(TeeResult.ITEM_NOT_FOUND, Origin.TRUSTED_APP, "the Key holds no purse")
            _Package.decode(stored)
            self._require_no_purse()  # one may have come while the Key was asked
            self._storage.commit({MOVING_IN: stored})
        if (yield from self._read(line, _OBJECT)) == stored:
            # a ticket that stayed behind would tell the first wallet that its purse never came
            if (yield from self._read(line, _ticket(stored))):
                yield from self._key.secured(line, KeyIns.DELETE, Named(_ticket(stored)))
            yield from self._key.secured(line, KeyIns.DELETE, Named(_OBJECT))
        items: Changes = {one.key: one.value for one in _Package.decode(stored).items}
        self._storage.commit({MOVING_IN: None, MOVED_OUT: None, **items})
        yield from self._give_claim_up(line)

    @property
    def _has_purse(self) -> bool:
        return self._storage.get(PURSE) is not None or self._storage.get(DEVICE) is not None

    def _require_no_purse(self) -> None:
        if self._has_purse:
            raise TeeError(
                TeeResult.BAD_STATE,
                Origin.TRUSTED_APP,
                "this wallet has a purse of its own: another one (--home) can take that of the Key in",
            )

    def _claim(self, line: Line) -> Talk[None]:
        """Claim what the Key holds for this wallet; ACCESS_DENIED while another one has claimed it."""
        try:
            yield from self._key.secured(line, KeyIns.WRITE, WriteObject(_CLAIM, Rule.CREATOR, b"claimed"))
        except StatusError as error:
            if error.status is not StatusWord.SECURITY_STATUS_NOT_SATISFIED:
                raise
            sentence = "another wallet is taking the purse in: go on there with tap-wallet move in"
            raise TeeError(TeeResult.ACCESS_DENIED, Origin.TRUSTED_APP, sentence) from None

    def _give_claim_up(self, line: Line) -> Talk[None]:
        """Delete a claim of ours that a torn move has left, so that another wallet can make its own."""
        yield from self._drop(line, _CLAIM)

    def _drop(self, line: Line, name: bytes) -> Talk[None]:
        """Delete what nothing depends on any more, if it is there and ours to delete."""
        with contextlib.suppress(StatusError):
            yield from self._key.secured(line, KeyIns.DELETE, Named(name))

    def _line(self) -> Talk[Line]:
        """Open the line, and let storage that was put back be found out before anything moves."""
        line = yield from self._key.opened()
        if KeyModule.STORAGE not in line.modules:
            raise KeyGoneError("this Key stores nothing")
        yield from self._key.count(line)
        return line

    def _read(self, line: Line, name: bytes) -> Talk[bytes]:
        """Return an object, b"" when there is none.

        Whether there is one is told by LIST: its answer has a MAC, and "not found" anybody on the way could say.
        """
        listed = ObjectList.decode((yield from self._key.secured(line, KeyIns.LIST)).data)
        if name not in {one.name for one in listed.objects}:
            return b""
        return (yield from self._key.secured(line, KeyIns.READ, ReadObject(name, 0, 0))).data

    def _moved(self) -> list[tuple[bytes, bytes]]:
        """Return what moves. Cards that the Key backs stay behind: their keys are this wallet's at the Key."""
        single = [(key, value) for key in _SINGLE if (value := self._storage.get(key)) is not None]
        several = [item for prefix in _PREFIXES for item in self._storage.items(prefix)]
        return single + [(key, value) for key, value in several if not _is_backed(key, value)]

    def _package(self) -> bytes:
        moved = self._moved()
        if not any(key == PURSE for key, _ in moved):
            at_key = self._storage.get(MOVED_OUT) is not None
            sentence = (
                "the purse is at the Key: tap-wallet move in brings it back" if at_key else "this wallet has no purse"
            )
            raise TeeError(TeeResult.BAD_STATE, Origin.TRUSTED_APP, sentence)
        package = _Package(tuple(_Item(key, value) for key, value in moved)).encode()
        if len(package) > _MOST_BYTES:
            raise TeeError(
                TeeResult.STORAGE_NO_SPACE,
                Origin.TRUSTED_APP,
                f"the purse has {len(package)} bytes and the Key takes {_MOST_BYTES}: tap-wallet sync takes out what is"
                " settled or expired",
            )
        return package

    def _gone(self) -> Changes:
        backed = [key for key, value in self._storage.items(CREDENTIAL) if _is_backed(key, value)]
        return {**dict.fromkeys((*(key for key, _ in self._moved()), *backed, PENDING)), MOVED_OUT: b"\x01"}


def _ticket(package: bytes) -> bytes:
    """Return the name of the object that tells whether a package ever came to the Key."""
    return _TICKET + hashlib.sha256(package).digest()[:_MARK_BYTES]


def _is_backed(key: bytes, value: bytes) -> bool:
    if not key.startswith(CREDENTIAL):
        return False
    try:
        return bool(Credential.decode(value).certificate.co_signing_key)
    except DecodeError:
        return False
