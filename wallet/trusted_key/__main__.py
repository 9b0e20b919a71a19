# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m wallet.trusted_key` is `tap-key`."""

from wallet.trusted_key.cli import main

main()
