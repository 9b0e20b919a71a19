# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m pos` is `tap-pos`."""

from __future__ import annotations

from collections.abc import Callable

from console.start import start


def main() -> None:
    """Run `tap-pos`."""
    start("tap-pos", _command_line)


def _command_line() -> Callable[[], None]:
    from pos.cli import main

    return main


if __name__ == "__main__":
    main()
