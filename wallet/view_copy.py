# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The client application's copy of what the trusted world last showed: for looking, never for paying."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.errors import DecodeError
from wallet.tee.contract import WalletView

FILE_NAME = "shown"


def keep(folder: Path, view: WalletView) -> None:
    """Keep `view` as the newest copy; a torn write leaves the older one."""
    temporary = folder / f"{FILE_NAME}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(view.encode())
    temporary.rename(folder / FILE_NAME)


def read(folder: Path) -> WalletView | None:
    """Return the newest copy, None when there is none that can be read."""
    try:
        return WalletView.decode((folder / FILE_NAME).read_bytes())
    except (FileNotFoundError, DecodeError):
        return None
