# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m issuer` is `tap-issuer`."""

from __future__ import annotations

from console.start import start


def main() -> None:
    """Run `tap-issuer`."""
    start("tap-issuer", "issuer.cli")


if __name__ == "__main__":
    main()
