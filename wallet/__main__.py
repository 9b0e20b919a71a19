# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m wallet` is `tap-wallet`."""

from __future__ import annotations

from console.start import start


def main() -> None:
    """Run `tap-wallet`."""
    start("tap-wallet", "wallet.cli")


if __name__ == "__main__":
    main()
