# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The client application's copy of what the trusted world last showed: for looking, never for paying."""

from __future__ import annotations

from pathlib import Path

from console.files import write_privately
from protocol.errors import DecodeError
from wallet.tee.contract import WalletView

FILE_NAME = "shown"


def keep(folder: Path, view: WalletView) -> None:
    """Keep `view` as the newest copy."""
    write_privately(folder / FILE_NAME, view.encode())


def read(folder: Path) -> WalletView | None:
    """Return the newest copy, None when there is none that can be read."""
    try:
        return WalletView.decode((folder / FILE_NAME).read_bytes())
    except (FileNotFoundError, DecodeError):
        return None
