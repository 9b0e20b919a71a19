# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m pos` is `tap-pos`."""

from __future__ import annotations

from console.start import start


def main() -> None:
    """Run `tap-pos`."""
    start("tap-pos", "pos.cli")


if __name__ == "__main__":
    main()
