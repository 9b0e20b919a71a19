# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Where everything is kept: one home folder, a folder in it for each party, readable by its owner only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.errors import UsageError

_SOCKET_PATH_LIMIT = 100  # a Unix socket's path has 108 bytes at most


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of one laboratory."""

    path: Path

    @property
    def issuer(self) -> Path:
        """The issuer's folder."""
        return self.path / "issuer"

    @property
    def wallet(self) -> Path:
        """The wallet's folder."""
        return self.path / "wallet"

    @property
    def pos(self) -> Path:
        """The terminal's folder."""
        return self.path / "pos"

    @property
    def key(self) -> Path:
        """The Trusted Key's folder."""
        return self.path / "key"

    @property
    def link(self) -> str:
        """The link that wallet and terminal of this home use when none is named."""
        return _socket_link(self.path / "tap.sock")

    @property
    def key_link(self) -> str:
        """The link of the Trusted Key when none is named."""
        return _socket_link(self.key / "card.sock")

    @property
    def issuer_url(self) -> str:
        """The issuer of this home, as wallets and terminals reach it."""
        return f"embedded:{self.issuer}"


def make_private(folder: Path) -> Path:
    """Make a folder that only its owner can enter, and return it; UsageError says why it cannot be made."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; use another --home") from None
    return folder


def _socket_link(path: Path) -> str:
    if "?" in str(path):
        raise UsageError(f"{path} has a question mark, which a LINK cannot; name a LINK, or another --home")
    if len(str(path)) > _SOCKET_PATH_LIMIT:
        raise UsageError(f"{path} is too long for a socket; name a LINK, or a shorter --home")
    return f"socket:{path}"
