# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m pos` is `tap-pos`."""

from pos.cli import main

main()
