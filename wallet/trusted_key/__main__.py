# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m wallet.trusted_key` is `tap-key`."""

from __future__ import annotations

from collections.abc import Callable

from console.start import start


def main() -> None:
    """Run `tap-key`."""
    start("tap-key", _command_line)


def _command_line() -> Callable[[], None]:
    from wallet.trusted_key.cli import main

    return main


if __name__ == "__main__":
    main()
