# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The payment directory (PPSE): which payment applications this phone has. Client world only; nothing here is core data."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.apdu import Command, Response
from protocol.fci import DIRECTORY_NAME, DirectoryEntry, encode_directory
from protocol.status import StatusWord

LABEL = "TAPLAB"


class Directory:
    """The application 2PAY.SYS.DDF01: it answers SELECT and nothing else."""

    def __init__(self, names: Sequence[bytes]) -> None:
        """List the applications `names`, best first."""
        self.name = DIRECTORY_NAME
        entries = tuple(DirectoryEntry(name, LABEL, priority) for priority, name in enumerate(names, 1))
        self._fci = encode_directory(entries)

    def select(self) -> Response:
        """Return the directory."""
        return Response(self._fci, StatusWord.OK)

    def answer(self, command: Command, prefix: bytes) -> Response:
        """Refuse: the directory has no commands."""
        return Response(b"", StatusWord.INS_NOT_SUPPORTED)

    def reset(self) -> None:
        """Nothing to forget."""
