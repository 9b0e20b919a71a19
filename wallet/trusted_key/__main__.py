# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m wallet.trusted_key` is `tap-key`."""

from __future__ import annotations

from console.start import start


def main() -> None:
    """Run `tap-key`."""
    start("tap-key", "wallet.trusted_key.cli")


if __name__ == "__main__":
    main()
