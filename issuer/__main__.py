# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`python -m issuer` is `tap-issuer`."""

from issuer.cli import main

main()
