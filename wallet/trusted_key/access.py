# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Who may use what: the rule that an object, a key or a counter was made with, judged at each command."""

from __future__ import annotations

from typing import TypeVar

from protocol.errors import DecodeError
from protocol.key_commands import Rule
from protocol.status import StatusWord
from protocol.wire import Wire
from wallet.card import StatusWordError
from wallet.trusted_key.module import PEER_LENGTH, Access

NO_OWNER = bytes(PEER_LENGTH)

Body = TypeVar("Body", bound=Wire)


def permits(rule: Rule, owner: bytes, access: Access) -> bool:
    """Tell whether a command that came so may use what has this rule and owner."""
    if rule is Rule.OPEN:
        return True
    if rule is Rule.CHANNEL:
        return access.secure
    if rule is Rule.PEER:
        return access.secure and bool(access.peer)
    return access.secure and bool(access.peer) and access.peer == owner


def require(rule: Rule, owner: bytes, access: Access) -> None:
    """Raise StatusWordError 6982 unless the command may."""
    if not permits(rule, owner, access):
        raise StatusWordError(StatusWord.SECURITY_STATUS_NOT_SATISFIED)


def owner_for(access: Access) -> bytes:
    """Return the owner of what such a command makes."""
    return access.peer or NO_OWNER


def read(kind: type[Body], data: bytes) -> Body:
    """Return the body of a command; StatusWordError 6A80 when it is none."""
    try:
        return kind.decode(data)
    except DecodeError:
        raise StatusWordError(StatusWord.WRONG_DATA) from None
