# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m lab` is `scripts/demo`."""

from __future__ import annotations

from collections.abc import Callable

from console.start import start


def main() -> None:
    """Run `scripts/demo`."""
    start("demo", _command_line)


def _command_line() -> Callable[[], None]:
    from lab.demo import main

    return main


if __name__ == "__main__":
    main()
