# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the modules of the Key have in common, and how a command came to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from protocol.apdu import Command, Response

PEER_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Access:
    """How a command came.

    `secure` is with C-MAC and C-ENCRYPTION; `peer` is the paired trusted world's name of 8 bytes (SCP11a), b"" otherwise.
    """

    secure: bool = False
    peer: bytes = b""


class Module(Protocol):
    """One of the Key's modules: it answers the instructions that are its own."""

    name: str
    instructions: frozenset[int]

    def answer(self, command: Command, access: Access) -> Response:
        """Answer one command; StatusWordError to refuse it."""

    def reset(self) -> None:
        """The session is over: card reset, SELECT, or the channel ended."""
