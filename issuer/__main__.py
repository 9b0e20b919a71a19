# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m issuer` is `tap-issuer`."""

from __future__ import annotations

from collections.abc import Callable

from console.start import start


def main() -> None:
    """Run `tap-issuer`."""
    start("tap-issuer", _command_line)


def _command_line() -> Callable[[], None]:
    from issuer.cli import main

    return main


if __name__ == "__main__":
    main()
