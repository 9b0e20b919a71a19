# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m wallet` is `tap-wallet`."""

from __future__ import annotations

from collections.abc import Callable

from console.start import start


def main() -> None:
    """Run `tap-wallet`."""
    start("tap-wallet", _command_line)


def _command_line() -> Callable[[], None]:
    from wallet.cli import main

    return main


if __name__ == "__main__":
    main()
