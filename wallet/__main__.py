# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m wallet` is `tap-wallet`."""

from wallet.cli import main

main()
