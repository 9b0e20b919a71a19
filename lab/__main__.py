# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m lab` is `scripts/demo`."""

from __future__ import annotations

from console.start import start


def main() -> None:
    """Run `scripts/demo`."""
    start("demo", "lab.demo")


if __name__ == "__main__":
    main()
